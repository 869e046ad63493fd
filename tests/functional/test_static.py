"""Mode "static": files of a folder, with conditions and ranges, and nothing beside them."""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import socket
import threading
import time
import wave
from pathlib import Path

import pytest

from atlas_pkg.serving.static import MOMENT, SETTLED, _open_below
from tests.browser import Tab
from tests.functional.admin_client import ADMIN, AdminClient
from tests.functional.conftest import Start
from tests.toolkit import Answer, Atlas, Cut, Program, build_config, find_program, wait_until

LARGE = bytes(range(256)) * 8192  # 2 MiB: `sendfile`, and a tail


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "www"
    (root / "folder").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / ".git").mkdir()
    (root / "index.html").write_text("<h1>Hello</h1>")
    (root / "folder" / "index.html").write_text("<h1>Folder</h1>")
    (root / "a b.txt").write_text("blank")
    (root / "digits.txt").write_text("0123456789")
    (root / "large.bin").write_bytes(LARGE)
    (root / ".git" / "config").write_text("secret")
    (root / ".env").write_text("secret")
    (tmp_path / "outside.txt").write_text("secret")
    (tmp_path / "www-beside").mkdir()
    (tmp_path / "www-beside" / "secret.txt").write_text("secret")
    return root


def build(root: Path | str, **tables: dict[str, object]) -> str:
    listen = {"mode": "static", "root": str(root), **tables.pop("listen", {})}
    return build_config(listen=listen, **tables)


@pytest.fixture
def atlas(root: Path, start: Start) -> Atlas:
    return start(build(root))


def ask_twice(atlas: Atlas, method: str, target: str, **fields: str) -> Answer:
    """Ask the road and, where there is a lane, the shortcut, which have to agree."""
    with atlas.client() as client:
        answers = []
        for _ in range(2):
            client.send_head(method, target, **fields)
            head = client.read_head()
            body = b"" if method == "HEAD" else b"".join(client.read_body(head))
            kept = tuple(pair for pair in head.fields if pair[0] != "Date")
            answers.append(Answer(head.status, kept, body))
    assert answers[0] == answers[1]
    return answers[0]


def test_a_file_is_sent_with_its_type_and_validators(root: Path, atlas: Atlas) -> None:
    answer = ask_twice(atlas, "GET", "/digits.txt?v=1")

    assert (answer.status, answer.body) == (200, b"0123456789")
    assert answer.get("Content-Type") == "text/plain; charset=utf-8"
    assert answer.get("Accept-Ranges") == "bytes"
    modified = email.utils.parsedate_to_datetime(answer.get("Last-Modified"))
    assert int(modified.timestamp()) == int((root / "digits.txt").stat().st_mtime)
    assert answer.get("ETag").startswith('"')


def test_a_large_file_arrives_whole(atlas: Atlas) -> None:
    assert ask_twice(atlas, "GET", "/large.bin").body == LARGE


def test_head_has_the_length_and_no_body(atlas: Atlas) -> None:
    for target, length in (("/digits.txt", 10), ("/large.bin", len(LARGE))):
        answer = ask_twice(atlas, "HEAD", target)
        assert (answer.status, answer.get("Content-Length")) == (200, str(length))


def test_a_folder_is_answered_with_its_index(atlas: Atlas) -> None:
    assert ask_twice(atlas, "GET", "/").body == b"<h1>Hello</h1>"
    assert ask_twice(atlas, "GET", "/folder/").body == b"<h1>Folder</h1>"
    assert ask_twice(atlas, "GET", "/empty/").status == 404


def test_a_folder_without_its_slash_is_redirected_and_never_to_another_host(
    root: Path, atlas: Atlas
) -> None:
    (root / "example.com").mkdir()

    for target, location in (
        ("/folder?a=b", "/folder/?a=b"),
        ("/f%6Flder", "/f%6Flder/"),
        ("//example.com", "/example.com/"),
    ):
        answer = ask_twice(atlas, "GET", target)
        assert (answer.status, answer.get("Location")) == (308, location)


