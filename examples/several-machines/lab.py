"""Two machines and a client in network namespaces: what is lost when one of the machines is.

    sudo .venv/bin/python examples/several-machines/lab.py vrrp|ecmp|agree

Wants Linux, root, and the packages keepalived, nftables, iproute2, iputils-ping, curl. All that it
makes has names of its own and is gone when it ends. Each machine runs Atlas with `machine.toml` and
three upstreams; the client asks on connections that it keeps, and on new ones, a hundred times a
second in all. What it prints is what README.md quotes.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

ADDRESS = "10.9.0.100"  # the virtual one
OWN = {"a": "10.9.0.1", "b": "10.9.0.2", "c": "10.9.0.10"}  # the machines, and the client
UPSTREAMS = {"one": 3001, "two": 3002, "three": 3003}

PREFIX = f"atlas{os.getpid()}"
PATIENCE = 5.0  # of a client, in all


def run(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr}")
    return done.stdout


def inside(name: str, command: str) -> str:
    return run(f"ip netns exec {PREFIX}{name} {command}")


@contextlib.contextmanager
def network() -> Iterator[None]:
    """A switch, and three namespaces that are connected with it, each by its eth0."""
    names = ["s", *OWN]
    try:
        for name in names:
            run(f"ip netns add {PREFIX}{name}")
            inside(name, "ip link set lo up")
        inside("s", "ip link add switch type bridge")
        inside("s", "ip link set switch up")
        for name, address in OWN.items():
            run(f"ip -n {PREFIX}{name} link add eth0 type veth peer name to-{name} netns {PREFIX}s")
            inside(name, f"ip address add {address}/24 dev eth0")
            inside(name, "ip link set eth0 up")
            inside("s", f"ip link set to-{name} up master switch")
        yield
    finally:
        for name in names:
            subprocess.run(
                ["ip", "netns", "delete", f"{PREFIX}{name}"], capture_output=True, check=False
            )


class Machine:
    """Atlas and its upstreams, and keepalived where it is wanted."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.peer = OWN["b" if name == "a" else "a"]
        self._folder = folder / name
        self._folder.mkdir(exist_ok=True)
        self._all: list[subprocess.Popen[bytes]] = []
        for upstream, port in UPSTREAMS.items():
            self.start(f"{sys.executable} {ROOT}/examples/upstream.py {upstream} {port}")
        self.atlas = self.start_atlas()

    def start(self, command: str) -> subprocess.Popen[bytes]:
        log = (self._folder / "log").open("ab")
        with log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", f"{PREFIX}{self.name}", *command.split()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._all.append(process)
        return process

    def start_atlas(self) -> subprocess.Popen[bytes]:
        self.atlas = self.start(f"{sys.executable} {ROOT}/atlas.py {HERE}/machine.toml")
        wait_for(self.is_ready, "Atlas")
        return self.atlas

    def start_keepalived(self, priority: int, *, with_second_chance: bool = True) -> None:
        text = (HERE / "keepalived.conf").read_text()
        if not with_second_chance:
            self.second_chance("off")
            text = "".join(line for line in text.splitlines(True) if "second-chance" not in line)
        for word, value in (
            ("PRIORITY", str(priority)),
            ("PEER", self.peer),
            ("FOLDER", str(HERE)),
        ):
            text = text.replace(word, value)
        conf = self._folder / "keepalived.conf"
        conf.write_text(text)
        pids = " ".join(
            f"-{letter} {self._folder}/{kind}.pid"
            for letter, kind in (("p", "main"), ("r", "vrrp"))
        )
        self.start(f"keepalived -n -l -P -f {conf} {pids}")

    def second_chance(self, what: str) -> None:
        inside(self.name, f"{HERE}/second-chance.sh {what} {ADDRESS} {self.peer}")

    def is_ready(self) -> bool:
        """As keepalived asks it, or whoever announces a route."""
        ask = (
            f"ip netns exec {PREFIX}{self.name} curl -fs -o /dev/null -m 0.9 127.0.0.1:9090/-/ready"
        )
        return subprocess.run(ask.split(), check=False).returncode == 0

    def has_address(self) -> bool:
        return ADDRESS in inside(self.name, "ip -4 -o address show dev eth0")

    def end(self) -> None:
        for process in reversed(self._all):
            process.terminate()
        for process in self._all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
                continue
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(0.05)


@contextlib.contextmanager
def machines() -> Iterator[tuple[Machine, Machine]]:
    with tempfile.TemporaryDirectory() as folder, network(), contextlib.ExitStack() as stack:
        both = []
        for name in ("a", "b"):
            both.append(Machine(name, Path(folder)))
            stack.callback(both[-1].end)
            both[-1].second_chance("on")
        try:
            yield both[0], both[1]
        except BaseException:
            for log in Path(folder).glob("*/log"):
                print(log, log.read_text()[-3000:], sep="\n")
            raise


# The client. It runs in a process of its own, which enters the namespace.


