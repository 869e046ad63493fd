"""Several processes on one port: what clients, operators and the kernel's queue get from them.

Most tests run the program with two worker processes and ask the system who holds which connection.
Those at the end run the supervisor alone, with toys for worker processes.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atlas_pkg.control.process import count_processes
from atlas_pkg.control.supervisor import (
    LONGEST_PAUSE,
    MOST_UNANSWERED,
    SIGN_INTERVAL,
    STEADY_LIFE,
    Backoff,
)
from tests.fakes import Conversation, Upstream, build_answer, named
from tests.functional.admin_client import ADMIN, AdminClient
from tests.toolkit import (
    ROOT,
    Atlas,
    Client,
    Cut,
    Program,
    build_config,
    find_program,
    free_port,
    wait_until,
)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="who holds which connection is asked of Linux"
)

Start = Callable[..., Atlas]

# So many that each of two processes gets some, but for one time in a hundred million.
CLIENTS = 28


@pytest.fixture
def upstreams() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def a(upstreams: contextlib.ExitStack) -> Upstream:
    return upstreams.enter_context(named("A"))


class Held:
    """An upstream that answers when the test says so."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.upstream = Upstream(self._serve)

    def _serve(self, conversation: Conversation) -> None:
        while conversation.read_head():
            self.upstream.count()
            self.release.wait(30)
            conversation.send(build_answer(b"held"))


@pytest.fixture
def held(upstreams: contextlib.ExitStack) -> Held:
    held = Held()
    upstreams.enter_context(held.upstream)
    upstreams.callback(held.release.set)
    return held


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start Atlas, with two worker processes unless told otherwise."""
    with contextlib.ExitStack() as running:

        def start_atlas(
            *tables: dict[str, object],
            listen: dict[str, object] | None = None,
            prefix: tuple[str, ...] = (),
            **more: dict[str, object],
        ) -> Atlas:
            path = tmp_path / "atlas.toml"
            path.write_text(build(*tables, listen=listen, **more))
            atlas = running.enter_context(Atlas(path, prefix=prefix))
            return atlas.wait_until_listening()

        yield start_atlas


def build(
    *tables: dict[str, object], listen: dict[str, object] | None = None, **more: dict[str, object]
) -> str:
    return build_config(*tables, listen={"workers": 2, **(listen or {})}, **more)


def pid_of(atlas: Atlas, number: int, life: int = 1) -> int:
    """The process id of a worker process, or of its nth successor."""
    line = atlas.wait_for(f"worker {number} is process ", times=life)
    return int(line.rpartition(" ")[2])


def pids_of(atlas: Atlas) -> list[int]:
    return [pid_of(atlas, 1), pid_of(atlas, 2)]


def has_ended(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text.rpartition(") ")[2][0] == "Z"  # nobody may be there to bury it


def stop(pid: int) -> None:
    """Have a process stand still."""
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(") ")[2][0] == "T", "the process to stop")


def client_ports(pid: int, port: int) -> set[int]:
    """The ports of the clients whose connections a process holds."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, _, _, _, _, _, inode, *_ = line.split()
        if int(local.partition(":")[2], 16) == port and f"socket:[{inode}]" in links:
            ports.add(int(remote.partition(":")[2], 16))
    return ports - {0}  # that is the listening socket


def own_port(client: Client) -> int:
    return int(client.sock.getsockname()[1])


def connect(stack: contextlib.ExitStack, atlas: Atlas, count: int = CLIENTS) -> list[Client]:
    return [stack.enter_context(atlas.client()) for _ in range(count)]


def begin_requests(stack: contextlib.ExitStack, atlas: Atlas, upstream: Upstream) -> list[Client]:
    """Have requests under way in both processes; returns when their upstream has them all."""
    clients = connect(stack, atlas)
    for client in clients:
        client.send_head()
    wait_until(lambda: upstream.requests == CLIENTS, "the requests to arrive")
    return clients


def test_two_processes_serve_and_both_get_clients(a: Upstream, start: Start) -> None:
    atlas = start(a.table())

    with contextlib.ExitStack() as stack:
        clients = connect(stack, atlas)

        assert {client.get().text for client in clients} == {"A"}
        shares = [client_ports(pid, atlas.port) for pid in pids_of(atlas)]
        assert all(shares)
        assert sorted([*shares[0], *shares[1]]) == sorted(map(own_port, clients))
    assert atlas.count("listening on") == 1
    assert atlas.threads == 1


