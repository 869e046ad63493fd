"""The generic reader: what a dataclass says about a table, and what a file may say to it.

The tables here are toys, so that each test shows the whole description it works with. What the
real keys allow is in `test_mistakes_are_told.py` and beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

import pytest

from atlas_pkg.config import diff, rules
from atlas_pkg.config.loader import Reader
from atlas_pkg.config.schema import Alias, Mark
from tests.config.reference import entries


@dataclass(frozen=True, slots=True)
class Probe:
    interval: Annotated[float, rules.between(0.5, 60), Alias("interval_secs"), "seconds"] = 10.0
    path: str = "/"


@dataclass(frozen=True, slots=True)
class Room:
    name: Annotated[str, Mark.UNIQUE]
    seats: Annotated[int, rules.between(1, 9)] = 2
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class Door:
    host: Annotated[str, rules.HOST] = "localhost"


@dataclass(frozen=True, slots=True)
class Way:
    from_: str = ""
    lit: bool = False

    def __str__(self) -> str:
        return f"from {self.from_}"


@dataclass(frozen=True, slots=True)
class House:
    path: Annotated[Path, Mark.GIVEN] = Path("house.toml")
    number: Annotated[int, Mark.RESTART, "on the door"] = 1
    is_open: bool = True
    height: float = 3.5
    colour: Annotated[str, rules.one_of("red", "blue")] = "red"
    code: Annotated[str, rules.PRINTABLE, Mark.SECRET] = "1234"
    nets: tuple[rules.NetworkText, ...] = ()
    labels: Annotated[tuple[tuple[rules.SettableName, str], ...], rules.DISTINCT_NAMES] = ()
    rooms: tuple[Room, ...] = ()
    ways: tuple[Way, ...] = ()
    probe: Probe = Probe()
    cellar: Probe | None = None
    attic: Annotated[Probe | None, Mark.RESTART] = None
    lodgers: tuple[tuple[str, Door], ...] = ()


def read(
    data: dict[str, object],
    *,
    environ: dict[str, str] | None = None,
) -> House:
    reader = Reader(House, environ or {})
    house = reader.read(data)
    assert house is not None, reader.problems
    return house


def problems(
    data: dict[str, object],
    *,
    table: type = House,
    environ: dict[str, str] | None = None,
) -> list[str]:
    reader = Reader(table, environ or {})
    assert reader.read(data) is None
    return [f"{place}: {sentence}" for place, sentence in reader.problems]


def test_an_empty_table_is_all_defaults() -> None:
    assert read({}) == House()


def test_every_type_is_read() -> None:
    data: dict[str, object] = {
        "number": 7,
        "is_open": False,
        "height": 2,
        "colour": "blue",
        "nets": ["10.0.0.0/8", "::1"],
        "labels": {"A": "1", "B": "2"},
        "rooms": [{"name": "hall", "probe": {"path": "/x"}}, {"name": "bath", "seats": 1}],
        "probe": {"interval": 1.5},
        "cellar": {},
        "ways": [{"from": "north"}, {"from": "north", "lit": True}],
        "lodgers": {"anna": {"host": "::1"}, "bert": {}},
    }

    house = read(data)

    assert house == House(
        number=7,
        is_open=False,
        height=2.0,
        colour="blue",
        nets=(ip_network("10.0.0.0/8"), ip_network("::1/128")),
        labels=(("A", "1"), ("B", "2")),
        rooms=(Room("hall", probe=Probe(path="/x")), Room("bath", seats=1)),
        probe=Probe(interval=1.5),
        cellar=Probe(),
        ways=(Way("north"), Way("north", lit=True)),
        lodgers=(("anna", Door("::1")), ("bert", Door())),
    )
    assert type(house.height) is float


def test_given_fields_come_from_the_caller_only() -> None:
    house = Reader(House, {}).read({}, given={"path": Path("x")})

    assert house is not None
    assert house.path == Path("x")
    assert problems({"path": "x"})[0].startswith("path: unknown key")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"number": True}, "number: must be an integer, got true"),
        ({"number": 1.0}, "number: must be an integer, got 1.0"),
        ({"number": "1"}, 'number: must be an integer, got "1"'),
        ({"number": date(2020, 1, 2)}, "number: must be an integer, got 2020-01-02"),
        ({"is_open": 1}, "is_open: must be true or false, got 1"),
        ({"is_open": "true"}, 'is_open: must be true or false, got "true"'),
        ({"height": True}, "height: must be a number, got true"),
        ({"height": "3"}, 'height: must be a number, got "3"'),
        ({"height": float("inf")}, "height: must be a number, got inf"),
        ({"height": float("nan")}, "height: must be a number, got nan"),
        ({"height": 10**400}, f"height: must be a number, got 1{'0' * 56}..."),
        ({"height": 16**5000}, "height: must be a number, got a very large number"),
        ({"colour": "green"}, 'colour: must be "red" or "blue", got "green"'),
        ({"colour": ["red"]}, 'colour: must be "red" or "blue", got an array'),
        ({"colour": "a\nb\u202e"}, 'colour: must be "red" or "blue", got "a\\nb\\u202e"'),
        ({"nets": "::1"}, 'nets: must be an array, got "::1"'),
        ({"labels": []}, "labels: must be a table, got an empty array"),
        ({"labels": {"A": 1}}, "labels.A: must be a string, got 1"),
        ({"labels": {"a b": "x"}}, 'labels."a b": must be a field name, got "a b"'),
        (
            {"labels": {"A": "x", "a": "y"}},
            "labels: must be a table that names each field once, in whatever case, got a table",
        ),
        ({"probe": 5}, "probe: must be a table, [probe], got 5"),
        ({"probe": [{}]}, "probe: must be a table: write [probe], in single brackets"),
        ({"probe": {"interval": 0.1}}, "probe.interval: must be 0.5 to 60, got 0.1"),
        (
            {"probe": {"interval": "1"}},
            'probe.interval: must be a number (0.5 to 60), got "1"',
        ),
        (
            {"rooms": {}},
            (
                "rooms: must be an array of tables: begin each of them with [[rooms]], in double "
                "brackets"
            ),
        ),
        ({"rooms": [3]}, "rooms[0]: must be a table, got 3"),
        ({"rooms": [{}]}, "rooms[0].name: missing, must be a string"),
        (
            {"rooms": [{"name": "a"}, {"name": "b"}, {"name": "a"}]},
            'rooms[2].name: must be unique, got "a" as in rooms[0]',
        ),
        (
            {"rooms": [{"name": "a", "probe": {"interval": 99}}]},
            'rooms[0].probe.interval: must be 0.5 to 60, got 99 (name = "a")',
        ),
    ],
)
def test_a_wrong_value_is_one_sentence(data: dict[str, object], sentence: str) -> None:
    assert problems(data) == [sentence]


def test_all_problems_are_told_in_the_order_of_the_file() -> None:
    data: dict[str, object] = {
        "rooms": [{"name": "a", "seats": 0}, {"name": "a", "seat": 1}, 5],
        "height": "x",
        "nets": ["::1", "nonsense", 5],
        "number": "y",
    }

    network = 'must be an IP address or a network like "10.0.0.0/8" with nothing after its prefix'
    assert problems(data) == [
        'rooms[0].seats: must be 1 to 9, got 0 (name = "a")',
        'rooms[1].seat: unknown key, did you mean "seats"? (name = "a")',
        'rooms[1].name: must be unique, got "a" as in rooms[0]',
        "rooms[2]: must be a table, got 5",
        'height: must be a number, got "x"',
        f'nets[1]: {network}, got "nonsense"',
        f"nets[2]: {network}, got 5",
        'number: must be an integer, got "y"',
    ]


def test_a_secret_is_never_shown() -> None:
    assert problems({"code": "hush\n"}) == ["code: must be printable text, not empty"]
    assert problems({"code": 1234}) == ["code: must be printable text, not empty"]


# Unknown keys


def test_an_unknown_key_suggests_the_nearest() -> None:
    assert problems({"colur": 1}) == ['colur: unknown key, did you mean "colour"?']


def test_an_unknown_key_like_no_other_lists_the_known() -> None:
    sentence = "probe.zzz: unknown key, known here: interval, interval_secs, path"

    assert problems({"probe": {"zzz": 1}}) == [sentence]


def test_an_odd_unknown_key_is_quoted() -> None:
    sentence = 'probe."a b\\n": unknown key, known here: interval, interval_secs, path'

    assert problems({"probe": {"a b\n": 1}}) == [sentence]


def test_a_second_spelling_is_accepted() -> None:
    assert read({"probe": {"interval_secs": 5}}).probe == Probe(interval=5.0)


def test_both_spellings_at_once_are_refused() -> None:
    assert problems({"probe": {"interval_secs": 5, "interval": 6}}) == [
        'probe.interval_secs: is another name for "interval", which is there too'
    ]


# The environment


def test_variables_are_expanded_once() -> None:
    environ = {"USER": "ann", "CODE": "${USER}"}

    house = read({"code": "${USER}-$-${CODE}"}, environ=environ)

    assert house.code == "ann-$-${USER}"


def test_rules_see_the_expanded_value_and_messages_the_raw_one() -> None:
    assert read({"nets": ["${NET}"]}, environ={"NET": "::1"}).nets == (ip_network("::1/128"),)
    assert problems({"colour": "${C}"}, environ={"C": "hush"}) == [
        'colour: must be "red" or "blue", got "${C}"'
    ]


def test_an_unset_variable_is_named() -> None:
    assert problems({"code": "${B}${A}${B}"}) == ["code: not set in the environment: A, B"]


@pytest.mark.parametrize("text", ["${", "${}", "${a b}", "${1}", "x${A"])
def test_a_half_variable_is_refused(text: str) -> None:
    assert problems({"colour": text}, environ={"A": "red"}) == [
        "colour: must name a variable as in ${NAME} after each ${"
    ]


# Rules


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::", "::"),
        ("[::1]", "::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("localhost", "localhost"),
        ("web_1.my-net", "web_1.my-net"),
        ("example.com.", "example.com."),
        ("4ever.example", "4ever.example"),
    ],
)
def test_hosts_are_kept_as_sockets_want_them(text: str, kept: str) -> None:
    assert rules.parse_host(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        " ",
        "*",
        "a b",
        "a..b",
        "-a",
        "a-",
        "a\n",
        "10.0.0.256",
        "10.0.0",
        "010.0.0.1",
        "10.0.0.1:80",
        "localhost:80",
        "[10.0.0.1]",
        "[::1",
        "::1]",
        "[localhost]",
        "http://a",
        "münchen.example",
        "a" * 64,
        ".".join(["a" * 60] * 5),
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    (problem,) = problems({"host": text}, table=Door)

    assert problem.startswith("host: must be an IPv4 or IPv6 address or a host name, got ")


# Differences and the reference


def test_differences_name_place_values_and_restart() -> None:
    old = House(rooms=(Room("a"), Room("b"), Room("c")))
    new = House(
        number=2,
        code="secret",
        rooms=(Room("c", seats=3, probe=Probe()), Room("a"), Room("d")),
        probe=Probe(path="/a b"),
        attic=Probe(),
    )

    found = {
        change.place: (diff.describe(change), change.needs_restart)
        for change in diff.differences(old, new)
    }

    assert found == {
        "number": ("1 -> 2", True),
        "code": ("changed", False),
        "rooms": ("added d, removed b, changed c (seats 2 -> 3, probe added), reordered", False),
        "probe.path": ('/ -> "/a b"', False),
        "attic": ("added", True),
    }


def test_a_table_that_goes_is_said_to_be_removed() -> None:
    (change,) = diff.differences(House(cellar=Probe()), House())

    assert diff.describe(change) == "removed"


def test_tables_without_a_name_of_their_own_are_told_by_what_they_say() -> None:
    north, south = Way("north"), Way("south")

    told = [
        diff.describe(change)
        for old, new in (((north,), (south, north)), ((south, north), (north, south)))
        for change in diff.differences(House(ways=old), House(ways=new))
    ]
    (twice,) = diff.differences(House(ways=(north,)), House(ways=(north, north)))

    assert told == ["added from south", "reordered"]
    assert diff.describe(twice) == "changed"


def test_tables_of_free_names_are_told_apart_by_these() -> None:
    old = House(lodgers=(("anna", Door("a")), ("bert", Door())))
    new = House(lodgers=(("carl", Door()), ("anna", Door("b"))))

    found = {change.place: diff.describe(change) for change in diff.differences(old, new)}

    assert found == {
        "lodgers.anna.host": "a -> b",
        "lodgers.bert": "removed",
        "lodgers.carl": "added",
    }


def test_what_needs_a_restart_hands_it_down() -> None:
    old, new = House(attic=Probe()), House(attic=Probe(path="/x"))

    (change,) = diff.differences(old, new)

    assert (change.place, change.needs_restart) == ("attic.path", True)


def test_a_long_list_of_changes_is_cut() -> None:
    many = tuple(Room(str(number)) for number in range(14))

    (change,) = diff.differences(House(), House(rooms=many))

    assert diff.describe(change).endswith("added 8, added 9, and 4 more")


def test_the_reference_lists_inner_tables_key_by_key() -> None:
    found = [(entry.place, entry.default, entry.key.expected) for entry in entries(Room)]

    assert found == [
        ("name", "required", "a string"),
        ("seats", "2", "an integer (1 to 9)"),
        ("probe.interval", "10.0", "a number (0.5 to 60)"),
        ("probe.path", '"/"', "a string"),
    ]
