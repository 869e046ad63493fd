"""One request, how far it has come, and the means to answer it.

`HttpService.read` makes an `Exchange` of each request, and the app answers it. It carries the
generation that the request keeps to its end, and everything that is held for it: the lease of an
upstream, the connection to it, what is read and not yet sent. So whoever goes on with it (a lane,
or a thread that may wait) can go on from there, and whoever gives it up lets go of all at once.

`has_started` tells whether the client has been sent a byte of the final answer: from then on a
failure can only cut the connection.
"""

from __future__ import annotations

import enum
import time
import uuid

from atlas_pkg.balancing.lease import ANYWHERE, Affinity, Lease, Outcome
from atlas_pkg.balancing.pool import UpstreamConnection
from atlas_pkg.balancing.upstream import Upstream
from atlas_pkg.choice import Choice
from atlas_pkg.errors import ClientError, ClientGone, Stage, UpstreamError
from atlas_pkg.http1.body import Body
from atlas_pkg.http1.framing import CHUNKED
from atlas_pkg.http1.message import Request, Response
from atlas_pkg.net.copy import Copier
from atlas_pkg.observing.record import End, Record, Times
from atlas_pkg.serving.client import FINISH, PARK, Client, Next
from atlas_pkg.serving.clients import Clients
from atlas_pkg.serving.failures import build_answer, build_last_answer
from atlas_pkg.serving.generation import Generation
from atlas_pkg.serving.router import Route, Router

# Whether a client is still there is asked only when its answer takes longer than this.
LOOK_AFTER = 0.5


class Step(enum.Enum):
    """How an exchange goes on."""

    AWAIT = "await"  # its upstream is to say something: the lane can await that
    WAIT = "wait"  # something else takes waiting: for a thread
    DONE = "done"  # it has ended


# As names of the module: looking a member up in its class takes longer than comparing it.
AWAIT, WAIT, DONE = Step


