"""The configuration file as its writer sees it: TOML in; a `Config`, or sentences, out.

How the reader works in general is in `test_schema.py`; here are the real keys, the file around
them, and what is said about a change from one configuration to the next.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_pkg import config, wording
from atlas_pkg.config import Config, UpstreamConfig, live_changes, restart_changes
from atlas_pkg.errors import ConfigError

NAME = Path("atlas.toml")


def parse(text: str, environ: dict[str, str] | None = None) -> Config:
    return config.parse_config(text.encode(), NAME, environ or {})


def problems(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(ConfigError) as caught:
        config.parse_config(data, NAME, {})
    return list(caught.value.problems)


UPSTREAM = '[[upstreams]]\nname = "a"\naddress = "10.0.0.1"\nport = 3000\n'


# Files that load

FIRST_ATLAS_LOAD_BALANCING = """
[listen]
address = "0.0.0.0"
port = 8080

[[upstreams]]
name = "backend1"
address = "127.0.0.1"
port = 3001
weight = 3

[[upstreams]]
name = "backend2"
address = "127.0.0.1"
port = 3002
weight = 2

[routing]
strategy = "weighted_round_robin"

# appended with >> while Atlas runs
[[upstreams]]
name = "backend3"
address = "127.0.0.1"
port = 3003
"""

FIRST_ATLAS_REVERSE_PROXY = """
[listen]
address = "[::1]"
port = 80
mode = "http"
workers = 1

[[upstreams]]
name = "app"
address = "localhost"
port = 3000
weight = 1

# [upstreams.health_check]
# interval_secs = 10
# timeout_secs = 5
# path = "/health"
"""


def test_a_file_of_the_first_atlas_with_an_appended_upstream_loads() -> None:
    loaded = parse(FIRST_ATLAS_LOAD_BALANCING)

    assert loaded.listen == config.Listen(address="0.0.0.0", port=8080)
    assert loaded.routing.strategy == "weighted_round_robin"
    assert loaded.upstreams == (
        UpstreamConfig("backend1", "127.0.0.1", 3001, weight=3),
        UpstreamConfig("backend2", "127.0.0.1", 3002, weight=2),
        UpstreamConfig("backend3", "127.0.0.1", 3003, weight=1),
    )


def test_a_file_of_the_first_atlas_in_front_of_one_app_loads() -> None:
    loaded = parse(FIRST_ATLAS_REVERSE_PROXY)

    assert loaded.listen.address == "::1"
    assert loaded.upstreams == (UpstreamConfig("app", "localhost", 3000),)


@pytest.mark.parametrize("strategy", ["round_robin", "weighted_round_robin", "random"])
def test_a_file_without_upstreams_loads(strategy: str) -> None:
    loaded = parse(f'[listen]\naddress = "::"\nport = 0\n[routing]\nstrategy = "{strategy}"')

    assert loaded.upstreams == ()
    assert loaded.routing.strategy == strategy


def test_an_empty_table_is_all_defaults() -> None:
    assert parse("[listen]") == Config(NAME)


def test_every_default_may_be_written_out() -> None:
    text = """
upstreams = []
[listen]
address = "0.0.0.0"
port = 8080
mode = "http"
workers = 1
pin = true
max_connections = 4096
max_threads = 256
root = "/var/www/html"
[routing]
strategy = "round_robin"
hash_on = "client_ip"
retries = 0
[timeouts]
tls_handshake = 10.0
client_head = 10.0
client_body = 30.0
client_write = 60.0
client_idle = 75.0
connect = 5.0
upstream_head = 60.0
upstream_body = 60.0
upstream_idle = 60.0
tunnel_idle = 3600.0
queue = 5.0
drain = 30.0
pre_drain = 0.0
[limits]
request_line = 8192
head = 32768
fields = 100
body = 0
requests_per_connection = 1000
upstream_head = 65536
[pool]
idle = 1
max_age = 3600.0
max_requests = 1000
[forwarding]
x_forwarded = true
via = true
trusted_proxies = []
request_id = false
set_request_fields = {}
remove_request_fields = []
set_response_fields = {}
remove_response_fields = []
[log]
level = "info"
access = "off"
format = "combined"
"""
    assert parse(text) == Config(NAME)


def test_every_default_of_an_upstream_may_be_written_out() -> None:
    text = UPSTREAM + (
        "weight = 1\nmax_connections = 0\nbackup = false\nproxy_protocol = 0\nresolve = 0.0\n"
    )

    assert parse(text).upstreams == (UpstreamConfig("a", "10.0.0.1", 3000),)


def test_forwarding_is_read_into_tuples_and_networks() -> None:
    text = """