def test_escaped_names_are_found(root: Path, atlas: Atlas) -> None:
    (root / "grüße.txt").write_text("umlaut")

    assert ask_twice(atlas, "GET", "/a%20b.txt").body == b"blank"
    assert ask_twice(atlas, "GET", "/gr%C3%BC%C3%9Fe.txt").body == b"umlaut"
    assert ask_twice(atlas, "GET", "//a%20b.txt").body == b"blank"


@pytest.mark.parametrize(
    "target",
    [
        "/missing",
        "/digits.txt/",
        "/digits.txt/more",
        "/.env",
        "/.git/config",
        "/%2egit/config",
        "/../outside.txt",
        "/folder/../../outside.txt",
        "/%2e%2e/outside.txt",
        "/..%2foutside.txt",
        "/folder%2findex.html",
        "/%00",
        "/digits.txt%00.html",
        "/" + "a" * 300,
        "/link.txt",
        "/link/secret.txt",
        "/up/outside.txt",
        "/pipe",
        "/socket",
    ],
)
@pytest.mark.engines("lane")
def test_nothing_else_is_served(target: str, root: Path, atlas: Atlas) -> None:
    (root / "link.txt").symlink_to(root.parent / "outside.txt")
    (root / "link").symlink_to(root.parent / "www-beside")
    (root / "up").symlink_to("..")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "socket"))

        answer = ask_twice(atlas, "GET", target)

    assert answer.status == 404
    assert b"secret" not in answer.body


def test_a_link_inside_the_root_is_followed(root: Path, atlas: Atlas) -> None:
    (root / "link.txt").symlink_to("folder/index.html")

    assert ask_twice(atlas, "GET", "/link.txt").body == b"<h1>Folder</h1>"


def test_the_root_may_be_a_link_that_is_set_anew(root: Path, tmp_path: Path, start: Start) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (new / "index.html").write_text("new")
    (tmp_path / "current").symlink_to(root)
    atlas = start(build("current"))  # relative to the file
    assert atlas.get("/").body == b"<h1>Hello</h1>"

    (tmp_path / "next").symlink_to(new)
    (tmp_path / "next").replace(tmp_path / "current")

    assert ask_twice(atlas, "GET", "/").body == b"new"


