"""The admin address: who may ask for what, and how it is answered. Bytes in, bytes out."""

from __future__ import annotations

import json
import logging

import pytest

from atlas_pkg.admin.app import MOST_BODY, AdminApp
from atlas_pkg.admin.commands import CommandError
from atlas_pkg.balancing.upstream import AdminState
from atlas_pkg.config.model import Timeouts
from atlas_pkg.control.overrides import Change
from tests.admin.support import (
    TOKEN,
    Answer,
    FakeSource,
    ask,
    build_stats,
    build_upstream,
    exchange_bytes,
)

AUTHORIZED = f"Authorization: Bearer {TOKEN}"
JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"
PATHS = ("/", "/-/live", "/-/ready", "/metrics", "/stats.json")


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def app(source: FakeSource) -> AdminApp:
    return AdminApp(source, token=TOKEN, names=("atlas.internal", "Atlas.example"))


def steer(app: AdminApp, body: bytes | str, *fields: str, name: str = "a") -> Answer:
    return ask(app, f"/-/upstreams/{name}", AUTHORIZED, *fields, method="POST", body=body)


# Reading


def test_the_page_is_html(app: AdminApp) -> None:
    answer = ask(app, "/")

    assert answer.status == 200
    assert answer.fields["Content-Type"] == "text/html; charset=utf-8"


def test_life_is_told(app: AdminApp) -> None:
    answer = ask(app, "/-/live")

    assert (answer.status, answer.text) == (200, "alive\n")


def test_readiness_is_told_with_its_reason(app: AdminApp) -> None:
    answer = ask(app, "/-/ready")

    assert (answer.status, answer.text) == (200, "ready: 2 of 2 upstreams usable\n")


def test_the_status_is_text_that_a_browser_asks_for_again(app: AdminApp) -> None:
    answer = ask(app, "/status.txt")

    assert answer.status == 200
    assert answer.fields["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.fields["Refresh"] == "5"
    assert answer.text.startswith("All 2 upstreams are up\n")


def test_not_being_ready_is_503_with_its_reason(app: AdminApp, source: FakeSource) -> None:
    source.ready = (False, "no upstream is usable")

    answer = ask(app, "/-/ready")

    assert (answer.status, answer.text) == (503, "not ready: no upstream is usable\n")
    assert answer.fields["Retry-After"] == "5"


def test_metrics_have_the_type_of_prometheus(app: AdminApp) -> None:
    answer = ask(app, "/metrics")

    assert answer.status == 200
    assert answer.fields["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "atlas_connections 7\n" in answer.text


def test_stats_are_json_with_a_verdict(app: AdminApp) -> None:
    answer = ask(app, "/stats.json?t=1")

    document = json.loads(answer.body)
    assert answer.fields["Content-Type"] == "application/json"
    assert [item["name"] for item in document["upstreams"]] == ["a", "b"]
    assert document["verdict"]["level"] == "good"
    assert document["may_steer"] is True


def test_stats_say_when_there_is_no_token(source: FakeSource) -> None:
    app = AdminApp(source, token="", names=("127.0.0.1",))

    assert json.loads(ask(app, "/stats.json").body)["may_steer"] is False


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_the_body(app: AdminApp, path: str) -> None:
    full = exchange_bytes(app, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = ask(app, path, method="HEAD")

    assert answer.status == 200
    assert answer.body == b""
    assert int(answer.fields["Content-Length"]) == len(full.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("path", [*PATHS, "/nothing", "/-/upstreams/a"])
def test_nothing_is_stored_sniffed_or_framed(app: AdminApp, path: str) -> None:
    fields = ask(app, path).fields

    assert fields["Cache-Control"] == "no-store"
    assert fields["X-Content-Type-Options"] == "nosniff"
    assert fields["X-Frame-Options"] == "DENY"
    assert fields["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in fields["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/nothing", "/-/upstreams/", "/-/upstreams", "/stats", "//", "*"])
def test_other_paths_are_404(app: AdminApp, path: str) -> None:
    method = "OPTIONS" if path == "*" else "GET"

    assert ask(app, path, method=method).status == 404


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_views_are_only_for_get_and_head(app: AdminApp, path: str, method: str) -> None:
    answer = ask(app, path, method=method)

    assert answer.status == 405
    assert answer.fields["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_upstreams_are_only_for_post(app: AdminApp, method: str) -> None:
    answer = ask(app, "/-/upstreams/a", AUTHORIZED, method=method)

    assert answer.status == 405
    assert answer.fields["Allow"] == "POST"


# Foreign pages


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:9090",
        "192.0.2.7:1",
        "[::1]",
        "[::1]:9090",
        "[2001:DB8:0::1]:80",
        "localhost",
        "LocalHost:9090",
        "atlas.internal",
        "ATLAS.internal:9090",
        "atlas.example:9090",
    ],
)
def test_addresses_and_our_own_names_are_served(app: AdminApp, host: str) -> None:
    assert ask(app, "/stats.json", f"Host: {host}").status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9090",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.localhost",
        "localhost.",
        "127.1",
        "2130706433",
        "0x7f000001",
        "atlas.internal.evil.example",
        "xatlas.internal",
    ],
)
@pytest.mark.parametrize("path", ["/", "/stats.json"])
def test_foreign_names_are_refused(app: AdminApp, path: str, host: str) -> None:
    answer = ask(app, path, f"Host: {host}")

    assert answer.status == 403
    assert "admin.hosts" in answer.text
    assert host not in answer.text


@pytest.mark.parametrize("path", ["/-/live", "/-/ready", "/metrics"])
def test_probes_and_scrapers_come_under_any_name(app: AdminApp, path: str) -> None:
    assert ask(app, path, "Host: atlas.svc.cluster.local").status == 200


def test_steering_under_a_foreign_name_is_refused(app: AdminApp, source: FakeSource) -> None:
    answer = steer(app, "state=drain", "Host: evil.example:9090")

    assert answer.status == 403
    assert source.steered == []


def test_an_old_client_without_host_is_served(app: AdminApp) -> None:
    answer = exchange_bytes(app, b"GET /metrics HTTP/1.0\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:9090", "http://127.0.0.1:9090"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("localhost", "https://localhost:443"),
        ("[::1]:9090", "http://[0:0::1]:9090"),
        ("Atlas.Internal:9090", "http://atlas.internal:9090"),
    ],
)
def test_our_own_page_may_steer(app: AdminApp, host: str, origin: str) -> None:
    assert steer(app, "state=drain", f"Host: {host}", f"Origin: {origin}").status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://127.0.0.1",  # another port
        "http://127.0.0.1:9091",
        "http://localhost:9090",  # another name for the same machine
        "http://127.0.0.1:9090.evil.example",
        "http://evil@127.0.0.1:9090",
        "http://127.0.0.1:9090/",
        "ftp://127.0.0.1:9090",
        "null",
        "",
    ],
)
def test_foreign_pages_may_not_steer(app: AdminApp, source: FakeSource, origin: str) -> None:
    answer = steer(app, "state=drain", f"Origin: {origin}")

    assert answer.status == 403
    assert source.steered == []