class Crowd:
    """Clients who ask all the while: some on connections that they keep, some on new ones.

    Others ask for what takes two seconds.
    """

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._answered: list[float] = []
        self._lost: Counter[str] = Counter()

    def run(self) -> str:
        kinds = ["kept", "new"] * 10 + ["slow"] * 10
        threads = [
            threading.Thread(target=self._ask, args=(kind, number))
            for number, kind in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        times = sorted(self._answered)
        asked = len(times) + sum(self._lost.values())
        times = [instant for instant in times if instant < self._until]
        gap = max((later - sooner for sooner, later in itertools.pairwise(times)), default=0.0)
        lost = ", ".join(f"{count} {why}" for why, count in self._lost.items()) or "none"
        return f"{asked} asked, lost: {lost}; longest time without any answer {gap:.2f} s"

    def _ask(self, kind: str, number: int) -> None:
        connection = None
        while time.monotonic() < self._until:
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(ADDRESS, timeout=PATIENCE)
                headers = {"X-User": str(number)} | (
                    {} if kind == "kept" else {"Connection": "close"}
                )
                connection.request("GET", "/wait/2" if kind == "slow" else "/", headers=headers)
                with connection.getresponse() as answer:
                    is_good = answer.status == 200 and answer.read().startswith(b"Hello from")
                with self._lock:
                    if is_good:
                        self._answered.append(time.monotonic())
                    else:
                        self._lost[f"status {answer.status}"] += 1
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self._lost[f"{type(error).__name__} ({kind})"] += 1
                connection = None
                time.sleep(0.02)
            else:
                if connection.sock is None:
                    connection = None
            time.sleep(0.18)


def with_clients(what: str, event: Callable[[], object], seconds: float = 14.0) -> None:
    """Have clients ask, let something happen after three seconds, and print what they felt."""
    crowd = subprocess.Popen(
        ["ip", "netns", "exec", f"{PREFIX}c", sys.executable, __file__, "crowd", str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(3)
    event()
    said, _ = crowd.communicate(timeout=seconds + 30)
    print(f"{what:34} {said.strip()}", flush=True)


# What is tried


def master_of(both: tuple[Machine, Machine]) -> Machine:
    """Whose is the address?"""
    wait_for(lambda: sum(one.has_address() for one in both) == 1, "one with the address")
    time.sleep(2)  # and the other one has heard of it
    return next(one for one in both if one.has_address())


def try_vrrp() -> None:
    with machines() as both:
        both[0].start_keepalived(101)
        both[1].start_keepalived(100)

        one = master_of(both)
        with_clients("nothing happens", lambda: None)
        with_clients("takeover (SIGUSR2)", lambda: one.atlas.send_signal(signal.SIGUSR2))
        assert master_of(both) is one
        # The successor is not our child: find it by its port.
        find = f"ip netns exec {PREFIX}{one.name} ss -Hltnp sport = :80"
        told = subprocess.run(find.split(), capture_output=True, text=True, check=True).stdout
        pid = int(told.split("pid=")[1].split(",")[0])
        one.atlas.wait(40)
        with_clients("drained (SIGTERM)", lambda: os.kill(pid, signal.SIGTERM))
        assert master_of(both) is not one
        one.start_atlas()
        time.sleep(4)
        one = master_of(both)
        with_clients("Atlas killed (SIGKILL)", one.atlas.kill)
        assert master_of(both) is not one
        one.atlas.wait(40)
        one.start_atlas()
        time.sleep(4)
        one = master_of(both)
        with_clients(
            "power cut (link down)", lambda: inside("s", f"ip link set to-{one.name} down")
        )
    with machines() as both:
        for priority, one in enumerate(both, 100):
            one.start_keepalived(priority, with_second_chance=False)
        one = master_of(both)
        with_clients("drained without second chance", lambda: one.atlas.send_signal(signal.SIGTERM))


def try_ecmp() -> None:
    with machines() as both:
        inside("c", "sysctl -qw net.ipv4.fib_multipath_hash_policy=1")
        ended = threading.Event()

        def announce() -> None:
            """What exabgp or bird do: a route to each machine that says it is ready."""
            known: list[str] = []
            while not ended.is_set():
                ready = [OWN[one.name] for one in both if one.is_ready()]
                if ready and ready != known:
                    hops = " ".join(f"nexthop via {address}" for address in ready)
                    inside("c", f"ip route replace {ADDRESS} {hops}")
                    known = ready
                ended.wait(0.5)

        announcer = threading.Thread(target=announce)
        announcer.start()
        time.sleep(2)
        try:
            with_clients("nothing happens", lambda: None)
            a, b = both
            with_clients("drained (SIGTERM)", lambda: a.atlas.send_signal(signal.SIGTERM))
            a.atlas.wait(40)
            a.start_atlas()
            time.sleep(2)
            with_clients("Atlas killed (SIGKILL)", b.atlas.kill)
        finally:
            ended.set()
            announcer.join()


def try_agreement(count: int = 10_000) -> None:
    with machines():
        told = inside("c", f"{sys.executable} {__file__} compare {count}")
        print(told.strip())


def compare(count: int) -> None:
    """Ask both machines the same, in the client's namespace."""
    a, b = (http.client.HTTPConnection(OWN[name], timeout=PATIENCE) for name in ("a", "b"))

    def ask(connection: http.client.HTTPConnection, **headers: str) -> tuple[bytes, str]:
        connection.request(
            "GET", "/", headers={name.replace("_", "-"): text for name, text in headers.items()}
        )
        with connection.getresponse() as answer:
            return answer.read(), answer.headers.get("Set-Cookie", "").partition(";")[0]

    shares: Counter[bytes] = Counter()
    same = 0
    for number in range(count):
        first, second = (ask(each, X_User=f"user-{number}")[0] for each in (a, b))
        same += first == second
        shares[first.split()[-1]] += 1
    print(f"{same} of {count} users have the same upstream at both machines", dict(shares))
    kept = 0
    for number in range(1000):
        body, cookie = ask(a, X_User=f"user-{number}")
        kept += ask(b, X_User="another", Cookie=cookie)[0] == body
    print(f"{kept} of 1000 cookies of the one machine are understood by the other")


def main() -> None:
    match sys.argv[1:]:
        case ["vrrp"]:
            try_vrrp()
        case ["ecmp"]:
            try_ecmp()
        case ["agree"]:
            try_agreement()
        case ["crowd", seconds]:
            print(Crowd(float(seconds)).run())
        case ["compare", count]:
            compare(int(count))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