def test_a_root_that_is_set_anew_while_a_file_is_opened_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "digits.txt").write_text(name)
    link = tmp_path / "current"
    link.symlink_to("old")
    open_file = os.open

    def open_late(path: bytes, flags: int) -> int:
        file = open_file(path, flags)
        link.unlink()
        link.symlink_to("new")
        return file

    monkeypatch.setattr(os, "open", open_late)
    file = _open_below(os.fsencode(link), b"digits.txt")

    assert os.read(file, 10) == b"old"
    os.close(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_forbidden(root: Path, atlas: Atlas) -> None:
    (root / "digits.txt").chmod(0)

    assert ask_twice(atlas, "GET", "/digits.txt").status == 403


def test_other_methods_are_not_allowed(atlas: Atlas) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        with atlas.client() as client:
            client.send_head(method, "/digits.txt", Content_Length="0")
            answer = client.read_answer()
        assert (answer.status, answer.get("Allow")) == (405, "GET, HEAD")


def test_what_the_client_has_is_not_sent_again(atlas: Atlas) -> None:
    first = ask_twice(atlas, "GET", "/digits.txt")
    tag, date = first.get("ETag"), first.get("Last-Modified")

    for fields in ({"If_None_Match": tag}, {"If_Modified_Since": date}):
        answer = ask_twice(atlas, "GET", "/digits.txt", **fields)
        assert (answer.status, answer.body, answer.get("ETag")) == (304, b"", tag)
    assert ask_twice(atlas, "GET", "/digits.txt", If_Match='"other"').status == 412


def test_a_range_is_sent_alone(atlas: Atlas) -> None:
    answer = ask_twice(atlas, "GET", "/digits.txt", Range="bytes=2-4")
    assert (answer.status, answer.body) == (206, b"234")
    assert answer.get("Content-Range") == "bytes 2-4/10"

    answer = ask_twice(atlas, "GET", "/large.bin", Range=f"bytes=100-{len(LARGE) - 7}")
    assert (answer.status, answer.body) == (206, LARGE[100:-6])

    answer = ask_twice(atlas, "GET", "/digits.txt", Range="bytes=10-")
    assert (answer.status, answer.get("Content-Range")) == (416, "bytes */10")


def test_a_file_that_is_replaced_is_sent_to_its_end_as_it_was(root: Path, atlas: Atlas) -> None:
    with atlas.client() as client:
        client.send_head("GET", "/large.bin")
        head = client.read_head()
        new = root / "new"
        new.write_bytes(b"x" * len(LARGE))
        new.replace(root / "large.bin")
        assert b"".join(client.read_body(head)) == LARGE
        assert client.get("/large.bin").body == b"x" * len(LARGE)


def test_a_file_that_is_written_to_while_it_is_sent_is_cut(root: Path, atlas: Atlas) -> None:
    size = 64 * 1024 * 1024
    with (root / "large.bin").open("wb") as file:
        file.truncate(size)
    with atlas.client() as client:
        client.send_head("GET", "/large.bin")
        head = client.read_head()
        with (root / "large.bin").open("r+b") as file:
            file.write(b"new")
        with pytest.raises((Cut, ConnectionError)):
            b"".join(client.read_body(head))
    line = "answer cut for GET /large.bin HTTP/1.1: the file was written to while it was sent"
    atlas.wait_for(line)


def test_a_small_file_is_never_half_old_and_half_new(root: Path, start: Start) -> None:
    # One thread writes the file in place, again and again; whoever gets it gets one state of it.
    atlas = start(build(root, limits={"requests_per_connection": 1_000_000}))
    states = [bytes([letter]) * 50_000 for letter in b"ab"]
    (root / "small").write_bytes(states[0])
    slowest = 0.0

    def write() -> None:
        nonlocal slowest
        with (root / "small").open("r+b", buffering=0) as file:
            for state in states * 10:
                file.seek(0)
                for at in range(0, len(state), 10_000):
                    before = time.monotonic()
                    file.write(state[at : at + 10_000])
                    time.sleep(MOMENT / 10)
                    slowest = max(slowest, time.monotonic() - before)
                time.sleep(2 * MOMENT)

    writer = threading.Thread(target=write)
    writer.start()
    found = set()
    with atlas.client() as client:
        while writer.is_alive():
            answer = client.get("/small")
            assert answer.status in (200, 503)
            if answer.status == 200:
                found.add(answer.body)
    writer.join()

    # Where the machine has stopped the writer in the middle, that was a state, too.
    assert found <= set(states) or slowest > MOMENT / 2
    assert atlas.get("/small").body == states[-1]


def test_what_is_kept_in_memory_is_given_up_when_the_file_changes(root: Path, atlas: Atlas) -> None:
    path = root / "digits.txt"
    modified = path.stat().st_mtime_ns

    def get() -> bytes:
        return ask_twice(atlas, "GET", "/digits.txt").body

    wait_until(lambda: time.time() - path.stat().st_ctime > SETTLED, "the file to be kept")
    assert get() == get() == b"0123456789"
    path.write_text("9876543210")
    os.utime(path, ns=(modified, modified))  # as if nothing had happened
    assert get() == b"9876543210"
    (root / "new").write_text("replaced")
    (root / "new").replace(path)
    assert get() == b"replaced"
    path.unlink()
    assert ask_twice(atlas, "GET", "/digits.txt").status == 404


def test_root_and_index_are_live(root: Path, tmp_path: Path, start: Start) -> None:
    atlas = start(build(root))

    atlas.reload(build(root, static={"index": "digits.txt"}))
    assert atlas.get("/").body == b"0123456789"
    atlas.reload(build(tmp_path / "www-beside"))

    assert atlas.get("/secret.txt").body == b"secret"
    assert atlas.get("/digits.txt").status == 404


def test_a_page_of_ones_own_tells_what_is_not_there(
    root: Path, tmp_path: Path, start: Start
) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "404.html").write_text("<h1>Lost?</h1>")
    atlas = start(build(root, error_pages={"folder": "pages"}))

    answer = atlas.get("/missing", Accept="text/html")

    assert (answer.status, answer.body) == (404, b"<h1>Lost?</h1>")