def test_one_foreign_origin_among_two_is_enough(app: AdminApp) -> None:
    own, foreign = "Origin: http://127.0.0.1:9090", "Origin: http://evil.example"

    assert steer(app, "state=drain", own, foreign).status == 403


def test_foreign_pages_may_not_read_either(app: AdminApp) -> None:
    assert ask(app, "/stats.json", "Origin: http://evil.example").status == 403


# The token


def test_without_a_token_the_request_is_asked_for_one(app: AdminApp, source: FakeSource) -> None:
    answer = ask(app, "/-/upstreams/a", method="POST", body="state=drain")

    assert answer.status == 401
    assert answer.fields["WWW-Authenticate"] == 'Bearer realm="Atlas"'
    assert source.steered == []


@pytest.mark.parametrize(
    "field",
    [
        "Bearer wrong",
        "Bearer top",
        "Bearer top secre",
        "Bearer top secrets",
        "Bearer Top secret",
        "Bearer",
        "Bearer ",
        "Basic top secret",
        "top secret",
    ],
)
def test_a_wrong_token_is_401(app: AdminApp, source: FakeSource, field: str) -> None:
    answer = ask(
        app, "/-/upstreams/a", f"Authorization: {field}", method="POST", body="state=drain"
    )

    assert answer.status == 401
    assert 'error="invalid_token"' in answer.fields["WWW-Authenticate"]
    assert source.steered == []


def test_two_tokens_are_none(app: AdminApp) -> None:
    assert steer(app, "state=drain", "Authorization: Bearer other").status == 401


