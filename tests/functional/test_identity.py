"""Connections that carry an identity: after an NTLM handshake they are one client's alone.

The upstreams here keep the rules of NTLM over HTTP: who is known is known to a connection, and the
three messages of a handshake have to come over the same one.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import struct
import subprocess

import pytest

from tests.fakes import Conversation, Upstream, build_answer
from tests.functional.conftest import Start
from tests.toolkit import Client, build_config, find_program, wait_until

_NAME = b"NTLMSSP\0"


def message(number: int) -> str:
    """A message of the handshake, as far as anybody here looks into it."""
    text = _NAME + struct.pack("<I", number)
    if number == 2:  # no target, Unicode and NTLM, a challenge
        text += struct.pack("<HHII", 0, 0, 48, 0x201) + b"12345678" + bytes(16)
    return base64.b64encode(text).decode()


def ntlm_server(name: str) -> Upstream:
    """An upstream that knows who has shaken hands over this very connection."""
    numbers = itertools.count(1)

    def serve(conversation: Conversation) -> None:
        number, is_challenged, is_known = next(numbers), False, False
        while request := conversation.read_head():
            for _ in conversation.read_body(request):
                pass
            said = request.get("authorization").removeprefix("NTLM ")
            kind = base64.b64decode(said)[8] if said else 0
            is_known = is_known or (kind == 3 and is_challenged)
            is_challenged = kind == 1
            if is_known:
                conversation.send(build_answer(b"known at %s%d" % (name.encode(), number)))
                continue
            more = f" {message(2)}" if is_challenged else ""
            fields = f"WWW-Authenticate: NTLM{more}\r\n"
            conversation.send(build_answer(b"who?", status="401 Unauthorized", fields=fields))

    return Upstream(serve, name=name)


def shake_hands(client: Client) -> str:
    assert client.get().status == 401
    challenge = client.get(Authorization=f"NTLM {message(1)}")
    assert challenge.status == 401
    assert challenge.get("WWW-Authenticate") == f"NTLM {message(2)}"
    answer = client.get(Authorization=f"NTLM {message(3)}")
    assert answer.status == 200
    return answer.text


def test_nobody_else_gets_a_connection_that_knows_somebody(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(ntlm_server("a"))
    atlas = start(build_config(upstream.table()))

    with atlas.client() as client, atlas.client() as other:
        page = shake_hands(client)
        assert [other.get().status for _ in range(3)] == [401] * 3
        assert [client.get().text for _ in range(3)] == [page] * 3
        assert client.post(b"hello").text == page
    assert atlas.get().status == 401


def test_handshakes_succeed_with_several_upstreams(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    several = [upstreams.enter_context(ntlm_server(name)) for name in "abc"]
    atlas = start(
        build_config(*(one.table() for one in several), routing={"strategy": "round_robin"})
    )

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(atlas.client()) for _ in range(5)]
        pages = [shake_hands(client) for client in clients]
        assert len(set(pages)) == 5
        for _ in range(3):
            assert [client.get().text for client in clients] == pages


def test_it_ends_with_its_client(upstreams: contextlib.ExitStack, start: Start) -> None:
    upstream = upstreams.enter_context(ntlm_server("a"))
    atlas = start(build_config(upstream.table()))

    with atlas.client() as client:
        shake_hands(client)
        assert upstream.connected == 1

    wait_until(lambda: not upstream.connected, "the connection to end")


def test_credentials_that_are_taken_at_once_bind_too(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    def serve(conversation: Conversation) -> None:
        is_known = False
        while request := conversation.read_head():
            is_known = is_known or request.get("authorization") == "Negotiate ticket"
            conversation.send(build_answer(b"known" if is_known else b"unknown"))

    upstream = upstreams.enter_context(Upstream(serve))
    atlas = start(build_config(upstream.table()))

    with atlas.client() as client, atlas.client() as other:
        assert client.get(Authorization="Negotiate ticket").text == "known"
        assert other.get().text == "unknown"
        assert client.get().text == "known"


def test_curl_shakes_hands(upstreams: contextlib.ExitStack, start: Start) -> None:
    curl = find_program("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    several = [upstreams.enter_context(ntlm_server(name)) for name in "ab"]
    atlas = start(build_config(*(one.table() for one in several)))
    url = f"http://127.0.0.1:{atlas.port}/"

    command = [curl, "-sS", "--ntlm", "-u", "user:secret", url, url]
    answers = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    if "NTLM" in answers.stderr and "not" in answers.stderr:
        pytest.skip("this curl knows no NTLM")
    assert answers.stdout.count("known at ") == 2, answers.stderr
    assert atlas.get().status == 401
