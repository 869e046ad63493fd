"""Sticky sessions as browsers and upstreams see them."""

from __future__ import annotations

import base64
import contextlib
import os
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fakes import SWITCHED, Scripted, Upstream, echoing_fields, named
from tests.functional.conftest import Start
from tests.toolkit import Answer, Atlas, build_config

# Who is chosen does not depend on the engine that asks.
pytestmark = pytest.mark.engines("lane")

STICKY = {"secret": "a secret of the test"}
ROUND_ROBIN = {"strategy": "round_robin"}


@pytest.fixture
def abc(upstreams: contextlib.ExitStack) -> list[Upstream]:
    return [upstreams.enter_context(named(name)) for name in "ABC"]


def config(*upstreams: dict[str, object], **more: Mapping[str, object]) -> str:
    tables: dict[str, Mapping[str, object]] = {"sticky": STICKY, "routing": ROUND_ROBIN, **more}
    return build_config(*upstreams, **tables)


def cookie_of(answer: Answer) -> str:
    """The cookie as a browser sends it back."""
    return answer.get("Set-Cookie").partition(";")[0]


def ask(atlas: Atlas, cookie: str, times: int) -> Counter[str]:
    with atlas.client() as client:
        answers = [client.get(Cookie=cookie) for _ in range(times)]
    return Counter(a.text if a.status == 200 else str(a.status) for a in answers)


def test_a_client_comes_back_to_its_upstream(abc: list[Upstream], start: Start) -> None:
    atlas = start(config(*(upstream.table() for upstream in abc)))
    answers = [atlas.get() for _ in range(3)]

    assert [answer.text for answer in answers] == ["A", "B", "C"]
    for answer in answers:
        assert ask(atlas, cookie_of(answer), 5) == {answer.text: 5}
        assert ask(atlas, f"x=1; {cookie_of(answer)}; y=2", 3) == {answer.text: 3}


def test_the_cookie_is_set_once_and_says_how_it_is_to_be_kept(
    abc: list[Upstream], start: Start
) -> None:
    atlas = start(config(*(upstream.table() for upstream in abc)))
    answer = atlas.get()

    assert answer.get("Set-Cookie").partition(";")[2] == " Path=/; HttpOnly; SameSite=Lax"
    assert len(cookie_of(answer).removeprefix("atlas=")) == 24  # an HMAC, and no name
    again = atlas.get(Cookie=cookie_of(answer))
    assert again.get("Set-Cookie") == ""

    more = {"max_age": 3600, "secure": True, "same_site": "Strict", "cookie": "mine", **STICKY}
    atlas.reload(config(abc[0].table(), sticky=more))
    cookie, _, attributes = atlas.get().get("Set-Cookie").partition(";")
    assert cookie.startswith("mine=")
    assert attributes == " Path=/; HttpOnly; SameSite=Strict; Max-Age=3600; Secure"


def test_it_survives_reload_reordering_restart_and_another_process(
    abc: list[Upstream], start: Start, tmp_path: Path
) -> None:
    a, b, c = abc
    text = config(a.table(), b.table(), c.table())
    atlas = start(text)
    cookies = {answer.text: cookie_of(answer) for answer in (atlas.get(), atlas.get())}
    cookie = cookies["B"]

    atlas.reload(config(c.table(), b.table(weight=7), a.table()))
    assert ask(atlas, cookie, 6) == {"B": 6}

    atlas.reload(config(b.table(), c.table()))
    assert ask(atlas, cookie, 6) == {"B": 6}

    path = tmp_path / "other.toml"
    path.write_text(config(b.table(), a.table()))
    with Atlas(path).wait_until_listening() as other:
        assert ask(other, cookie, 6) == {"B": 6}

    atlas.end()
    with Atlas(path).wait_until_listening() as after:
        assert ask(after, cookie, 6) == {"B": 6}


def test_without_a_secret_reloads_keep_the_cookies_and_restarts_do_not(
    abc: list[Upstream], start: Start, tmp_path: Path
) -> None:
    tables = [upstream.table() for upstream in abc]
    text = config(*tables, sticky={"cookie": "atlas"})
    atlas = start(text)
    cookie = cookie_of(atlas.get())

    atlas.reload(config(*reversed(tables), sticky={"cookie": "atlas"}))
    assert ask(atlas, cookie, 6) == {"A": 6}

    path = tmp_path / "other.toml"
    path.write_text(text)
    with Atlas(path).wait_until_listening() as other:
        assert len(ask(other, cookie, 6)) == 3


def test_workers_share_a_secret_that_was_made_at_start(abc: list[Upstream], start: Start) -> None:
    tables = [upstream.table() for upstream in abc]
    atlas = start(config(*tables, sticky={"cookie": "atlas"}, listen={"workers": 3}))
    cookie = cookie_of(atlas.get())

    answers = Counter(atlas.get(Cookie=cookie).text for _ in range(40))

    assert len(answers) == 1


def test_forged_cookies_never_select(abc: list[Upstream], start: Start) -> None:
    a, b, c = abc
    limits = {"requests_per_connection": 10_000}
    atlas = start(config(a.table(), b.table(weight=0), c.table(), limits=limits))
    dice = random.Random(9)
    genuine = cookie_of(atlas.get()).partition("=")[2]

    # B takes no new clients: only a genuine cookie could bring anybody there.
    with atlas.client() as client:
        for number in range(3000):
            forged = dice.choice(
                [
                    base64.urlsafe_b64encode(dice.randbytes(18)).decode(),
                    "B",
                    genuine[: number % len(genuine)],
                    genuine[:-1] + dice.choice("ABCDEFabcdef0123456789-_"),
                    genuine.swapcase(),
                    f'"{genuine}"',
                    "",
                ]
            )
            answer = client.get(Cookie=f"atlas={forged}")
            assert answer.text in "AC"
            assert forged == genuine or cookie_of(answer), f"{forged!r} was taken for genuine"

    assert b.requests == 0


