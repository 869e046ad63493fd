"""Whoever makes a mistake in the file reads where it is and what to write instead.

How the reader works in general is in `test_descriptions_are_obeyed.py`; here are the real keys.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atlas_pkg.config import loader
from atlas_pkg.config.rules import find_strategies
from atlas_pkg.config.schema import either
from atlas_pkg.errors import ConfigError
from tests.config.samples import UPSTREAM, mistakes, problems

TLS = '[listen.tls]\ncert = "cert.pem"\nkey = "key.pem"\n'
STRATEGIES = either([f'"{name}"' for name in find_strategies()])

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
            (
                'listen.address: must be an IPv4 or IPv6 address or a host name, got "0.0.0.0:80"; '
                'write "0.0.0.0" alone, and port = 80'
            ),
        ),
        ('[listen]\nmode = "udp"', 'listen.mode: must be "http", "tcp" or "static", got "udp"'),
        ("[listen]\nworkers = -1", "listen.workers: must be 0 to 1024, got -1"),
        ("[listen]\nlanes = 65", "listen.lanes: must be 0 to 64, got 65"),
        ("[listen]\nlanes = true", "listen.lanes: must be an integer (0 to 64), got true"),
        ("[timeouts]\nclient_gone = 0", "timeouts.client_gone: must be 0.001 to 1000000000, got 0"),
        ("[listen]\npin = 1", "listen.pin: must be true or false, got 1"),
        ("[listen]\nmax_threads = 0", "listen.max_threads: must be 1 to 10000, got 0"),
        (
            "[listen]\nhttp_redirect = 80",
            "listen.http_redirect: needs [listen.tls]: there is nowhere to send clients to",
        ),
        (
            f"[listen]\nport = 80\nhttp_redirect = 80\n{TLS}",
            "listen.http_redirect: must not be listen.port, got 80",
        ),
        (
            f'[listen]\nacme_folder = "acme"\n{TLS}',
            "listen.acme_folder: needs http_redirect, the port that serves it",
        ),
        (
            '[listen.tls]\ncert = "c"\nkey = ""',
            'listen.tls.key: must be a path, absolute or from the folder of this file, got ""',
        ),
        (
            f'{TLS}min_version = "1.1"',
            'listen.tls.min_version: must be "1.2" or "1.3", got "1.1"',
        ),
        (
            f'{TLS}[[listen.tls.hosts]]\nnames = ["a.*.test"]\ncert = "c"\nkey = "k"',
            (
                'listen.tls.hosts[0].names[0]: must be a host name, or "*." and one, in US-ASCII '
                '("xn--…" for others), got "a.*.test"'
            ),
        ),
        (
            TLS + 2 * '[[listen.tls.hosts]]\nnames = ["a.test"]\ncert = "c"\nkey = "k"\n',
            'listen.tls.hosts[1].names: "a.test" is there twice',
        ),
        ("[[listen]]\nport = 1", "listen: must be a table: write [listen], in single brackets"),
        ("listen = 8080", "listen: must be a table, [listen], got 8080"),
        # upstreams
        (
            UPSTREAM + "weight = 1001",
            'upstreams[0].weight: must be 0 to 1000, got 1001 (name = "a")',
        ),
        (
            UPSTREAM + "weight = true",
            'upstreams[0].weight: must be an integer (0 to 1000), got true (name = "a")',
        ),
        (
            UPSTREAM + "weight = 1.5",
            'upstreams[0].weight: must be an integer (0 to 1000), got 1.5 (name = "a")',
        ),
        (
            UPSTREAM + "weigth = 2",
            'upstreams[0].weigth: unknown key, did you mean "weight"? (name = "a")',
        ),
        (
            UPSTREAM + '[[upstreams]]\nname = "b"\naddress = "b"\nport = 0',
            'upstreams[1].port: must be 1 to 65535, got 0 (name = "b")',
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
            (
                "upstreams[0].address: missing, must be an IPv4 or IPv6 address, a host name, or a "
                'socket file like "unix:run/app.sock" (name = "a")'
            ),
        ),
        (
            '[[upstreams]]\nname = "a"\naddress = "a"',
            'upstreams[0].port: missing, must be an integer (1 to 65535) (name = "a")',
        ),
        (
            '[[upstreams]]\nname = "a"\naddress = "unix:a.sock"\nport = 80',
            (
                "upstreams[0].port: must be absent, since a socket file has none, got 80 "
                '(name = "a")'
            ),
        ),
        (
            '[[upstreams]]\nname = "a"\naddress = "unix:"',
            (
                "upstreams[0].address: must be an IPv4 or IPv6 address, a host name, or a "
                'socket file like "unix:run/app.sock", got "unix:" (name = "a")'
            ),
        ),
        (
            f'[[upstreams]]\nname = "a"\naddress = "unix:{"a" * 108}"',
            "upstreams[0].address: must be at most 107 bytes long with its folder, got 108",
        ),
        (
            '[upstreams]\nname = "a"',
            (
                "upstreams: must be an array of tables: begin each of them with [[upstreams]], in "
                "double brackets"
            ),
        ),
        ('upstreams = ["10.0.0.1"]', 'upstreams[0]: must be a table, got "10.0.0.1"'),
        ('[[upstream]]\nname = "a"', 'upstream: unknown key, did you mean "upstreams"?'),
        (
            UPSTREAM + "resolve = 5",
            'upstreams[0].resolve: needs a host name, got address "10.0.0.1" (name = "a")',
        ),
        (
            (
                '[[upstreams]]\nname = "a"\naddress = "app.test"\nport = 80\nresolve = 5\n'
                '[[upstreams]]\nname = "a@::1"\naddress = "::1"\nport = 80\n'
            ),
            'upstreams[1].name: "a@…" are the names of the servers of "a", got "a@::1"',
        ),
        (
            UPSTREAM + '[upstreams.tls]\ncert = "c.pem"',
            'upstreams[0].tls.cert: needs key (name = "a")',
        ),
        (
            UPSTREAM + '[upstreams.tls]\nverify = false\nca = "c.pem"',
            'upstreams[0].tls.ca: has no effect with verify = false (name = "a")',
        ),
        (
            '[[upstreams]]\nname = "a"\naddress = "unix:a.sock"\n[upstreams.tls]',
            (
                "upstreams[0].tls.server_name: missing: a socket file has no name that could be "
                'verified (name = "a")'
            ),
        ),
        # routing
        (
            '[routing]\nstrategy = "roundrobin"',
            (
                f"routing.strategy: must be {STRATEGIES}, "
                'got "roundrobin"; did you mean "round_robin"?'
            ),
        ),
        (
            '[routing]\nhash_on = "header:"',
            (
                'routing.hash_on: must be "client_ip", "path", "header:NAME" or "cookie:NAME", '
                'got "header:"; did you mean "header:NAME"?'
            ),
        ),
        # timeouts
        ("[timeouts]\nconnect = 0", "timeouts.connect: must be 0.001 to 1000000000, got 0"),
        ("[timeouts]\ndrain = -0.5", "timeouts.drain: must be 0 to 1000000000, got -0.5"),
        (
            "[timeouts]\nclient_idle = inf",
            "timeouts.client_idle: must be a number of seconds (0.001 to 1000000000), got inf",
        ),
        (
            "[timeouts]\nclient_idle = nan",
            "timeouts.client_idle: must be a number of seconds (0.001 to 1000000000), got nan",
        ),
        (
            '[timeouts]\nconnect = "5s"',
            'timeouts.connect: must be a number of seconds (0.001 to 1000000000), got "5s"',
        ),
        (
            "[timeouts]\nconnect = true",
            "timeouts.connect: must be a number of seconds (0.001 to 1000000000), got true",
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
        ("port = 8080", "port: unknown key, it belongs to [listen], [[upstreams]] or [admin]"),
        ("[timeout]\nconnect = 1", 'timeout: unknown key, did you mean "timeouts"?'),
    ],
)
def test_a_mistake_is_one_sentence(text: str, sentence: str) -> None:
    assert mistakes(text) == [sentence]


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

    assert [mistake.partition(":")[0] for mistake in mistakes(text)] == [
        "listen.port",
        "listen.prot",
        "upstreams[0].weight",
        "nothing",
    ]


def test_every_mistake_has_its_line() -> None:
    text = (
        """# a comment