class Exchange:
    """One request, from its head to the end of its answer. Belongs to one thread at a time."""

    # What most exchanges never change stands in the class: it costs nothing to begin with. What is
    # looked at again and again is set below all the same, since it is found faster there.

    # Has the client been sent anything, an interim answer included? Of the final answer?
    has_sent = False
    has_started = False
    # Closing the connection is what ends the answer's body, so a cut needs another sign.
    ends_by_closing = False
    # The id that we have made for this request, if any: every attempt sends the same.
    request_id = b""
    # Why it was sent where, one for each attempt; None while nobody asks.
    choices: list[Choice] | None = None

    # How far it has come. What is held for it:
    lease: Lease | None = None
    connection: UpstreamConnection | None = None
    unsent = b""  # what the upstream has not taken yet of the head, and of what came with it
    replay: bytes | None = None  # a body that came whole with its head, kept for another attempt
    awaits_continue = False  # the client holds its body back until it hears 100
    is_deaf = False  # the upstream takes no more of the request
    has_heard = False  # the upstream has said something, if only an interim answer
    response: Response | None = None
    response_body: Body | None = None
    rest = b""  # of the answer, what the client has not taken yet
    deadline = 0.0  # until when the upstream has to say more
    client_left_at = 0.0  # when it was first seen that the client has closed its sending half
    tried: tuple[Upstream, ...] = ()  # those that have failed
    is_retry = False  # it counts in the budget of retries
    wants_fresh = False  # an idle connection had gone stale: this time a new one
    is_complete = False  # the whole answer has been handed to the client's connection

    route: Route | None = None  # which one it takes; None: none is meant for it
    is_ours = False  # Atlas answers it itself

    # The buffers of the thread that goes on with it.
    copier: Copier

    def __init__(
        self,
        request: Request,
        client: Client,
        clients: Clients,
        generation: Generation,
        failure: ClientError | None = None,
    ) -> None:
        """With a `failure`, which is still to be judged, the request is refused."""
        self.request = request
        self.client = client
        # What the observers are told of this exchange; None while nobody watches.
        self.record: Record | None = None
        # The times in it; None while nobody shows them.
        self.times: Times | None = None
        self.request_body: Body | None = None
        self._clients = clients
        self.generation = generation
        # The upstreams that may answer it.
        self.group = generation.group
        if request.hops_left == 0:
            self.is_ours = True
        self.failure: Exception | None = failure  # what was met, and is still to be judged
        if generation.router is not None and failure is None:
            self._find_route(generation.router)
        # What ties this client to an upstream, for the balancer.
        self.affinity: Affinity = ANYWHERE
        if self.group.affinity is not None:
            self.affinity = self.group.affinity.read(request, client.info)
        if client.bound and (upstream := client.find_bound(self.group.name)) is not None:
            self.affinity = self.affinity._replace(sticky=upstream)
        # What becomes of the client afterwards.
        self.following: Next = PARK if request.keep_alive else FINISH

    def _find_route(self, router: Router) -> None:
        try:
            self.route = router.find(self.request, self.client.info)
        except ClientError as error:
            self.failure = error
            return
        if self.route is None:
            return
        if self.route.group:
            self.group = self.generation.groups[self.route.group]
        else:
            self.is_ours = True

    def persistence(self) -> bytes:
        """The Connection line for an answer (RFC 9112 §9.3): said only where it is not implied."""
        if self._clients.is_draining:
            self.following = FINISH  # it may have begun while the request was under way
        if self.following is not PARK:
            return b"Connection: close\r\n"
        return b"" if self.request.minor == 1 else b"Connection: keep-alive\r\n"

    def send(self, data: bytes) -> None:
        """Send to the client. Blocks. Raises `StreamError`."""
        self.client.stream.send(data, self.generation.config.timeouts.client_write)

    def send_rest(self) -> None:
        """Send what the client has not taken yet. Blocks. Raises `StreamError`."""
        rest, self.rest = self.rest, b""
        if rest:
            self.send(rest)

    def start(self, status: int) -> None:
        """The final answer is about to be sent: from here on a failure can only cut it."""
        self.has_started = True
        if self.record is not None:
            self.record.status = status

    def answer(self, status: int, reason: str, *, fields: bytes = b"") -> None:
        """Answer by Atlas itself; `fields` are further lines of the head.

        Never waits: what the client does not take at once is kept.
        """
        answer = build_answer(
            status,
            reason,
            accept=self.request.fields.get(b"accept") or b"",
            fields=fields,
            pages=self.generation.pages,
            persistence=self.persistence(),
        )
        self.answer_whole(status, self.generation.forwarder.dress_answer(answer))

    def answer_ours(self) -> None:
        """Answer what no upstream is asked for: a route says how, or nobody may pass it on.

        Never waits, as `answer_whole`. Raises `ClientError`.
        """
        if self.request.has_body:
            self.following = FINISH  # it would be read as a request
        if self.route is not None and not self.route.group:
            if self.record is not None:
                self.record.end = End.ROUTE
            location = self.route.build_location(self.request)
            fields = b"Location: %b\r\n" % location if location else b""
            self.answer(self.route.status, "", fields=fields)
            return
        answer = build_last_answer(self.request, self.persistence())
        self.answer_whole(200, self.generation.forwarder.dress_answer(answer))

    def answer_whole(self, status: int, answer: bytes) -> None:
        """Send an answer made by Atlas, without its body where only the head was asked for.

        Never waits: what the client does not take at once is kept.
        """
        head_end = answer.index(b"\r\n\r\n") + 4
        if self.request.method == b"HEAD":
            answer = answer[:head_end]
        self.start(status)
        if self.record is not None:
            self.record.body_out = len(answer) - head_end
        self.is_complete = True
        self.rest = self.client.stream.send_now(answer)

    def let_go(self, outcome: Outcome) -> None:
        """Give up the upstream that is held, if any, with what that says about it."""
        if self.connection is not None:
            self.connection.stream.close()
            self.connection = None
        self.unsent = b""
        if self.lease is not None:
            lease, self.lease = self.lease, None
            lease.release(outcome)
        if self.is_retry:
            self.is_retry = False
            self.group.balancer.end_retry()

    def find_loss(self, now: float) -> Exception | None:
        """Say why nothing good is to be awaited any more: time has run out, or the client left.

        To be asked by the lane, now and then.
        """
        is_head = self.response is None
        if now >= self.deadline:
            stage = Stage.HEAD if is_head else Stage.BODY
            return UpstreamError(stage, "nothing came in time", timed_out=True)
        upstream_head = self.generation.config.timeouts.upstream_head
        if is_head and self.deadline - now > upstream_head - LOOK_AFTER:
            return None
        return ClientGone("closed its connection") if self.is_client_gone(now) else None

    def is_client_gone(self, now: float | None = None) -> bool:
        """Does nobody wait for the answer any more? To be asked now and then. Never waits.

        A client may have closed its sending half only, and be reading on: it is given some time
        (`timeouts.client_gone`) from when that was first seen, which is noted here. Its connection
        ends after this answer.
        """
        if not self.client.stream.has_ended():
            return False
        if self.client.stream.is_broken():
            return True
        if self.following is PARK and not self.client.stream.buffered:
            self.following = FINISH  # over TLS nothing would tell of its end again
        now = time.monotonic() if now is None else now
        self.client_left_at = self.client_left_at or now
        grace = self.generation.config.timeouts.client_gone
        return now - self.client_left_at >= grace or self._clients.is_cut

    @property
    def may_take_long(self) -> bool:
        """Could it keep a thread for as long as somebody likes, with an upload or with an answer?

        All else that a thread waits for has its limit: a lease, a connection.
        """
        if self.has_started or self.rest:
            return True
        if not self.request.has_body:
            return False
        body, framing = self.request_body, self.request.framing
        if body is not None and body.is_done:
            return False
        left = None if framing is CHUNKED else framing.length - (body.moved if body else 0)
        return left is None or left > len(self.client.stream.buffered)

    def make_request_id(self) -> bytes:
        """The id that is sent on unless the request has one that is kept (UUID 4, RFC 9562)."""
        if not self.request_id:
            self.request_id = uuid.uuid4().hex.encode()
            if self.record is not None and not self.record.request_id:
                self.record.request_id = self.request_id
        return self.request_id

    def begin_record(self) -> Record:
        """Begin to take down what happens in this exchange."""
        request, client, forwarder = self.request, self.client.info, self.generation.forwarder
        address = client.text
        if client.is_trusted:
            address = forwarder.client_address(request, client).decode("ascii")
        self.record = record = Record(address, request.line, time.monotonic())
        if self.route is not None:
            record.route = self.route.name
        record.group = "-" if self.is_ours or self.failure is not None else self.group.name
        record.host = request.host or b""
        record.origin = request.fields.origin()
        if b"x-request-id" in request.fields.notable:
            record.request_id = forwarder.kept_request_id(request, client)
        return record

    def note_attempt(self, upstream: Upstream) -> None:
        """An attempt at `upstream` begins, for those who watch."""
        if self.record is not None:
            self.record.upstream = upstream.name
        if self.times is not None:
            self.times.chosen_at = time.monotonic()

    def note_connection(self, connection: UpstreamConnection) -> None:
        """There is a connection for it, for those who watch."""
        if self.record is not None:
            self.record.reused = connection.requests > 0
        if self.times is not None:
            is_new = not connection.requests
            self.times.connected_at = time.monotonic() if is_new else self.times.chosen_at
