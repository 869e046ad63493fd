"""Plays cases through a proxy: many clients and their upstream in one loop of one thread.

Every party follows its own script and waits only for what its own script says; what one hears of
the other has come through the proxy. One case is delivered in many ways at the same time, each on
a connection of its own: whole, byte by byte, cut in two wherever that may matter, behind a good
request. All that the upstream receives meanwhile belongs to that case, so nothing that is forwarded
can escape the judgement.

The second part of a cut delivery leaves when nothing has moved for a moment. That makes it likely
that the proxy has read the first; no verdict depends on it.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator, Sequence

from tests.wire.corpus import Case, Step
from tests.wire.judge import Exact
from tests.wire.messages import methods_in, read_requests
from tests.wire.parties import BEHIND, BYTE_BY_BYTE, WHOLE, Delivery, Party

GOOD_REQUEST = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"
GOOD_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
_GOOD_SCRIPT = [Step("receives", GOOD_REQUEST), Step("sends", GOOD_ANSWER)]

# How long one case may take until whoever still waits has failed. Passing cases take far less.
PATIENCE = 20.0

# Nothing has moved for so long: whoever holds a second part back sends it.
QUIET = 0.001

# The most places at which one text is cut; where there are more, some are left out evenly. A word
# is cut behind its first letter, and at its end: all places inside are alike.
MOST_CUTS = 30


def deliveries_of(case: Case, *, most_cuts: int = MOST_CUTS) -> Iterator[Delivery]:
    """Yield all ways in which `case` is to be delivered."""
    yield WHOLE
    how = case.header.get("deliver")
    if how != "alone":
        yield BEHIND
    if how:
        return
    yield BYTE_BY_BYTE
    is_request = case.header["direction"] == "request"
    steps: Sequence[Step] = case.client if is_request else case.upstream[0]
    text = next(step.data for step in steps if step.verb == "sends")
    assert isinstance(text, bytes)
    if most_cuts:
        places = [
            at for at in range(1, len(text)) if at == 1 or not text[at - 2 : at + 1].isalnum()
        ]
        stride = max(1, -(-len(places) // most_cuts))
        yield from (Delivery(f"cut at {at}", cut=at) for at in places[::stride])


class Arena:
    """The upstream of one proxy, and the clients that are sent through it."""

    def __init__(self, *, patience: float = PATIENCE, judge: type[Exact] = Exact) -> None:
        self._patience = patience
        self._judge = judge
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._clients: list[Party] = []
        self._upstreams: list[Party] = []
        # Of the case that is being played: what upstreams do, how, and how often they have done it.
        self._scripts: tuple[tuple[Step, ...], ...] = ()
        self._waiting: list[Delivery] = []
        self._finished = 0

    def close(self) -> None:
        """Close every socket."""
        for party in [*self._clients, *self._upstreams]:
            self._drop(party)
        self._selector.close()
        self._listener.close()

    def play(self, case: Case, port: int, deliveries: list[Delivery]) -> list[str]:
        """Send `case` to the proxy at `port` in all `deliveries`; returns what went wrong."""
        self._scripts, self._finished = case.upstream, 0
        is_answer = case.header["direction"] == "answer"
        self._waiting = list(deliveries) if is_answer else []
        try:
            for delivery in deliveries:
                self._connect(case, port, delivery)
            deadline = time.monotonic() + self._patience
            while time.monotonic() < deadline and not self._is_over():
                self._turn()
            quiet = 0
            while quiet < 2 and time.monotonic() < deadline + 1:
                quiet = 0 if self._turn() else quiet + 1
            problems = [self._blame(client) for client in self._clients if not client.is_done]
            return problems + self._judge_upstreams(case, len(deliveries))
        finally:
            for client in self._clients:
                self._drop(client)
            self._clients = []

    def _connect(self, case: Case, port: int, delivery: Delivery) -> None:
        steps = list(case.client)
        methods = methods_in(case.sent)
        if delivery.is_behind:
            first = next(step for step in steps if step.verb == "sends")
            assert isinstance(first.data, bytes)
            steps[steps.index(first)] = Step("sends", GOOD_REQUEST + first.data)
            methods.insert(0, b"GET")
        sock = socket.create_connection(("127.0.0.1", port), timeout=self._patience)
        client = Party(sock, self._judge("client", methods))
        if delivery.is_behind:
            client.expected = [GOOD_ANSWER]
        client.begin(steps, delivery if case.header["direction"] == "request" else WHOLE)
        self._clients.append(client)
        self._selector.register(sock, selectors.EVENT_READ, client)
        client.advance(is_quiet=False)

    def _is_over(self) -> bool:
        parties = (*self._clients, *self._upstreams)
        return all(party.is_done or party.is_stuck for party in parties)

    def _turn(self) -> bool:
        """Let everybody read and act once; returns whether anything happened."""
        parties = [*self._clients, *self._upstreams]
        is_dripping = any(party.is_dripping for party in parties)
        events = self._selector.select(0 if is_dripping else QUIET)
        moved = set()
        for key, _ in events:
            if key.data is None:
                self._accept()
                continue
            key.data.read()
            moved.add(key.data)
            if key.data.ending:
                self._selector.unregister(key.data.sock)
        is_quiet = not events and not is_dripping
        for party in parties:
            if not (is_quiet or party in moved or party.is_dripping):
                continue  # nothing has changed for it
            if party in self._upstreams:
                self._serve(party, is_quiet=is_quiet)
                continue
            party.advance(is_quiet=is_quiet)
            if party.is_gone:
                self._drop(party)
        return not is_quiet

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        party = Party(sock, self._judge("upstream", []))
        self._upstreams.append(party)
        self._selector.register(sock, selectors.EVENT_READ, party)

    def _serve(self, party: Party, *, is_quiet: bool) -> None:
        """Let one upstream connection act; between two requests it has no script."""
        if party.is_done and party.received:
            self._choose_script(party)
        party.advance(is_quiet=is_quiet)
        if party.is_done and party.expected:
            self._finished += party.expected != [GOOD_REQUEST]
            party.received, party.expected = b"", []
            party.is_gone = party.is_gone or party.has_closed
        if party.is_gone or (party.ending and party.is_done and not party.received):
            self._drop(party)
            self._upstreams.remove(party)

    def _choose_script(self, party: Party) -> None:
        """Decide by its request line what to do with a request that has begun to arrive."""
        line, end, _ = party.received.partition(b"\r\n")
        if not end:
            return
        if GOOD_REQUEST.startswith(line + end):
            party.begin(_GOOD_SCRIPT, WHOLE)
            return
        for script in self._scripts:
            wanted = script[0].data
            if isinstance(wanted, bytes) and wanted.startswith(line + end):
                break
        else:
            if not self._scripts:
                return  # nothing should have come here
            script = self._scripts[0]
        is_first = script is self._scripts[0]
        delivery = self._waiting.pop(0) if is_first and self._waiting else WHOLE
        party.begin(list(script), delivery)

    def _drop(self, party: Party) -> None:
        if party.sock.fileno() >= 0 and party.sock in self._selector.get_map():
            self._selector.unregister(party.sock)
        party.sock.close()

    def _blame(self, client: Party) -> str:
        step = client.steps[0] if client.steps else Step("sends")
        return (
            f"{client.name}: the client waits: {step.verb} {step.data!r:.300}, "
            f"and has received {client.received!r:.400} ({client.ending or 'still open'})"
        )

    def _judge_upstreams(self, case: Case, count: int) -> list[str]:
        """Judge what was forwarded, once the clients are done."""
        problems = []
        for party in [party for party in self._upstreams if party.received or not party.is_done]:
            is_cut = not any(message.end == "whole" for message in read_requests(party.received))
            may_be_cut = case.header.get("forwarded") == "incomplete"
            if not (may_be_cut and is_cut and party.ending):
                step = party.steps[0] if party.steps else Step("receives", b"nothing more")
                problems.append(
                    f"an upstream waits: {step.verb} {step.data!r:.400}, "
                    f"and has received {party.received!r:.600} ({party.ending or 'still open'})"
                )
            self._drop(party)
            self._upstreams.remove(party)
        wanted = count * len(case.upstream)
        if not problems and self._finished != wanted:
            problems.append(f"{self._finished} requests were forwarded instead of {wanted}")
        return problems