def test_a_wrong_token_is_logged_without_the_token(
    app: AdminApp, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ask(app, "/-/upstreams/a", "Authorization: Bearer guessed", method="POST")

    assert "192.0.2.7: refused for a wrong token" in caplog.text
    assert "guessed" not in caplog.text


def test_a_token_can_be_tried_without_changing_anything(app: AdminApp, source: FakeSource) -> None:
    right, wrong = (
        ask(app, "/-/token", f"Authorization: Bearer {token}", method="POST")
        for token in (TOKEN, "another")
    )

    assert (right.status, right.text) == (200, "done: this is the token\n")
    assert (wrong.status, wrong.text) == (401, "this is not the token\n")
    assert source.steered == []


def test_without_a_configured_token_all_is_read_only(source: FakeSource) -> None:
    app = AdminApp(source, token="", names=("127.0.0.1",))

    answers = [
        ask(app, "/-/upstreams/a", *fields, method="POST", body="state=drain")
        for fields in ((), ("Authorization: Bearer ",), (AUTHORIZED,))
    ]

    assert [answer.status for answer in answers] == [403] * 3
    assert "read only" in answers[0].text
    assert source.steered == []


def test_the_scheme_may_be_written_in_any_case(app: AdminApp) -> None:
    answer = ask(
        app,
        "/-/upstreams/a",
        f"authorization: bEARER  {TOKEN} ",
        method="POST",
        body="state=drain",
    )

    assert answer.status == 200


def test_a_token_beyond_ascii_is_utf_8(source: FakeSource) -> None:
    app = AdminApp(source, token="schlüssel", names=("127.0.0.1",))

    answer = ask(
        app,
        "/-/upstreams/a",
        "Authorization: Bearer schlüssel",
        method="POST",
        body="state=drain",
    )

    assert answer.status == 200


# Steering


@pytest.mark.parametrize(
    ("body", "field", "change"),
    [
        ("state=ready", FORM, Change(AdminState.READY)),
        ("state=drain", FORM, Change(AdminState.DRAIN)),
        ("state=maintenance", "X-Nothing: 1", Change(AdminState.MAINTENANCE)),
        ("weight=0", FORM, Change(weight=0)),
        ("weight=1000", FORM + "; charset=utf-8", Change(weight=1000)),
        ("weight=", FORM, Change(resets_weight=True)),
        ("state=drain&weight=7", FORM, Change(AdminState.DRAIN, 7)),
        ('{"state": "drain"}', JSON, Change(AdminState.DRAIN)),
        ('{"weight": 5}', JSON, Change(weight=5)),
        ('{"weight": null}', JSON, Change(resets_weight=True)),
        ('{"weight": ""}', JSON + ";charset=utf-8", Change(resets_weight=True)),
        ('{"state": "ready", "weight": 2}', JSON, Change(AdminState.READY, 2)),
    ],
)
def test_a_change_is_passed_on(
    app: AdminApp, source: FakeSource, body: str, field: str, change: Change
) -> None:
    answer = steer(app, body, field)

    assert (answer.status, answer.text) == (200, f"done: {change}\n")
    assert source.steered == [("a", change)]


def test_a_change_is_logged(app: AdminApp, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        steer(app, "state=drain&weight=")

    assert "upstream a: state drain, weight as in the file, by 192.0.2.7" in caplog.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("", FORM),
        ("state=", FORM),
        ("state=up", FORM),
        ("state=READY", FORM),
        ("weight=-1", FORM),
        ("weight=1001", FORM),
        ("weight=1.5", FORM),
        ("weight=+5", FORM),
        ("weight=0_5", FORM),
        ("weight=%D9%A3", FORM),  # a digit, but not one of ASCII
        ("weight=99999999999999999999999999", FORM),
        ("weight", FORM),
        ("wieght=5", FORM),
        ("weight=5&extra=1", FORM),
        ("weight=5&weight=6", FORM),
        ("&".join(f"a{number}=1" for number in range(50)), FORM),
        ("state=%ff", FORM),
        ("state=drain", JSON),
        ("{}", JSON),
        ("[]", JSON),
        ("null", JSON),
        ('{"state": null}', JSON),
        ('{"state": 1}', JSON),
        ('{"state": ["drain"]}', JSON),
        ('{"weight": true}', JSON),
        ('{"weight": 1.0}', JSON),
        ('{"weight": "5"}', JSON),
        ('{"weight": NaN}', JSON),
        ('{"weight": -1}', JSON),
        ('{"weight": 1001}', JSON),
        ('{"weight": ' + "9" * 4000 + "}", JSON),
        ('{"weight": 5, "weight": 6}', JSON),
        ('{"weight": 5, "name": "b"}', JSON),
        ("[" * 4000, JSON),
        (b'{"state": "\xff"}', JSON),
        ("state=drain", "Content-Type: text/plain"),
        ("state=drain", "Content-Type: multipart/form-data; boundary=x"),
    ],
)
def test_a_bad_value_is_400_and_changes_nothing(
    app: AdminApp, source: FakeSource, body: bytes | str, field: str
) -> None:
    answer = steer(app, body, field)

    assert answer.status == 400
    assert answer.text.endswith("\n")
    assert source.steered == []