[forwarding]
trusted_proxies = ["10.0.0.0/8", "192.168.1.1", "fd00::/8", "::1"]
set_request_fields = { X-Env = "live", Authorization = "Bearer ${TOKEN}", Host = "app" }
remove_response_fields = ["Server", "X-Powered-By"]
"""
    loaded = parse(text, {"TOKEN": "s3cret"}).forwarding

    assert loaded.trusted_proxies == (
        ip_network("10.0.0.0/8"),
        ip_network("192.168.1.1/32"),
        ip_network("fd00::/8"),
        ip_network("::1/128"),
    )
    assert loaded.set_request_fields == (
        ("X-Env", "live"),
        ("Authorization", "Bearer s3cret"),
        ("Host", "app"),
    )
    assert loaded.remove_response_fields == ("Server", "X-Powered-By")


def test_a_byte_order_mark_and_windows_line_ends_are_accepted() -> None:
    data = b"\xef\xbb\xbf[listen]\r\nport = 81\r\n"

    assert config.parse_config(data, NAME, {}).listen.port == 81


def test_the_process_environment_is_used_when_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ATLAS_TEST_LEVEL", "debug")

    loaded = config.parse_config(b'[log]\nlevel = "${ATLAS_TEST_LEVEL}"', NAME)

    assert loaded.log.level == "debug"


def test_equal_files_are_equal_configurations() -> None:
    text = UPSTREAM + "[timeouts]\nconnect = 3"
    rewritten = "# moved\n[timeouts]\nconnect = 3.0\n" + UPSTREAM

    assert parse(text) == parse(rewritten)
    assert hash(parse(text)) == hash(parse(rewritten))
    assert parse(text) != config.parse_config(text.encode(), Path("other.toml"), {})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("off", None),
        ("-", "-"),
        ("access.log", "/etc/atlas/access.log"),
        ("../log/atlas", "/etc/atlas/../log/atlas"),
        ("./off", "/etc/atlas/off"),
        ("/var/log/atlas/access.log", "/var/log/atlas/access.log"),
    ],
)
def test_the_access_log_is_found_from_the_configuration_file(
    written: str, meant: str | None
) -> None:
    data = f'[log]\naccess = "{written}"'.encode()

    assert config.parse_config(data, Path("/etc/atlas/atlas.toml"), {}).access_log == meant


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Config(NAME).listen.port = 1  # type: ignore[misc]


# Files that do not


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        # listen
        ("[listen]\nport = 65536", "listen.port: must be 0 to 65535, got 65536"),
        ("[listen]\nport = -1", "listen.port: must be 0 to 65535, got -1"),
        ('[listen]\nport = "80"', 'listen.port: must be an integer (0 to 65535), got "80"'),
        (
            '[listen]\naddress = "0.0.0.0:80"',
            'listen.address: must be an IPv4 or IPv6 address or a host name, got "0.0.0.0:80"',
        ),
        ('[listen]\nmode = "udp"', 'listen.mode: must be "http", got "udp"'),
        ("[listen]\nworkers = -1", "listen.workers: must be 0 to 1024, got -1"),
        ("[listen]\npin = 1", "listen.pin: must be true or false, got 1"),
        ("[listen]\nmax_threads = 0", "listen.max_threads: must be 1 to 10000, got 0"),
        ("[[listen]]\nport = 1", "listen: must be a table, [listen], got an array"),
        ("listen = 8080", "listen: must be a table, [listen], got 8080"),
        # upstreams
        (UPSTREAM + "weight = 1001", "upstreams[0].weight: must be 0 to 1000, got 1001"),
        (
            UPSTREAM + "weight = true",
            "upstreams[0].weight: must be an integer (0 to 1000), got true",
        ),
        (
            UPSTREAM + "weight = 1.5",
            "upstreams[0].weight: must be an integer (0 to 1000), got 1.5",
        ),
        (
            UPSTREAM + "weigth = 2",
            'upstreams[0].weigth: unknown key, did you mean "weight"?',
        ),
        (
            UPSTREAM + '[[upstreams]]\nname = "b"\naddress = "b"\nport = 0',
            "upstreams[1].port: must be 1 to 65535, got 0",
        ),
        (UPSTREAM + UPSTREAM, 'upstreams[1].name: must be unique, got "a" as in upstreams[0]'),
        (
            '[[upstreams]]\nname = ""\naddress = "a"\nport = 1',
            'upstreams[0].name: must be printable text, not empty, got ""',
        ),
        (
            '[[upstreams]]\nname = "a\\tb"\naddress = "a"\nport = 1',
            'upstreams[0].name: must be printable text, not empty, got "a\\tb"',
        ),
        (
            '[[upstreams]]\nname = "a"\nport = 1',
            "upstreams[0].address: missing, must be an IPv4 or IPv6 address or a host name",
        ),
        (
            '[upstreams]\nname = "a"',
            "upstreams: must be an array of tables, [[upstreams]], got a table",
        ),
        ('upstreams = ["10.0.0.1"]', 'upstreams[0]: must be a table, got "10.0.0.1"'),
        ('[[upstream]]\nname = "a"', 'upstream: unknown key, did you mean "upstreams"?'),
        # routing
        (
            '[routing]\nstrategy = "roundrobin"',
            (
                'routing.strategy: must be "round_robin", "weighted_round_robin", "random", '
                '"least_connections", "power_of_two", "ip_hash" or "consistent_hash", '
                'got "roundrobin"'
            ),
        ),
        (
            '[routing]\nhash_on = "header:"',
            (
                'routing.hash_on: must be "client_ip", "path", "header:NAME" or "cookie:NAME", '
                'got "header:"'
            ),
        ),
        # timeouts
        ("[timeouts]\nconnect = 0", "timeouts.connect: must be 0.001 to 1000000000, got 0"),
        ("[timeouts]\ndrain = -0.5", "timeouts.drain: must be 0 to 1000000000, got -0.5"),
        (
            "[timeouts]\nclient_idle = inf",
            "timeouts.client_idle: must be a number (0.001 to 1000000000), got inf",
        ),
        (
            "[timeouts]\nclient_idle = nan",
            "timeouts.client_idle: must be a number (0.001 to 1000000000), got nan",
        ),
        (
            '[timeouts]\nconnect = "5s"',
            'timeouts.connect: must be a number (0.001 to 1000000000), got "5s"',
        ),
        (
            "[timeouts]\nconnect = true",
            "timeouts.connect: must be a number (0.001 to 1000000000), got true",
        ),
        # limits, pool
        ("[limits]\nbody = -1", "limits.body: must be 0 to 9223372036854775807, got -1"),
        ("[limits]\nhead = 0", "limits.head: must be 1 to 16777216, got 0"),
        ("[pool]\nidle = -1", "pool.idle: must be 0 to 1000, got -1"),
        ("[pool]\nmax_requests = 0", "pool.max_requests: must be 1 to 1000000000, got 0"),
        # forwarding
        (
            '[forwarding]\ntrusted_proxies = ["10.0.0.1/8"]',
            (
                "forwarding.trusted_proxies[0]: must be an IP address or a network like "
                '"10.0.0.0/8" with nothing after its prefix, got "10.0.0.1/8"'
            ),
        ),
        (
            '[forwarding]\nset_request_fields = { "X Y" = "1" }',
            'forwarding.set_request_fields."X Y": must be a field name, got "X Y"',
        ),
        (
            '[forwarding]\nset_response_fields = { Content-Length = "1" }',
            (
                "forwarding.set_response_fields.Content-Length: must be a field that neither "
                'frames a message nor belongs to one connection, got "Content-Length"'
            ),
        ),
        (
            '[forwarding]\nremove_request_fields = ["HOST"]',
            (
                "forwarding.remove_request_fields[0]: must be a field other than Host and those "
                'that frame a message or belong to one connection, got "HOST"'
            ),
        ),
        # A field's value may be a password, so it is not repeated.
        (
            '[forwarding]\nset_request_fields = { A = "x\\r\\nB: y" }',
            (
                "forwarding.set_request_fields.A: must be printable US-ASCII without spaces at its "
                "ends"
            ),
        ),
        (
            '[forwarding]\nset_request_fields = { A = "${TOKEN}" }',
            "forwarding.set_request_fields.A: not set in the environment: TOKEN",
        ),
        (
            '[forwarding]\nset_request_fields = { A = "1", a = "2" }',
            (
                "forwarding.set_request_fields: must be a table that names each field once, in "
                "whatever case"
            ),
        ),
        # log and the whole
        (
            '[log]\nlevel = "trace"',
            'log.level: must be "debug", "info", "warning" or "error", got "trace"',
        ),
        (
            '[log]\naccess = ""',
            'log.access: must be printable text, not empty, got ""',
        ),
        ('[log]\nformat = "text"', 'log.format: must be "combined" or "json", got "text"'),
        ("port = 8080", "port: unknown key, "),
        ("[timeout]\nconnect = 1", 'timeout: unknown key, did you mean "timeouts"?'),
    ],
)
def test_a_mistake_is_one_sentence(text: str, sentence: str) -> None:
    (problem,) = problems(text)

    if sentence.endswith(", "):
        assert problem.startswith(f"atlas.toml: {sentence}")
    else:
        assert problem == f"atlas.toml: {sentence}"


@pytest.mark.parametrize(
    "field",
    ["Connection", "keep-alive", "Transfer-Encoding", "CONTENT-LENGTH", "Upgrade", "TE", "Trailer"],
)
@pytest.mark.parametrize("key", ["request", "response"])
def test_framing_fields_are_neither_set_nor_removed(field: str, key: str) -> None:
    assert len(problems(f'[forwarding]\nset_{key}_fields = {{ {field} = "x" }}')) == 1
    assert len(problems(f'[forwarding]\nremove_{key}_fields = ["{field}"]')) == 1


def test_all_mistakes_are_told_at_once() -> None:
    text = "[listen]\nport = 99999\nprot = 1\n" + UPSTREAM + "weight = -1\n[nothing]\n"

    told = problems(text)

    assert [problem.split(":")[1].strip() for problem in told] == [
        "listen.port",
        "listen.prot",
        "upstreams[0].weight",
        "nothing",
    ]


# What is not yet available


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[listen]\nmode = "tcp"', 'listen.mode: "tcp" is not yet available'),
        ('[listen]\nmode = "static"', 'listen.mode: "static" is not yet available'),
        (
            '[listen]\nroot = "/srv"',
            'listen.root: "/srv" is not yet available, leave it at "/var/www/html"',
        ),
        ('[listen.tls]\ncert = "c"\nkey = "k"', "listen.tls: not yet available"),
        ('[listen.proxy_protocol]\nfrom = ["::1"]', "listen.proxy_protocol: not yet available"),
        (
            UPSTREAM + "proxy_protocol = 2",
            "upstreams[0].proxy_protocol: 2 is not yet available, leave it at 0",
        ),
        (
            UPSTREAM + "resolve = 5",
            "upstreams[0].resolve: 5 is not yet available, leave it at 0.0",
        ),
        (UPSTREAM + "[upstreams.tls]", "upstreams[0].tls: not yet available"),
        (
            "[timeouts]\ntls_handshake = 6",
            "timeouts.tls_handshake: 6 is not yet available, leave it at 10.0",
        ),
        ("[static]", "static: not yet available"),
    ],
)
def test_what_is_not_yet_available_says_so(text: str, sentence: str) -> None:
    assert problems(text) == [f"atlas.toml: {sentence}"]


# Files that are no configuration at all


def load_problem(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load_config(path, {})
    (problem,) = caught.value.problems
    return problem


def test_a_file_is_read_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text(UPSTREAM)

    loaded = config.load_config(path)

    assert loaded.path == path
    assert loaded.upstreams[0].name == "a"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing.toml"

    assert load_problem(path) == f"{path}: no such file"


def test_a_directory_is_named(tmp_path: Path) -> None:
    assert load_problem(tmp_path) == f"{tmp_path}: is a directory, not a file"


def test_a_path_through_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "atlas.toml"

    assert load_problem(path) == f"{path}: cannot be read: Not a directory"


def test_a_file_without_read_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text(UPSTREAM)
    path.chmod(0)
    if os.access(path, os.R_OK):  # The superuser may read everything.

        def refuse(_: Path) -> bytes:
            raise PermissionError

        monkeypatch.setattr(Path, "read_bytes", refuse)

    assert load_problem(path) == f"{path}: no permission to read it"


@pytest.mark.parametrize("data", [b"", b" \n\t\n", b"# nothing\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(data: bytes) -> None:
    assert problems(data) == ["atlas.toml: is empty (blanks and comments do not count)"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"[log]\nlevel = '\xe9'", "atlas.toml:2: not UTF-8 (byte 0xe9)"),
        (b"\xff\xfel\x00", "atlas.toml:1: not UTF-8 (byte 0xff)"),
        (
            b"[listen\nport = 1",
            "atlas.toml:1: not TOML: Expected ']' at the end of a table declaration at column 8",
        ),
        (b"[listen]\nport = ", "atlas.toml:2: not TOML: Invalid value at the end of the file"),
        (b"[listen]\n\nport = 08", "atlas.toml:3: not TOML: "),
        (b"a = 1\na = 2\n", "atlas.toml:2: not TOML: Cannot overwrite a value at column"),
        (b"[log]\nlevel = 'in", "atlas.toml:2: not TOML: "),
        (b"x = " + b"9" * 5000, "atlas.toml: not readable as TOML: Exceeds the limit"),
        (b"x = " + b"[" * 5000, "atlas.toml: not readable as TOML: "),
    ],
)
def test_what_is_no_toml_tells_the_line(data: bytes, sentence: str) -> None:
    (problem,) = problems(data)

    assert problem.startswith(sentence)


# From one configuration to the next


def test_live_and_restart_changes_are_told_apart() -> None:
    old = parse(UPSTREAM + "[listen]\nport = 1")
    new = parse(
        '[listen]\nport = 2\naddress = "::1"\npin = false\nmax_connections = 9\n'
        '[routing]\nstrategy = "random"\n' + UPSTREAM
    )

    assert restart_changes(old, new) == ("listen.address", "listen.port", "listen.pin")
    assert live_changes(old, new) == (
        "listen.max_connections: 4096 -> 9",
        "routing.strategy: round_robin -> random",
    )


def test_changed_upstreams_are_one_phrase() -> None:
    old = Config(NAME, upstreams=(UpstreamConfig("a", "h", 1), UpstreamConfig("b", "h", 2)))
    new = Config(
        NAME, upstreams=(UpstreamConfig("b", "h", 2, weight=3), UpstreamConfig("c", "h", 3))
    )

    assert live_changes(old, new) == ("upstreams: added c, removed a, changed b (weight 1 -> 3)",)
    assert live_changes(old, replace(old, upstreams=old.upstreams[::-1])) == (
        "upstreams: reordered",
    )


def with_checks(interval: int, path: str = "", common: str = "/") -> Config:
    """Two upstreams under common checks, the second perhaps with a path of its own."""
    own = f'[upstreams.health_check]\npath = "{path}"\n' if path else ""
    checks = f'[health_check]\ninterval = {interval}\npath = "{common}"\n'
    return parse(checks + UPSTREAM + UPSTREAM.replace('"a"', '"b"') + own)


def test_changed_health_checks_are_told_once() -> None:
    told = "health_check.interval: 5.0 -> 10.0"

    assert live_changes(with_checks(5), with_checks(10)) == (told,)
    assert live_changes(with_checks(5, "/b"), with_checks(10, "/b")) == (told,)
    assert live_changes(with_checks(5, "/b"), with_checks(10, "/c")) == (
        "upstreams: changed b (health_check.path /b -> /c)",
        told,
    )
    assert live_changes(with_checks(5), with_checks(5, "/b")) == (
        "upstreams: changed b (health_check.path / -> /b)",
    )
    assert live_changes(parse(UPSTREAM), parse("[health_check]\n" + UPSTREAM)) == (
        "health_check: added",
    )


def test_equal_configurations_have_no_changes() -> None:
    old, new = parse(UPSTREAM), parse(UPSTREAM)

    assert live_changes(old, new) == restart_changes(old, new) == ()
    assert live_changes(old, replace(new, path=Path("moved.toml"))) == ()


def test_secrets_are_in_no_change_and_no_summary() -> None:
    old = parse(UPSTREAM)
    new = parse('[forwarding]\nset_request_fields = { Authorization = "hush" }\n' + UPSTREAM)

    told = "\n".join((*live_changes(old, new), config.summary(new)))

    assert "hush" not in told
    assert live_changes(old, new) == ("forwarding.set_request_fields: changed",)


def test_the_summary_fits_one_screen() -> None:
    text = "[timeouts]\nconnect = 3\n[listen]\naddress = '::1'\nport = 80\n" + UPSTREAM

    assert config.summary(parse(text)) == (
        "atlas.toml: valid\n"
        "listen: [::1]:80, mode http\n"
        "upstreams: 1, round_robin\n"
        "  a  10.0.0.1:3000  weight 1\n"
        "not at their defaults:\n"
        "  timeouts.connect = 3.0"
    )


def test_the_summary_of_very_many_upstreams_is_cut() -> None:
    many = tuple(UpstreamConfig(f"u{number}", "h", 1) for number in range(500))

    lines = config.summary(Config(NAME, upstreams=many)).splitlines()

    assert lines[2] == "upstreams: 500, round_robin"
    assert lines[-1] == "  and 490 more"
    assert len(lines) == 14


def test_the_summary_says_what_no_upstreams_mean() -> None:
    assert "upstreams: none, so every answer is 503" in config.summary(Config(NAME))


# The reference


def test_the_reference_lists_every_key_once() -> None:
    names = [doc.name for doc in config.reference()]

    assert len(names) == len(set(names))
    assert {"listen.port", "upstreams.weight", "forwarding.trusted_proxies"} <= set(names)
    assert "path" not in names


def test_the_reference_tells_which_keys_need_a_restart() -> None:
    restart = [doc.name for doc in config.reference() if not doc.is_live]

    assert restart == [
        "listen.address",
        "listen.port",
        "listen.mode",
        "listen.workers",
        "listen.pin",
        "listen.max_threads",
        "admin.address",
        "admin.port",
        "admin.token",
    ]


def test_the_reference_is_a_markdown_table() -> None:
    lines = wording.markdown_table(config.reference()).splitlines()

    assert len(lines) == len(config.reference()) + 2
    assert (
        "| `listen.port` | `8080` | an integer (0 to 65535) | restart "
        "| 0 = any free port; the log says which |" in lines
    )


def test_every_mark_of_what_is_not_yet_available_is_still_needed() -> None:
    known = {doc.name for doc in config.reference()}
    tables = {name.rpartition(".")[0] for name in known}

    for mark in config.NOT_YET:
        key, _, value = mark.partition(" = ")
        parent = key.rpartition(".")[0]
        assert (key in known) if value else (not parent or parent in tables), mark


# Anything at all

_SCALARS = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates(), st.times()
)
_KEYS = st.one_of(
    st.text(max_size=8),
    st.sampled_from([part for doc in config.reference() for part in doc.name.split(".")]),
    st.sampled_from(sorted({mark.split(".")[0] for mark in config.NOT_YET})),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_KEYS, inner, max_size=4)),
    max_leaves=12,
)


def outcome(build: Callable[[], Config]) -> tuple[str, ...]:
    """The problems that `build` ends with, or the summary of what it builds."""
    try:
        return (config.summary(build()),)
    except ConfigError as error:
        return error.problems


@given(st.dictionaries(_KEYS, _VALUES, max_size=6))
def test_no_document_raises_anything_but_a_config_error(document: dict[str, object]) -> None:
    told = outcome(lambda: config.build_config(document, NAME, {}))

    assert told
    assert all(sentence.startswith("atlas.toml: ") for sentence in told)


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_a_config_error(data: bytes) -> None:
    told = outcome(lambda: config.parse_config(data, NAME, {}))

    assert told
    assert all(sentence.startswith("atlas.toml:") for sentence in told)