def test_the_cookie_is_not_passed_on_and_others_are_byte_for_byte(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    echo = upstreams.enter_context(echoing_fields("echo"))
    atlas = start(config(echo.table()))
    cookie = cookie_of(atlas.get())

    def passed_on(value: str) -> list[str]:
        lines = atlas.get(Cookie=value).text.split("\n")
        return [line for line in lines if line.lower().startswith("cookie:")]

    assert passed_on(cookie) == []
    assert passed_on(f"x=1; {cookie}") == ["Cookie: x=1"]
    assert passed_on(f"{cookie}; x=1") == ["Cookie: x=1"]
    assert passed_on(f'a="q, r" ;b=%20;{cookie};  c==;d') == ['Cookie: a="q, r" ;b=%20;  c==;d']
    assert passed_on("atlas2=x; Atlas=y; xatlas=z") == ["Cookie: atlas2=x; Atlas=y; xatlas=z"]
    assert passed_on("atlas=forged; x=1") == ["Cookie: x=1"]


def test_a_client_whose_upstream_is_down_gets_another_and_its_cookie(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    a, b = (upstreams.enter_context(Scripted(name)) for name in "AB")
    check = {"path": "/health", "interval": 0.1, "rise": 1, "fall": 1}
    atlas = start(config(a.table(), b.table(), health_check=check))
    cookie = cookie_of(atlas.get())
    assert ask(atlas, cookie, 3) == {"A": 3}

    a.health = 500
    atlas.wait_for("upstream A is down")
    answer = atlas.get(Cookie=cookie)
    assert answer.text == "B"
    new = cookie_of(answer)
    assert new not in ("", cookie)

    a.health = 200
    atlas.wait_for("upstream A is up")
    assert ask(atlas, new, 3) == {"B": 3}  # it stays where it is now
    assert ask(atlas, cookie, 3) == {"A": 3}


def test_a_client_whose_upstream_fails_gets_another_by_a_retry(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    a, b = (upstreams.enter_context(Scripted(name)) for name in "AB")
    atlas = start(config(a.table(), b.table(), routing={**ROUND_ROBIN, "retries": 1}))
    cookie = cookie_of(atlas.get())
    a.script = "reset"

    answer = atlas.get(Cookie=cookie)

    assert answer.text == "B"
    assert cookie_of(answer) not in ("", cookie)


def test_a_client_whose_upstream_left_the_list_gets_another(
    abc: list[Upstream], start: Start
) -> None:
    a, b, _ = abc
    atlas = start(config(a.table(), b.table()))
    cookie = cookie_of(atlas.get())

    atlas.reload(config(b.table()))
    answer = atlas.get(Cookie=cookie)

    assert answer.text == "B"
    assert cookie_of(answer)


def test_weight_0_keeps_its_sessions_and_gets_no_new_ones(
    abc: list[Upstream], start: Start
) -> None:
    a, b, _ = abc
    atlas = start(config(a.table(), b.table()))
    cookie = cookie_of(atlas.get())

    atlas.reload(config(a.table(weight=0), b.table()))

    assert ask(atlas, cookie, 5) == {"A": 5}
    assert ask(atlas, "x=1", 5) == {"B": 5}


def test_a_secret_from_the_environment_is_shared(
    abc: list[Upstream], start: Start, tmp_path: Path
) -> None:
    text = config(*(upstream.table() for upstream in abc), sticky={"secret": "${SECRET_OF_TEST}"})
    env = {"SECRET_OF_TEST": "from outside"}
    cookie = cookie_of(start(text, env=env).get())

    path = tmp_path / "other.toml"
    path.write_text(text)
    with Atlas(path, env=env).wait_until_listening() as other:
        assert len(ask(other, cookie, 6)) == 1
    assert "SECRET_OF_TEST" not in os.environ


def test_the_cookie_is_on_an_answer_that_switches_protocols(
    upstreams: contextlib.ExitStack, start: Start
) -> None:
    upstream = upstreams.enter_context(Scripted("a", (SWITCHED, "wait")))
    atlas = start(config(upstream.table()))

    with atlas.client() as client:
        client.send_head("GET", "/", Upgrade="raw", Connection="Upgrade")
        answer = client.read_head()
        cookie = cookie_of(answer)
    with atlas.client() as client:
        client.send_head("GET", "/", Upgrade="raw", Connection="Upgrade", Cookie=cookie)
        again = client.read_head()

    assert (answer.status, len(cookie.removeprefix("atlas="))) == (101, 24)
    assert (again.status, again.get("Set-Cookie")) == (101, "")


def test_the_cookie_is_renewed_once_half_its_time_has_gone(
    abc: list[Upstream], start: Start
) -> None:
    atlas = start(config(abc[0].table(), sticky={"max_age": 3600, **STICKY}))
    cookie = cookie_of(atlas.get())
    token, _, set_at = cookie.partition(".")
    older = f"{token}.{int(set_at) - 1900}"

    fresh, renewed, untimed = (atlas.get(Cookie=one) for one in (cookie, older, token))

    assert fresh.get("Set-Cookie") == ""
    for answer in (renewed, untimed):
        assert cookie_of(answer).startswith(token + ".")
        assert int(cookie_of(answer).partition(".")[2]) >= int(set_at)