[listen]
port = 99999
[[upstreams]]
name = "a"
address = "10.0.0.1"
[[upstreams]]
name = "b"
port = [
  1,
]
address = "10.0.0.2"
[upstreams.health_check]
rise = 0
[forwarding.set_request_fields]
"X.Y" = """
        '"""\nseveral\nlines"""\n[nothing.at.all]\n[[log]]\n'
    )

    told = [problem.partition(": ")[0] for problem in problems(text)]

    assert told == [f"atlas.toml:{line}" for line in (3, 4, 9, 14, 16, 19, 20)]


def test_a_mistake_of_an_upstream_names_it() -> None:
    text = UPSTREAM + UPSTREAM.replace('"a"', '"b"') + "weight = -1\n"

    assert problems(text) == [
        'atlas.toml:9: upstreams[1].weight: must be 0 to 1000, got -1 (name = "b")'
    ]


@pytest.mark.parametrize(
    "text",
    [
        '[upstreams]\nname = "a"',
        '[upstreams.a]\naddress = "a"\nport = 1',
        '[upstreams]\nname = "a"\n[upstreams]\nname = "b"',
        '[upstreams]\nname = "a"\n[[upstreams]]\nname = "b"',
        '[[upstreams]]\nname = "a"\n[upstreams]\nname = "b"',
    ],
)
def test_upstreams_in_single_brackets_are_told_what_to_write(text: str) -> None:
    (problem,) = problems(text)

    assert problem.endswith("begin each of them with [[upstreams]], in double brackets")
    assert "(" not in problem


def test_a_part_that_stands_before_its_upstream_is_told_so() -> None:
    (problem,) = problems('[upstreams.tls]\nverify = true\n[[upstreams]]\nname = "a"')

    assert problem == "atlas.toml:1: not TOML: stands before the [[upstreams]] that it is part of"


def test_a_table_that_stands_twice_is_named_as_in_the_file() -> None:
    assert problems("[listen]\nport = 1\n[limits]\n[listen]\n") == [
        "atlas.toml:4: not TOML: Cannot declare listen twice at column 8"
    ]


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("http://10.0.0.1:3000", 'write "10.0.0.1" alone, and port = 3000'),
        ("http://10.0.0.1:3000/app", 'write "10.0.0.1" alone, and port = 3000'),
        ("https://app.example", 'write "app.example" alone'),
        ("10.0.0.1:3000", 'write "10.0.0.1" alone, and port = 3000'),
        ("localhost:3000", 'write "localhost" alone, and port = 3000'),
        ("/run/app.sock", 'write "unix:/run/app.sock"'),
        ("[::1]:3000", 'write "[::1]" alone, and port = 3000'),
        (
            "fe80::11%eth0",
            'write an address without a zone like "%eth0": zones are not supported',
        ),
    ],
)
def test_an_address_with_more_than_a_host_is_told_what_to_write(address: str, advice: str) -> None:
    assert mistakes(UPSTREAM.replace("10.0.0.1", address)) == [
        (
            "upstreams[0].address: must be an IPv4 or IPv6 address, a host name, or a socket file "
            f'like "unix:run/app.sock", got "{address}"; {advice} (name = "a")'
        )
    ]


def test_advice_does_not_tell_what_the_environment_says() -> None:
    text = UPSTREAM.replace("10.0.0.1", "${HOST}")

    (mistake,) = mistakes(text, {"HOST": "10.0.0.1:3000"})

    assert "3000" not in mistake
    assert "10.0.0.1" not in mistake


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '[listen]\nstrategy = "random"',
            "listen.strategy: unknown key, it belongs to [routing] or [groups.NAME]",
        ),
        (
            UPSTREAM + "hash_on = 1",
            (
                "upstreams[0].hash_on: unknown key, it belongs to [routing] or [groups.NAME] "
                '(name = "a")'
            ),
        ),
        (
            "[pool]\nfail = 2\nfall = 2",
            "pool.fall: unknown key, it belongs to [upstreams.health_check] or [health_check]",
        ),
        ("[listen.routing]\n", "listen.routing: unknown key, did you mean [routing]?"),
        (
            "[set_request_fields]\nA = 'x'",
            "set_request_fields: unknown key, did you mean [forwarding.set_request_fields]?",
        ),
        ("[routing.upstreams]\n", "routing.upstreams: unknown key, did you mean [[upstreams]]?"),
    ],
)
def test_a_key_of_another_table_is_told_where_it_belongs(text: str, sentence: str) -> None:
    assert mistakes(text)[-1] == sentence


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ('[routing]\nstrategy = "least_conn"', "least_connections"),
        ('[routing]\nstrategy = "RoundRobin"', "round_robin"),
        ('[routing]\nstrategy = "ip-hash"', "ip_hash"),
        ('[routing]\nhash_on = "client-ip"', "client_ip"),
        ('[log]\nlevel = "warn"', "warning"),
        ('[log]\nformat = "JSON"', "json"),
        ('[sticky]\nsame_site = "lax"', "Lax"),
    ],
)
def test_a_misspelt_choice_is_told_the_nearest(line: str, meant: str) -> None:
    (mistake,) = mistakes(line)

    assert mistake.endswith(f'; did you mean "{meant}"?')


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[sticky]", "sticky"),
        ('[error_pages]\nfolder = "."', "error_pages"),
        ("[[routes]]\nstatus = 503", "routes"),
        ("[limits]\nhead = 100", "limits"),
        ("[pool]\nidle = 2", "pool"),
        ("[forwarding]\nvia = false", "forwarding"),
        ("[timeouts]\nclient_idle = 5", "timeouts.client_idle"),
        ("[timeouts]\nupstream_head = 5", "timeouts.upstream_head"),
        ('[routing]\nhash_on = "path"', "routing.hash_on"),
        ("[circuit_breaker]\nstatuses = [503]", "circuit_breaker.statuses"),
    ],
)
def test_what_only_http_knows_is_refused_in_mode_tcp(text: str, place: str) -> None:
    sentence = f'{place}: has no meaning with listen.mode = "tcp"'

    assert mistakes(f'[listen]\nmode = "tcp"\n{text}') == [sentence]


@pytest.mark.parametrize("table", ["sticky", "circuit_breaker", "slow_start"])
def test_what_has_to_do_with_upstreams_is_refused_in_mode_static(table: str) -> None:
    sentence = f'{table}: has no meaning with listen.mode = "static"'

    assert mistakes(f'[listen]\nmode = "static"\n[{table}]') == [sentence]


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "/index.html", "a\\nb"])
def test_an_index_is_a_file_of_the_folder(name: str) -> None:
    (mistake,) = mistakes(f'[static]\nindex = "{name}"')

    assert mistake.startswith("static.index: must be the name of a file")


# Files that are no configuration at all


def load_problem(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        loader.load_config(path, {})
    (problem,) = caught.value.problems
    return problem


def test_a_file_is_read_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "atlas.toml"
    path.write_text(UPSTREAM)

    loaded = loader.load_config(path)

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