def test_one_process_needs_no_supervisor(a: Upstream, start: Start) -> None:
    atlas = start(a.table(), listen={"workers": 1})

    assert atlas.get().text == "A"
    assert atlas.threads > 1
    assert "worker 1" not in atlas.log


def test_0_is_one_per_cpu() -> None:
    assert count_processes(0) == len(os.sched_getaffinity(0))
    assert count_processes(3) == 3


def cpus_of(pid: int) -> str:
    found = re.search(r"Cpus_allowed_list:\s*(\S+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return found[1]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="only one CPU may be used here")
def test_each_process_is_held_to_a_cpu_of_its_own(a: Upstream, start: Start) -> None:
    atlas = start(a.table(), listen={"workers": 3})
    with contextlib.ExitStack() as stack:
        # Whoever has answered has been through its start.
        pids = [pid_of(atlas, number) for number in (1, 2, 3)]
        clients = connect(stack, atlas, 3 * CLIENTS)
        assert {client.get().text for client in clients} == {"A"}

        allowed = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]
        assert [cpus_of(pid) for pid in pids] == [*allowed, *allowed][:3]
        assert cpus_of(atlas.pid) == cpus_of(os.getpid())


def test_processes_may_run_anywhere_when_not_pinned(a: Upstream, start: Start) -> None:
    atlas = start(a.table(), listen={"pin": False})
    with contextlib.ExitStack() as stack:
        assert {client.get().text for client in connect(stack, atlas)} == {"A"}

        assert {cpus_of(pid) for pid in pids_of(atlas)} == {cpus_of(os.getpid())}


def test_a_killed_process_loses_only_its_own_requests_and_is_replaced(
    held: Held, start: Start
) -> None:
    atlas = start(held.upstream.table())

    with contextlib.ExitStack() as stack:
        clients = begin_requests(stack, atlas, held.upstream)
        doomed = client_ports(pid_of(atlas, 1), atlas.port)
        os.kill(pid_of(atlas, 1), signal.SIGKILL)
        pid_of(atlas, 1, life=2)
        held.release.set()

        lost = set()
        for client in clients:
            try:
                assert client.read_answer().text == "held"
            except (Cut, ConnectionError):
                lost.add(own_port(client))
        assert lost == doomed
        assert {client.get().text for client in connect(stack, atlas)} == {"held"}
    assert "worker 1 " in atlas.wait_for("has died: signal SIGKILL; starting another at once")


def test_clients_in_the_queue_of_a_dead_process_wait_for_the_next_one(
    a: Upstream, upstreams: contextlib.ExitStack, start: Start
) -> None:
    b = upstreams.enter_context(named("B"))
    atlas = start(a.table())
    atlas.rewrite(build(b.table()))
    atlas.wait_for("Configuration hot-reloaded", times=2)

    with contextlib.ExitStack() as stack:
        stop(pid_of(atlas, 1))
        clients = connect(stack, atlas)
        for client in clients:
            client.send_head()
        os.kill(pid_of(atlas, 1), signal.SIGKILL)

        # And it begins with the configuration that is in force, not that of the start.
        assert {client.read_answer().text for client in clients} == {"B"}
        assert client_ports(pid_of(atlas, 1, life=2), atlas.port)
    assert a.requests == 0


def test_a_new_process_begins_with_what_is_in_force_though_the_file_is_broken(
    a: Upstream, upstreams: contextlib.ExitStack, start: Start
) -> None:
    b = upstreams.enter_context(named("B"))
    atlas = start(a.table())
    atlas.rewrite(build(b.table()))
    atlas.wait_for("Configuration hot-reloaded", times=2)
    atlas.rewrite("garbage [[[")
    atlas.wait_for("Configuration refused", times=2)

    os.kill(pid_of(atlas, 1), signal.SIGKILL)
    pid_of(atlas, 1, life=2)

    with contextlib.ExitStack() as stack:
        assert {client.get().text for client in connect(stack, atlas)} == {"B"}
        assert client_ports(pid_of(atlas, 1, life=2), atlas.port)
    atlas.wait_for("Configuration refused", times=3)  # it says so, too
    assert a.requests == 0


# Stands before the command that it is the prefix of: the same program, with a hasty supervisor.
HASTY = """
import sys
from atlas_pkg.control.supervisor import Supervisor
from atlas_pkg.main import main
Supervisor.__init__.__kwdefaults__["sign_interval"] = 0.4
sys.exit(main(sys.argv[5:]))
"""


