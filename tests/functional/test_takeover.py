"""SIGUSR2: a new Atlas takes over, and nobody who is served notices."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atlas_pkg import __version__, bundle
from atlas_pkg.control.takeover import PATIENCE
from tests.fakes import Conversation, Upstream, build_answer, named
from tests.functional.admin_client import ADMIN, AdminClient
from tests.functional.conftest import Start
from tests.functional.test_tls import Authority, with_tls
from tests.functional.test_tunnels import SWITCHED
from tests.toolkit import Answer, Atlas, Client, Threads, build_config, free_port, wait_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="only there can it take over"),
    pytest.mark.engines("lane"),
]

BOTH_ENGINES = pytest.mark.engines("lane", "road")

STARTS = re.compile(r"SIGUSR2: process (\d+) starts")


class Reign:
    """An Atlas and its successors, of whom the last one serves."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas
        self.pid = atlas.pid
        self.takeovers = 0

    def begin(self) -> int:
        """Have a successor start; returns its process id."""
        times = len(STARTS.findall(self.atlas.log)) + 1
        os.kill(self.pid, signal.SIGUSR2)
        match = STARTS.search(self.atlas.wait_for("SIGUSR2: process", times=times))
        assert match
        return int(match[1])

    def take_over(self) -> None:
        """Return when a successor serves."""
        successor = self.begin()
        self.atlas.wait_for(f"process {successor} serves: this one ends", timeout=PATIENCE)
        self.pid = successor
        self.takeovers += 1

    def follow_port(self) -> None:
        """Talk to where the last one listens."""
        line = self.atlas.wait_for("listening on", times=self.takeovers + 1)
        self.atlas.port = int(line.rpartition(":")[2])

    def end(self) -> None:
        for pid in map(int, STARTS.findall(self.atlas.log)):
            if str(self.atlas.path) in command_of(pid):
                os.kill(pid, signal.SIGKILL)