@pytest.mark.parametrize("name", ["c", "A", "%ff", "a/b", "..", "a?", "%00"])
def test_an_unknown_upstream_is_404(app: AdminApp, source: FakeSource, name: str) -> None:
    status = steer(app, "state=drain", name=name).status

    assert status == (200 if name == "a?" else 404)  # what follows `?` is not the name
    assert len(source.steered) == (name == "a?")


def test_names_are_quoted_as_in_any_url() -> None:
    source = FakeSource(lambda: build_stats(build_upstream("west 1/ü%")))
    app = AdminApp(source, token=TOKEN, names=("127.0.0.1",))

    assert steer(app, "state=drain", name="west%201%2F%C3%BC%25").status == 200
    assert source.steered[0][0] == "west 1/ü%"


def test_what_the_source_could_not_do_is_told(app: AdminApp, source: FakeSource) -> None:
    source.failure = CommandError(503, "worker 2 did not answer")

    answer = steer(app, "state=drain")

    assert (answer.status, answer.text) == (503, "worker 2 did not answer\n")
    assert answer.fields["Retry-After"] == "5"


# Bodies


def test_a_body_in_chunks_is_read(app: AdminApp, source: FakeSource) -> None:
    answer = steer(app, b"3\r\nsta\r\n8\r\nte=drain\r\n0\r\n\r\n", "Transfer-Encoding: chunked")

    assert answer.status == 200
    assert source.steered == [("a", Change(AdminState.DRAIN))]


def test_a_client_that_waits_to_be_told_to_go_on_is_told(app: AdminApp) -> None:
    head = (
        f"POST /-/upstreams/a HTTP/1.1\r\nHost: localhost\r\n{AUTHORIZED}\r\n"
        "Content-Length: 11\r\nExpect: 100-continue\r\n\r\n"
    )

    said = exchange_bytes(app, head.encode())

    assert said == b"HTTP/1.1 100 Continue\r\n\r\n"  # and then the client left


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"weight=1&" + b"x" * MOST_BODY, "X-Nothing: 1"),
        (b"1100\r\n" + b"x" * 0x1100 + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
    ],
)
def test_a_large_body_is_413(app: AdminApp, source: FakeSource, body: bytes, field: str) -> None:
    answer = steer(app, body, field)

    assert answer.status == 413
    assert answer.fields["Connection"] == "close"
    assert source.steered == []


def test_malformed_chunks_are_400(app: AdminApp) -> None:
    assert steer(app, b"x\r\n", "Transfer-Encoding: chunked").status == 400


def test_a_body_that_does_not_come_is_408(app: AdminApp, source: FakeSource) -> None:
    head = (
        f"POST /-/upstreams/a HTTP/1.1\r\nHost: localhost\r\n{AUTHORIZED}\r\n"
        "Content-Length: 11\r\n\r\nstate"
    )

    said = exchange_bytes(app, head.encode(), ends=False, timeouts=Timeouts(client_body=0.05))

    assert said.startswith(b"HTTP/1.1 408 ")
    assert source.steered == []


def test_a_body_that_breaks_off_is_not_obeyed(app: AdminApp, source: FakeSource) -> None:
    head = (
        f"POST /-/upstreams/a HTTP/1.1\r\nHost: localhost\r\n{AUTHORIZED}\r\n"
        "Content-Length: 20\r\n\r\nstate=drain"
    )

    assert exchange_bytes(app, head.encode()) == b""
    assert source.steered == []


def test_a_connection_goes_on_after_a_body_was_read(app: AdminApp) -> None:
    steering = (
        f"POST /-/upstreams/a HTTP/1.1\r\nHost: localhost\r\n{AUTHORIZED}\r\n"
        "Content-Length: 11\r\n\r\nstate=drain"
    )
    reading = "GET /-/live HTTP/1.1\r\nHost: localhost\r\n\r\n"

    said = exchange_bytes(app, (steering + reading + steering).encode())

    assert said.count(b"HTTP/1.1 200 OK\r\n") == 3


def test_an_unread_body_is_not_taken_for_a_request(app: AdminApp) -> None:
    smuggled = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = (
        "POST /-/upstreams/a HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {len(smuggled)}\r\n\r\n"
    )

    said = exchange_bytes(app, (head + smuggled).encode())

    assert said.count(b"HTTP/1.1 ") == 1
    assert said.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in said