def test_a_process_that_hangs_is_killed_and_replaced(a: Upstream, start: Start) -> None:
    atlas = start(a.table(), admin=dict(ADMIN), prefix=(sys.executable, "-W", "error", "-c", HASTY))
    admin = AdminClient(atlas)
    admin.wait_until_ready(2)
    hung = pid_of(atlas, 1)

    stop(hung)
    assert hung not in admin.stats()["pids"]
    assert admin.ask("/-/ready") == (200, "ready: 1 of 1 upstreams usable\n")
    line = atlas.wait_for("gives no sign of life for 2 s: killed")

    assert f"worker 1 (process {hung})" in line
    atlas.wait_for("has died: signal SIGKILL; starting another at once")
    admin.wait_until_ready(2)
    with contextlib.ExitStack() as stack:
        assert {client.get().text for client in connect(stack, atlas)} == {"A"}
    assert atlas.count("no sign of life") == 1


def test_ten_seconds_without_a_sign_of_life_are_too_many() -> None:
    assert SIGN_INTERVAL * MOST_UNANSWERED == 10


def test_a_process_that_keeps_dying_is_started_after_a_pause(a: Upstream, start: Start) -> None:
    atlas = start(a.table())

    os.kill(pid_of(atlas, 2), signal.SIGKILL)
    os.kill(pid_of(atlas, 2, life=2), signal.SIGABRT)

    assert "worker 2 " in atlas.wait_for("has died: signal SIGABRT; starting another in 0.5 s")
    pid_of(atlas, 2, life=3)
    assert atlas.count("worker 1 is process") == 1


def test_a_reload_reaches_all(a: Upstream, upstreams: contextlib.ExitStack, start: Start) -> None:
    b = upstreams.enter_context(named("B"))
    atlas = start(a.table())

    with contextlib.ExitStack() as stack:
        clients = connect(stack, atlas)
        assert {client.get().text for client in clients} == {"A"}
        atlas.rewrite(build(b.table()))
        atlas.wait_for("Configuration hot-reloaded", times=2)

        assert {client.get().text for client in clients} == {"B"}
    for number in (1, 2):
        assert f"[worker {number}] atlas: Configuration hot-reloaded" in atlas.log


def test_sighup_is_passed_on(a: Upstream, start: Start) -> None:
    atlas = start(a.table())
    pids_of(atlas)

    atlas.send_signal(signal.SIGHUP)

    for number in (1, 2):
        atlas.wait_for(f"[worker {number}] atlas: configuration unchanged")


def is_refused(atlas: Atlas) -> bool:
    try:
        atlas.client().close()
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_all_finish(number: signal.Signals, held: Held, start: Start) -> None:
    atlas = start(held.upstream.table())

    with contextlib.ExitStack() as stack:
        clients = begin_requests(stack, atlas, held.upstream)
        # As a terminal and a service manager do it: everybody is told, not the supervisor alone.
        for pid in (*pids_of(atlas), atlas.pid):
            os.kill(pid, number)
        atlas.wait_for("draining: no new clients", times=2)
        wait_until(lambda: is_refused(atlas), "the last listener to be closed")
        held.release.set()

        assert {client.read_answer().text for client in clients} == {"held"}
    assert atlas.wait() == 0
    assert all(has_ended(pid) for pid in pids_of(atlas))


def test_two_signals_at_once_cut_all(held: Held, start: Start) -> None:
    atlas = start(held.upstream.table())

    with contextlib.ExitStack() as stack:
        clients = begin_requests(stack, atlas, held.upstream)
        atlas.send_signal(signal.SIGTERM)
        atlas.send_signal(signal.SIGINT)

        assert atlas.wait() == 1
        assert all(client.is_closed() for client in clients)
    assert atlas.count("had to be cut") == 2


def test_a_process_that_died_is_not_replaced_during_the_drain(held: Held, start: Start) -> None:
    atlas = start(held.upstream.table())

    with contextlib.ExitStack() as stack:
        begin_requests(stack, atlas, held.upstream)
        atlas.send_signal(signal.SIGTERM)
        atlas.wait_for("draining: no new clients", times=2)
        os.kill(pid_of(atlas, 1), signal.SIGKILL)
        atlas.wait_for("has ended: signal SIGKILL")
        held.release.set()

        assert atlas.wait() == 1
    assert atlas.count("worker 1 is process") == 1


