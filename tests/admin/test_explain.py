"""Explanations at the admin address: who may look, who may ask, and what is refused."""

from __future__ import annotations

import json

import pytest

from atlas_pkg.admin.app import AdminApp
from atlas_pkg.admin.commands import CommandError, select
from atlas_pkg.observing.timeline import Timeline, build_timeline
from atlas_pkg.observing.tracer import MOST_ONE_IN, Asking
from tests.admin.support import TOKEN, Answer, FakeSource, ask
from tests.observing.explain_support import CHOICE, build_record

AUTHORIZED = f"Authorization: Bearer {TOKEN}"
JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"


@pytest.fixture
def source() -> FakeSource:
    return FakeSource(None, build_record(choices=[CHOICE]), build_record(address="192.0.2.9"))


@pytest.fixture
def app(source: FakeSource) -> AdminApp:
    return AdminApp(source, token=TOKEN)


def order(app: AdminApp, body: str, *fields: str) -> Answer:
    return ask(app, "/-/explain", *(fields or (AUTHORIZED, FORM)), method="POST", body=body)


def test_the_last_exchanges_are_json(app: AdminApp) -> None:
    answer = ask(app, "/explain.json")

    document = json.loads(answer.body)
    assert answer.fields["Content-Type"] == "application/json"
    assert answer.fields["Cache-Control"] == "no-store"
    assert document.keys() == {"time", "one_in", "next_from", "exchanges"}
    assert document["exchanges"][0]["choices"][0]["chosen"] == "green"


def test_a_query_selects(app: AdminApp) -> None:
    found = json.loads(ask(app, "/explain.json?client=192.0.2.9&upstream=green").body)

    assert [item["client"] for item in found["exchanges"]] == ["192.0.2.9"]


def test_an_unknown_parameter_is_refused(app: AdminApp) -> None:
    answer = ask(app, "/explain.json?upstreams=a")

    assert answer.status == 400
    assert answer.text == "only the parameters client, explained, order, upstream are known\n"


@pytest.mark.parametrize(
    ("body", "kind", "asking"),
    [
        ("one_in=10", FORM, Asking(one_in=10)),
        ("one_in=0", FORM, Asking(one_in=0)),
        (f"one_in={MOST_ONE_IN}", FORM, Asking(one_in=MOST_ONE_IN)),
        ("next_from=2001:DB8::0:1", FORM, Asking(next_from="2001:db8::1")),
        ("next_from=", FORM, Asking(next_from="")),
        ("one_in=5&next_from=192.0.2.1", FORM, Asking(5, "192.0.2.1")),
        ('{"one_in": 3}', JSON, Asking(one_in=3)),
        ('{"next_from": "192.0.2.1"}', JSON, Asking(next_from="192.0.2.1")),
    ],
)
def test_orders_are_taken(
    app: AdminApp, source: FakeSource, body: str, kind: str, asking: Asking
) -> None:
    answer = order(app, body, AUTHORIZED, kind)

    assert (answer.status, source.asked) == (200, [asking])
    assert answer.text == f"done: explaining {asking}\n"


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        ("", FORM, "the body must set one_in or next_from"),
        ("one_in", FORM, "the form is malformed"),
        ("{}", JSON, "the body must set one_in or next_from"),
        ("one_in=", FORM, "one_in must be an integer from 0 to 1000000"),
        ("one_in=-1", FORM, "one_in must be an integer from 0 to 1000000"),
        ("one_in=1000001", FORM, "one_in must be an integer from 0 to 1000000"),
        ("one_in=99999999999", FORM, "one_in must be an integer from 0 to 1000000"),
        ("one_in=1.5", FORM, "one_in must be an integer from 0 to 1000000"),
        ('{"one_in": true}', JSON, "one_in must be an integer from 0 to 1000000"),
        ('{"one_in": null}', JSON, "one_in must be an integer from 0 to 1000000"),
        ("next_from=here", FORM, "next_from must be an IP address, or empty to wait for nobody"),
        (
            "next_from=fe80::1%25%0d%0aINFO",  # it is logged
            FORM,
            "next_from must be an IP address, or empty to wait for nobody",
        ),
        ('{"next_from": 1}', JSON, "next_from must be an IP address, or empty to wait for nobody"),
        ("one_in=1&one_in=2", FORM, "a key is given twice"),
        ("state=drain", FORM, "only the keys one_in and next_from are known"),
        ("one_in=1", "Content-Type: text/plain", "the body must be a form or application/json"),
    ],
)
def test_other_orders_are_refused(
    app: AdminApp, source: FakeSource, body: str, kind: str, reason: str
) -> None:
    answer = order(app, body, AUTHORIZED, kind)

    assert (answer.status, answer.text) == (400, f"{reason}\n")
    assert source.asked == []


def test_an_order_needs_the_token(app: AdminApp, source: FakeSource) -> None:
    nobody = order(app, "one_in=1", FORM)
    stranger = order(app, "one_in=1", "Authorization: Bearer guessed", FORM)
    read_only = order(AdminApp(source, token=""), "one_in=1")

    assert [answer.status for answer in (nobody, stranger, read_only)] == [401, 401, 403]
    assert source.asked == []


def test_an_order_from_a_foreign_page_is_refused(app: AdminApp, source: FakeSource) -> None:
    answer = order(app, "one_in=1", AUTHORIZED, FORM, "Origin: http://evil.example")

    assert (answer.status, source.asked) == (403, [])


def test_an_order_is_a_post(app: AdminApp) -> None:
    answer = ask(app, "/-/explain", AUTHORIZED)

    assert (answer.status, answer.fields["Allow"]) == (405, "POST")


def test_processes_that_do_not_follow_are_told(app: AdminApp, source: FakeSource) -> None:
    source.failure = CommandError(503, "1 of 2 processes do not answer; they will follow later")

    answer = order(app, "one_in=1")

    assert (answer.status, answer.fields["Retry-After"]) == (503, "5")
    assert "they will follow later" in answer.text


# Filters

A, B = "192.0.2.7", "192.0.2.8"


def build_line(number: int, *, is_explained: bool = False, **more: object) -> Timeline:
    record = build_record(ended_at=100.1 + number, choices=[CHOICE] if is_explained else None)
    for name, value in more.items():
        setattr(record, name, value)
    return build_timeline(record, float(number))


def test_filters_select() -> None:
    lines = [
        build_line(3, address=A, upstream="red"),
        build_line(2, address=B, upstream="green", is_explained=True),
        build_line(1, address=B, upstream="green", failures=[("red", "connect")], began_at=90.0),
    ]

    def found(**query: str) -> list[float]:
        return [item["time"] for item in select(lines, query)]

    assert found() == [3, 2, 1]
    assert found(client=B) == [2, 1]
    assert found(upstream="red") == [3, 1], "also who failed before a retry"
    assert found(explained="1") == [2]
    assert found(order="slowest")[0] == 1
    assert found(client=B, upstream="red") == [1]
    assert found(client="nobody") == []


@pytest.mark.parametrize("query", [{"clients": A}, {"order": "fastest"}, {"explained": "0"}])
def test_parameters_that_are_not_known_are_refused(query: dict[str, str]) -> None:
    with pytest.raises(CommandError, match="only") as caught:
        select([], query)

    assert caught.value.status == 400
