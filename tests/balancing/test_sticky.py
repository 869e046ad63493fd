"""Sticky sessions: what the cookie says, who it selects, and what is left for upstreams."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_pkg.balancing.sticky import StickySessions, read_cookie, without_cookies
from atlas_pkg.config.model import Sticky

SETTINGS = Sticky()
SECRET = b"0123456789abcdef"


def sessions(*names: str, settings: Sticky = SETTINGS, secret: bytes = SECRET) -> StickySessions:
    return StickySessions(settings, secret, names or ("a", "b"), clock=lambda: 1000.5)


def test_the_token_is_a_shortened_hmac_of_the_name() -> None:
    token = sessions().token_for("a")

    digest = hmac.new(SECRET, b"atlas sticky upstream\x00a", hashlib.sha256).digest()
    assert token == base64.urlsafe_b64encode(digest[:18])
    assert re.fullmatch(rb"[A-Za-z0-9_-]{24}", token)


def test_every_upstream_is_found_by_its_token() -> None:
    names = [f"upstream {number} ü" for number in range(1000)]
    sticky = sessions(*names)

    assert [sticky.match(sticky.token_for(name)) for name in names] == names


def test_tokens_depend_on_name_and_secret_alone() -> None:
    before = sessions("a", "b", "c")
    after = sessions("c", "b", "d", settings=Sticky(cookie="other", max_age=5))

    assert after.token_for("b") == before.token_for("b")
    assert after.match(before.token_for("b")) == "b"
    assert after.match(before.token_for("a")) is None
    assert sessions(secret=b"another").match(before.token_for("a")) is None


@pytest.mark.parametrize("forged", [b"", b"a", b"b", b"YQ==", b"A" * 24, b"\xff" * 24])
def test_a_forged_value_selects_nobody(forged: bytes) -> None:
    assert sessions().match(forged) is None


@given(st.binary(max_size=40))
def test_no_value_but_the_token_selects_an_upstream(value: bytes) -> None:
    sticky = sessions("a")

    assert (sticky.match(value) == "a") is (value == sticky.token_for("a"))


@pytest.mark.parametrize("case", [bytes.upper, bytes.lower, lambda token: token[:-1]])
def test_a_damaged_token_selects_nobody(case: object) -> None:
    sticky = sessions()

    assert sticky.match(case(sticky.token_for("a"))) is None  # type: ignore[operator]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], None),
        ([b""], None),
        ([b"atlas=x"], b"x"),
        ([b"a=1; atlas=x; b=2"], b"x"),
        ([b"a=1;atlas=x"], b"x"),
        ([b"a=1; \tatlas = x \t; b"], b"x"),
        ([b"a=1", b"b=2; atlas=x"], b"x"),
        ([b"atlas="], b""),
        ([b"atlas=x=y"], b"x=y"),
        ([b"ATLAS=x"], None),
        ([b"atlas"], None),
        ([b"atlas2=x; my-atlas=y; a=atlas=z"], None),
        ([b"=atlas; ; ;;"], None),
    ],
)
def test_our_cookie_is_found_among_others(values: list[bytes], found: bytes | None) -> None:
    assert sessions().find(values) == found


def test_of_several_cookies_the_one_that_selects_an_upstream_is_found() -> None:
    sticky = sessions()
    token = sticky.token_for("b")

    assert sticky.find([b"atlas=old; atlas=" + token]) == token
    assert sticky.find([b"atlas=old", b"atlas=" + token + b"; atlas=older"]) == token
    assert sticky.find([b"atlas=old; atlas=older"]) == b"old"


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (b"", b""),
        (b"a=1; b=2", b"a=1; b=2"),
        (b"atlas=x", b""),
        (b" atlas=x ", b""),
        (b"atlas=x; atlas=y;", b""),
        (b"atlas=x; a=1", b"a=1"),
        (b"atlas=x; a=1; atlas-b=y; atlas-c=z", b"a=1; atlas-c=z"),
        (b"a=1; atlas=x", b"a=1"),
        (b"a=1; atlas=x; b=2", b"a=1; b=2"),
        (b"a=1;atlas=x;b=2", b"a=1;b=2"),
        (b"a=1; atlas=x; b=2; atlas=y; c=3", b"a=1; b=2; c=3"),
        (b"atlas2=x; ATLAS=y; atlas", b"atlas2=x; ATLAS=y; atlas"),
        (b'a="1, 2";  b\xff = 2 ; atlas=x; ;c', b'a="1, 2";  b\xff = 2 ; ;c'),
    ],
)
def test_upstreams_receive_the_other_cookies_as_they_were(value: bytes, left: bytes) -> None:
    assert without_cookies(frozenset((b"atlas", b"atlas-b")), value) == left


@given(
    st.lists(st.sampled_from([b"a=1", b"b", b"atlas=x", b"c=atlas", b"d=", b"atlas=", b"e=1=2"]))
)
def test_nothing_of_ours_is_left_and_nothing_of_others_is_lost(pairs: list[bytes]) -> None:
    others = [pair for pair in pairs if not pair.startswith(b"atlas=")]

    assert without_cookies(frozenset((b"atlas",)), b"; ".join(pairs)) == b"; ".join(others)


@pytest.mark.parametrize(
    ("settings", "attributes"),
    [
        (Sticky(), b"; Path=/; HttpOnly; SameSite=Lax"),
        (
            Sticky(path="/shop", max_age=3600, same_site="Strict"),
            b".1000; Path=/shop; HttpOnly; SameSite=Strict; Max-Age=3600",
        ),
        (Sticky(secure=True, same_site="None"), b"; Path=/; HttpOnly; SameSite=None; Secure"),
    ],
)
def test_the_cookie_is_set_with_its_attributes(settings: Sticky, attributes: bytes) -> None:
    sticky = sessions(settings=settings)

    assert sticky.set_cookie("a") == b"atlas=" + sticky.token_for("a") + attributes


@pytest.mark.parametrize(
    ("time", "is_due"),
    [
        (b".1000", False),
        (b".951", False),
        (b".950", True),
        (b".0", True),
        (b".2000", True),
        (b"", True),
        (b".", True),
        (b".-1", True),
        (b".1e3", True),
        (b".1" + 5000 * b"0", True),
    ],
)
def test_a_cookie_is_renewed_once_half_its_time_has_gone(time: bytes, is_due: bool) -> None:
    sticky = sessions(settings=Sticky(max_age=100))
    value = sticky.token_for("a") + time

    assert sticky.match(value) == "a"
    assert sticky.is_due(value) is is_due


def test_a_cookie_of_the_session_is_never_renewed() -> None:
    sticky = sessions()

    assert not sticky.is_due(sticky.token_for("a"))
    assert not sticky.is_due(sticky.token_for("a") + b".0")


def test_what_is_set_is_found_again_under_its_name() -> None:
    sticky = sessions(settings=Sticky(cookie="__Host-app", secure=True))
    cookie = sticky.set_cookie("b").partition(b";")[0]

    token = sticky.find([b"x=1; " + cookie])

    assert token is not None
    assert sticky.match(token) == "b"
    assert without_cookies(frozenset((sticky.cookie,)), cookie) == b""


def test_the_name_is_not_readable_in_the_cookie() -> None:
    cookie = sessions("intern-db-7").set_cookie("intern-db-7")

    assert b"intern" not in cookie
    assert base64.b64encode(b"intern-db-7")[:8] not in cookie


def test_any_cookie_can_be_read_by_its_name() -> None:
    assert list(read_cookie(b"user=7; x=user; user = 8", b"user")) == [b"7", b"8"]