def test_without_a_supervisor_all_finish_and_end(held: Held, start: Start) -> None:
    atlas = start(held.upstream.table(), listen={"port": free_port()})

    with contextlib.ExitStack() as stack:
        clients = begin_requests(stack, atlas, held.upstream)
        pids = pids_of(atlas)
        atlas.send_signal(signal.SIGKILL)
        atlas.wait_for("the supervisor is gone", times=2)
        atlas.wait_for("draining: no new clients", times=2)
        held.release.set()

        assert {client.read_answer().text for client in clients} == {"held"}
        wait_until(lambda: all(map(has_ended, pids)), "the worker processes to end")
    with socket.create_server(("127.0.0.1", atlas.port)):
        pass


def test_the_port_of_another_atlas_is_in_use(a: Upstream, start: Start, tmp_path: Path) -> None:
    first = start(a.table())
    path = tmp_path / "second.toml"
    path.write_text(build(a.table(), listen={"port": first.port}))

    second = Program([sys.executable, "-W", "error", ROOT / "atlas.py", path])

    assert second.wait() == 1
    assert len(second.lines) == 1
    assert f"127.0.0.1:{first.port}: the port is in use by another program" in second.log


def test_too_few_open_files_are_told_once(a: Upstream, start: Start) -> None:
    prlimit = find_program("prlimit")
    if prlimit is None:
        pytest.skip("prlimit is not installed")
    atlas = start(a.table(), prefix=(prlimit, "--nofile=100:1000"))

    told = atlas.wait_for("open files are limited to 1000")
    assert "468 clients at once, not listen.max_connections = 4096" in told
    assert atlas.get().text == "A"
    assert atlas.count("open files") == 1


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff()

    assert [backoff.next_pause(1.0) for _ in range(8)] == [0, 0.5, 1, 2, 4, 8, 10, LONGEST_PAUSE]


def test_a_long_life_makes_the_next_death_a_first_one() -> None:
    backoff = Backoff()
    for _ in range(4):
        backoff.next_pause(1.0)

    assert backoff.next_pause(STEADY_LIFE) == 0
    assert backoff.next_pause(1.0) == 0.5


TOY = """
import socket, sys
from atlas_pkg import logs
from atlas_pkg.control import supervisor

def serve(number, listeners, orders):
    {body}

logs.set_up("info")
listener = socket.create_server(("127.0.0.1", 0))
sys.exit(not supervisor.Supervisor(1, [listener], serve, sign_interval={sign_interval}).run())
"""


@contextlib.contextmanager
def running_toy(body: str, *, sign_interval: float = SIGN_INTERVAL) -> Iterator[Program]:
    """Run a supervisor of one worker process that does `body`."""
    toy = TOY.format(body=body, sign_interval=sign_interval)
    program = Program([sys.executable, "-W", "error", "-c", toy], cwd=ROOT)
    try:
        yield program
    finally:
        program.end()


def test_a_process_that_fails_tells_why_and_is_replaced() -> None:
    with running_toy("raise ValueError('toy')") as program:
        program.wait_for("worker 1 is process", times=2)
        program.wait_for("has died: exit status 1; starting another in 0.5 s")
        program.send_signal(signal.SIGTERM)

        # Nobody was there to be ended, so nothing was lost.
        assert program.wait() == 0
    assert "ValueError: toy" in program.log


def test_a_process_that_hangs_does_not_keep_the_others_from_ending() -> None:
    body = "import threading; threading.Event().wait()"
    with running_toy(body, sign_interval=0.2) as program:
        program.wait_for("worker 1 is process")
        program.send_signal(signal.SIGTERM)

        assert program.wait() == 1
    assert "gives no sign of life" in program.log


def test_a_process_that_is_not_well_gives_no_signs_of_life() -> None:
    body = "return orders.wait(lambda: False) is None"
    with running_toy(body, sign_interval=0.05) as program:
        program.wait_for("gives no sign of life")


def test_whoever_gives_signs_of_life_lives_on() -> None:
    body = "return [orders.wait(), orders.wait()] is None"
    with running_toy(body, sign_interval=0.4) as program:
        program.wait_for("worker 1 is process")
        program.send_signal(signal.SIGHUP)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.process.wait(0.5 + 0.4 * MOST_UNANSWERED)
        program.send_signal(signal.SIGTERM)

        program.wait()
    assert "no sign of life" not in program.log