def test_it_is_ready_logged_and_counted_without_upstreams(root: Path, start: Start) -> None:
    log = {"access": "access.log", "format": "combined"}
    atlas = start(build(root, log=log, admin=ADMIN))
    assert atlas.get("/large.bin").status == 200

    path = atlas.path.with_name("access.log")
    wait_until(lambda: f'"GET /large.bin HTTP/1.1" 200 {len(LARGE)}' in path.read_text(), "a line")
    admin = AdminClient(atlas)
    assert admin.ask("/-/ready")[0] == 200
    wait_until(lambda: admin.metrics()["atlas_requests_total - 2xx"] == 1, "the count")


def test_a_root_that_is_not_there_is_told(tmp_path: Path, start: Start) -> None:
    atlas = start(build(tmp_path / "nowhere"))

    atlas.wait_for("nowhere is no folder: every request is answered 404")
    assert atlas.get("/").status == 404


def test_a_file_of_the_first_atlas_is_served(root: Path, start: Start) -> None:
    text = (
        '[listen]\naddress = "127.0.0.1"\nport = 0\nmode = "static"\nworkers = 1\n'
        f'root = "{root}"\n[routing]\nstrategy = "round_robin"\n'
        '[[upstreams]]\nname = "a"\naddress = "127.0.0.1"\nport = 1\nweight = 1\n'
        '[upstreams.health_check]\ninterval_secs = 10\ntimeout_secs = 5\npath = "/health"\n'
    )

    atlas = start(text)

    atlas.wait_for("no requests are sent to the upstreams")
    assert atlas.get("/digits.txt").body == b"0123456789"


@pytest.mark.engines("lane")
def test_curl_resumes_a_download(tmp_path: Path, atlas: Atlas) -> None:
    curl = find_program("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    copy = tmp_path / "copy"
    copy.write_bytes(LARGE[:1_000_000])

    program = Program(
        [curl, "-sS", "-C", "-", "-o", copy, f"http://127.0.0.1:{atlas.port}/large.bin"]
    )

    assert program.wait() == 0
    assert copy.read_bytes() == LARGE


@pytest.mark.engines("lane")
def test_a_client_that_does_not_read_stops_nobody_else(root: Path, atlas: Atlas) -> None:
    with (root / "large.bin").open("wb") as file:
        file.truncate(256 * 1024 * 1024)

    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(atlas.client()).send_head("GET", "/large.bin")
        assert atlas.get("/digits.txt").body == b"0123456789"


PAGE = """<!DOCTYPE html><p id="loaded"></p><video src="sound.wav" preload="metadata"></video>
<script>
  let loaded = 0;
  const count = () => document.getElementById("loaded").textContent = loaded += 1;
</script>
"""


@pytest.mark.engines("lane")
def test_a_browser_loads_a_hundred_files_and_jumps_in_a_long_one(
    root: Path, start: Start, tab: Tab
) -> None:
    page = [PAGE]
    for number in range(60):
        (root / f"{number}.js").write_text("count();")
        page.append(f'<script src="{number}.js"></script>')
    for number in range(40):
        (root / f"{number}.svg").write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'
        )
        page.append(f'<img onload="count()" src="{number}.svg">')
    (root / "page.html").write_text("\n".join(page))
    with wave.open(str(root / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 44_100, 0, "NONE", ""))
        sound.writeframes(bytes(2 * 44_100 * 300))  # five minutes, 26 MB
    atlas = start(build(root, log={"access": "access.log", "format": "json"}))

    tab.go(f"http://127.0.0.1:{atlas.port}/page.html")
    tab.wait_for('document.getElementById("loaded")?.textContent == "100"')
    tab.wait_for('document.querySelector("video").readyState >= 1')
    tab.evaluate('document.querySelector("video").currentTime = 290')
    tab.wait_for('!document.querySelector("video").seeking')

    path = atlas.path.with_name("access.log")

    def has_jumped() -> bool:
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        return any(entry["status"] == 206 for entry in entries)

    wait_until(has_jumped, "a part of the sound")