def command_of(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


Begin = Callable[..., Reign]


@pytest.fixture
def reign(start: Start) -> Iterator[Begin]:
    """Start an Atlas whose successors end with the test, too."""
    reigns = []

    def begin(*arguments: object, **options: object) -> Reign:
        reigns.append(Reign(start(*arguments, **options)))
        return reigns[-1]

    yield begin
    for each in reigns:
        each.end()


@pytest.fixture
def a(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("A"))


class Crowd:
    """Clients who ask all the while, and expect an answer to everything."""

    def __init__(
        self, atlas: Atlas, *, kept: int, fresh: int, tls: ssl.SSLContext | None = None
    ) -> None:
        self._port = atlas.port
        self._tls = tls
        self._is_over = threading.Event()
        self._threads = Threads()
        self.answers = 0
        self._lock = threading.Lock()  # guards the count
        for _ in range(kept):
            self._threads.start(self._ask, False)
        for _ in range(fresh):
            self._threads.start(self._ask, True)

    def _ask(self, is_fresh: bool) -> None:
        while not self._is_over.is_set():
            with Client(self._port, tls=self._tls) as client:
                is_open = True
                while is_open and not self._is_over.wait(0.002):  # else they starve others
                    answer = client.get(**({"Connection": "close"} if is_fresh else {}))
                    assert (answer.status, answer.text) == (200, "A")
                    is_open = answer.get("Connection") != "close"
                    with self._lock:
                        self.answers += 1

    def end(self) -> None:
        """Stop asking; raises what went wrong."""
        self._is_over.set()
        self._threads.join()


@BOTH_ENGINES
@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_is_refused_and_no_request_is_lost_or_doubled(
    workers: int, a: Upstream, reign: Begin
) -> None:
    line = reign(build_config(a.table(), listen={"workers": workers}, admin=dict(ADMIN)))
    admin = AdminClient(line.atlas)
    crowd = Crowd(line.atlas, kept=6, fresh=2)

    for _ in range(3):
        answers = crowd.answers
        wait_until(lambda: crowd.answers > answers + 20, "many answers")  # noqa: B023 - at once
        line.take_over()
    admin.wait_until_ready(workers)
    crowd.end()

    assert a.requests == crowd.answers
    assert line.atlas.wait_for("drained: all requests were finished", times=3 * workers)
    assert line.atlas.process.wait(20) == 0
    assert admin.stats()["pids"] != []
    assert "had to be cut" not in line.atlas.log


@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_who_asks_the_admin_address_notices_either(
    workers: int, a: Upstream, reign: Begin
) -> None:
    line = reign(build_config(a.table(), listen={"workers": workers}, admin=dict(ADMIN)))
    admin = AdminClient(line.atlas)
    is_over = threading.Event()
    answers = [0] * 4

    def ask(pause: float) -> None:
        """Connect, take time for a first word, and expect an answer; any failure raises."""
        while not is_over.is_set():
            with Client(admin.port) as client:
                is_over.wait(pause)
                assert client.get("/metrics").status == 200
                answers[int(pause * 50)] += 1

    threads = Threads()
    for pause in (0.0, 0.02, 0.04, 0.06):
        threads.start(ask, pause)
    for _ in range(2):
        before = list(answers)
        wait_until(lambda: min(map(int.__sub__, answers, before)) > 0, "answers")  # noqa: B023
        line.take_over()
    admin.wait_until_ready(workers)
    is_over.set()
    threads.join()


def test_nobody_notices_with_tls_either(a: Upstream, tmp_path: Path, reign: Begin) -> None:
    authority = Authority(tmp_path)
    authority.write("cert", "atlas.test")
    line = reign(with_tls(build_config(a.table(), listen={"workers": 2})))
    crowd = Crowd(line.atlas, kept=4, fresh=2, tls=authority.context())

    for _ in range(2):
        answers = crowd.answers
        wait_until(lambda: crowd.answers > answers + 20, "many answers")  # noqa: B023 - at once
        line.take_over()
    crowd.end()

    assert a.requests == crowd.answers
    assert line.atlas.process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_takeovers_in_a_row(  # in a minute, where the machine is not busy otherwise
    workers: int, is_secure: bool, a: Upstream, tmp_path: Path, reign: Begin
) -> None:
    wrk = shutil.which("wrk")
    if wrk is None:
        pytest.skip("wrk is not installed")
    authority = Authority(tmp_path)
    authority.write("cert", "atlas.test")
    text = build_config(a.table(), listen={"workers": workers})
    line = reign(with_tls(text) if is_secure else text)
    tls = authority.context() if is_secure else None
    url = f"{'https' if is_secure else 'http'}://127.0.0.1:{line.atlas.port}/"

    crowd = Crowd(line.atlas, kept=0, fresh=2, tls=tls)
    keeping = subprocess.Popen(
        [wrk, "-c64", "-d390s", "--timeout=20s", url], stdout=subprocess.PIPE, text=True
    )
    try:
        for _ in range(20):
            began = time.monotonic()
            line.take_over()
            time.sleep(max(0.0, began + 3.0 - time.monotonic()))
    finally:
        keeping.send_signal(signal.SIGINT)  # it ends, and prints what it has found
        said, _ = keeping.communicate()
    crowd.end()

    assert "requests in" in said
    assert "Socket errors" not in said
    assert "Non-2xx" not in said


@BOTH_ENGINES
def test_what_is_under_way_is_finished_by_the_old_one(
    upstreams: contextlib.ExitStack, reign: Begin
) -> None:
    may_answer = threading.Event()

    def serve(conversation: Conversation) -> None:
        while conversation.read_head():
            held.count()
            may_answer.wait(20)
            conversation.send(build_answer(b"held"))

    held = upstreams.enter_context(Upstream(serve))
    line = reign(build_config(held.table()))

    with line.atlas.client() as client:
        client.send_head()
        wait_until(lambda: held.requests, "the request to reach its upstream")
        line.take_over()
        may_answer.set()

        answer = client.read_answer()
        assert (answer.text, answer.get("Connection")) == ("held", "close")
    assert line.atlas.process.wait(20) == 0
    assert line.atlas.get().text == "held"


@BOTH_ENGINES
def test_an_idle_client_is_answered_once_more_and_sent_to_the_new_one(
    a: Upstream, reign: Begin
) -> None:
    line = reign(build_config(a.table()))

    with line.atlas.client() as client, line.atlas.client() as silent:
        assert client.get().text == "A"
        line.take_over()
        line.atlas.wait_for("draining: no new clients, 2 connected")

        assert client.get().get("Connection") == "close"
        assert client.is_closed()
        assert silent.get().text == "A"
    assert line.atlas.process.wait(20) == 0


@BOTH_ENGINES
def test_who_stays_silent_is_let_go_when_the_drain_ends(a: Upstream, reign: Begin) -> None:
    line = reign(build_config(a.table(), timeouts={"drain": 0.5}))

    with line.atlas.client() as client:
        assert client.get().text == "A"
        line.take_over()

        assert client.is_closed()
    assert line.atlas.process.wait(20) == 0


def test_a_tunnel_ends_with_the_old_one(upstreams: contextlib.ExitStack, reign: Begin) -> None:
    def serve(conversation: Conversation) -> None:
        conversation.read_head()
        conversation.send(SWITCHED)
        conversation.wait_for_end()

    upstream = upstreams.enter_context(Upstream(serve))
    line = reign(build_config(upstream.table(), timeouts={"drain": 0.5}))

    with line.atlas.client() as client:
        client.send_head(Connection="upgrade", Upgrade="raw")
        assert client.read_head().status == 101
        line.take_over()

        assert client.is_closed()
    assert line.atlas.process.wait(20) == 1


def assert_nothing_has_changed(line: Reign, client: Client, how: str) -> None:
    """The old one serves on, and does not even close a connection."""
    line.atlas.wait_for(f"has not taken over (it has ended with {how}): all is as before")
    answer = client.get()
    assert (answer.text, answer.get("Connection")) == ("A", "")
    assert line.atlas.get().text == "A"
    assert "draining" not in line.atlas.log


@pytest.mark.parametrize("workers", [1, 2])
def test_with_a_broken_file_nothing_changes(workers: int, a: Upstream, reign: Begin) -> None:
    text = build_config(a.table(), listen={"workers": workers})
    line = reign(text)

    with line.atlas.client() as client:
        assert client.get().text == "A"
        line.atlas.rewrite(text + "weigth = 1\n")
        line.begin()

        assert_nothing_has_changed(line, client, "2")
    assert 'did you mean "weight"?' in line.atlas.log
    line.atlas.rewrite(text)
    line.take_over()
    assert line.atlas.get().text == "A"


def test_with_a_broken_program_nothing_changes_and_a_new_one_takes_over(
    tmp_path: Path, a: Upstream, reign: Begin
) -> None:
    program = tmp_path / "atlas.pyz"
    bundle.write_bundle(program)
    line = reign(build_config(a.table(), admin=dict(ADMIN)), program=program)
    admin = AdminClient(line.atlas)

    with line.atlas.client() as client:
        assert client.get().text == "A"
        program.write_bytes(b"not a program\n")
        line.begin()
        assert_nothing_has_changed(line, client, "1")
        assert admin.ask("/")[0] == 200
        assert admin.ask("/metrics")[0] == 200

    bundle.write_bundle(program)
    whole = program.read_bytes()
    newer = whole.replace(f'"{__version__}"'.encode(), b'"9.9.9"')
    assert newer != whole
    (tmp_path / "unpacked").mkdir()
    shutil.unpack_archive(program, tmp_path / "unpacked", "zip")
    (tmp_path / "unpacked/atlas_pkg/__init__.py").write_text('__version__ = "9.9.9"\n')
    shutil.make_archive(str(tmp_path / "new"), "zip", tmp_path / "unpacked")
    (tmp_path / "new.zip").replace(program)
    line.take_over()

    line.atlas.wait_for("Atlas 9.9.9, mode http")
    assert line.atlas.get().text == "A"
    assert line.atlas.process.wait(20) == 0


# Stands before the command that it is the prefix of: the same program, with a hasty takeover by a
# successor that hangs.
HANGS = """
import sys, time
from atlas_pkg.control import takeover
from atlas_pkg.main import main
heritage = takeover.read_heritage()  # with the sockets in it
if heritage.is_takeover:
    time.sleep(60)
takeover.PATIENCE = 0.5
sys.exit(main(sys.argv[5:]))
"""


def test_with_a_program_that_hangs_nothing_changes(a: Upstream, reign: Begin) -> None:
    line = reign(build_config(a.table()), prefix=(sys.executable, "-W", "error", "-c", HANGS))

    with line.atlas.client() as client:
        assert client.get().text == "A"
        successor = line.begin()

        line.atlas.wait_for("it does not serve after 0.5 s, and is killed): all is as before")
        assert command_of(successor) == ""
        assert client.get().get("Connection") == ""


# So, too: a successor that goes on when there is a file beside the configuration.
HOLDS = """
import os, sys, time
from atlas_pkg.control.takeover import VARIABLE
from atlas_pkg.main import main
while VARIABLE in os.environ and not os.path.exists(sys.argv[5] + ".go"):
    time.sleep(0.01)
sys.exit(main(sys.argv[5:]))
"""
HELD = (sys.executable, "-W", "error", "-c", HOLDS)


def is_refused(port: int, host: str = "127.0.0.1") -> bool:
    try:
        Client(port, host=host).close()
    except ConnectionRefusedError:
        return True
    return False


def test_another_port_takes_effect(a: Upstream, reign: Begin) -> None:
    line = reign(build_config(a.table()))
    before = line.atlas.port
    port = free_port()

    line.atlas.rewrite(build_config(a.table(), listen={"port": port}))
    line.take_over()

    line.follow_port()
    assert line.atlas.port == port
    assert line.atlas.get().text == "A"
    wait_until(lambda: is_refused(before), "the old port to be closed")


def test_another_address_with_the_same_port_takes_effect(a: Upstream, reign: Begin) -> None:
    line = reign(build_config(a.table()))

    line.atlas.rewrite(
        build_config(a.table(), listen={"address": "0.0.0.0", "port": line.atlas.port})
    )
    line.take_over()

    assert line.atlas.process.wait(20) == 0
    assert line.atlas.get().text == "A"
    assert not is_refused(line.atlas.port, "127.0.0.2")


def test_the_number_of_worker_processes_may_change(a: Upstream, reign: Begin) -> None:
    line = reign(build_config(a.table(), listen={"workers": 1}))
    crowd = Crowd(line.atlas, kept=2, fresh=2)

    for workers in (3, 2, 1, 2):
        line.atlas.rewrite(build_config(a.table(), listen={"workers": workers}))
        line.take_over()
        before = crowd.answers
        wait_until(lambda: crowd.answers > before + 20, "many answers")  # noqa: B023 - at once

    crowd.end()
    assert a.requests == crowd.answers


@pytest.mark.parametrize("workers", [1, 2])
def test_sessions_and_what_an_administrator_has_said_live_on(
    workers: int, a: Upstream, upstreams: contextlib.ExitStack, reign: Begin
) -> None:
    b = upstreams.enter_context(named("B"))
    tables = {"sticky": {}, "admin": dict(ADMIN), "listen": {"workers": workers}}
    line = reign(build_config(a.table(), b.table(), **tables))
    admin = AdminClient(line.atlas)
    admin.wait_until_ready(workers)
    first = wait_until(lambda: ask_for("A", line.atlas), "A's turn")
    cookie = first.get("Set-Cookie").partition(";")[0]
    assert admin.steer("A", "state=drain") == 200

    line.take_over()
    assert line.atlas.process.wait(20) == 0
    admin.wait_until_ready(workers)

    assert admin.upstream("A")["kind"] == "drain"
    assert {line.atlas.get().text for _ in range(10)} == {"B"}
    assert {line.atlas.get(Cookie=cookie).text for _ in range(10)} == {"A"}


def ask_for(name: str, atlas: Atlas) -> Answer | None:
    answer = atlas.get()
    return answer if answer.text == name else None


@pytest.mark.parametrize("workers", [1, 2])
def test_the_new_one_knows_who_is_down(
    workers: int, a: Upstream, upstreams: contextlib.ExitStack, reign: Begin
) -> None:
    b = upstreams.enter_context(named("B"))
    check = {"interval": 0.2, "fall": 2}
    text = build_config(a.table(), b.table(), health_check=check, listen={"workers": workers})
    line = reign(text)
    b.close()
    line.atlas.wait_for("upstream B is down", times=workers)

    line.take_over()
    assert line.atlas.process.wait(20) == 0

    assert {line.atlas.get().text for _ in range(20)} == {"A"}


def test_a_second_signal_while_the_new_one_starts_is_one_too_many(
    a: Upstream, reign: Begin
) -> None:
    line = reign(build_config(a.table()), prefix=HELD)

    successor = line.begin()
    os.kill(line.pid, signal.SIGUSR2)

    line.atlas.wait_for(f"SIGUSR2: process {successor} is starting already")
    Path(f"{line.atlas.path}.go").touch()
    line.atlas.wait_for(f"process {successor} serves")
    assert line.atlas.process.wait(20) == 0
    assert line.atlas.get().text == "A"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_end_ends_one_that_is_just_starting_too(workers: int, a: Upstream, reign: Begin) -> None:
    line = reign(build_config(a.table(), listen={"workers": workers}), prefix=HELD)

    successor = line.begin()
    line.atlas.send_signal(signal.SIGTERM)

    assert line.atlas.process.wait(20) == 0
    Path(f"{line.atlas.path}.go").touch()
    wait_until(lambda: not command_of(successor), "the successor to end")
    assert is_refused(line.atlas.port)


def test_process_1_of_a_container_refuses(a: Upstream, start: Start) -> None:
    container = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    if subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace can be made here")
    atlas = start(build_config(a.table()), prefix=container)
    pid = int(Path(f"/proc/{atlas.pid}/task/{atlas.pid}/children").read_text())

    os.kill(pid, signal.SIGUSR2)

    atlas.wait_for("SIGUSR2 is refused: a container ends with its process 1")
    assert atlas.get().text == "A"
    os.kill(pid, signal.SIGTERM)
    assert atlas.wait() == 0
