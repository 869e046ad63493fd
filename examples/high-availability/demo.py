"""Shows that clients hardly notice what happens to upstreams, as this folder's README says.

Starts three upstreams and Atlas on free ports, with a copy of `atlas.toml` in which most times are
shorter still, and breaks the upstreams in one way after the other: killed, stopped in the middle
of its work, answering 500, all of them gone. Run it from anywhere:
`python examples/high-availability/demo.py`. Exit status 0 when all was as it should be, else 1.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _support as support

HERE = Path(__file__).resolve().parent

# What takes seconds in the walkthrough takes parts of seconds here.
SHORTER = {
    "interval = 2.0 ": "interval = 0.3 ",
    "upstream_head = 2.0 ": "upstream_head = 1.0 ",
    "duration = 10.0 ": "duration = 1.5 ",
}

EVEN = {"Hello from one": 10, "Hello from two": 10}
ONE_ALONE = {"Hello from one": 20}


class Cluster:
    """The three upstreams, each of which may go and come back on its port."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.programs: dict[str, support.Program] = {}
        self.ports: dict[str, int] = {}
        for name in ("one", "two", "spare"):
            self.start(name)

    def start(self, name: str) -> None:
        """Start an upstream, on its old port if it had one."""
        program = support.start_upstream(name, self.ports.get(name, 0))
        self.programs[name] = self._stack.enter_context(program)
        self.ports[name] = program.wait_until_listening()

    def set_status(self, name: str, status: int) -> None:
        """Have an upstream give all its answers that status."""
        url = f"http://127.0.0.1:{self.ports[name]}/status"
        request = urllib.request.Request(url, str(status).encode(), method="PUT")
        with support.OPENER.open(request, timeout=support.PATIENCE):
            pass


def main() -> None:
    """Go through the walkthrough of the README, one step after the other."""
    with contextlib.ExitStack() as stack:
        cluster = Cluster(stack)
        atlas = stack.enter_context(support.Atlas(configure(cluster.ports)))
        support.expect("20 requests, all well", ask(atlas), EVEN)

        show_kill(cluster, atlas)
        show_stop(cluster, atlas)
        show_status_500(cluster, atlas)
        show_all_gone(cluster, atlas)

        atlas.send_signal(signal.SIGUSR1)
        print("    " + atlas.wait_until_said(" one  "))
        support.expect("exit status after SIGTERM", atlas.terminate(), 0)


def configure(ports: dict[str, int]) -> str:
    """The example's configuration with the ports and the times of this run."""
    configuration = (HERE / "atlas.toml").read_text(encoding="utf-8")
    changes = {8080: 0, 3001: ports["one"], 3002: ports["two"], 3003: ports["spare"]}
    for old, new in changes.items():
        configuration = configuration.replace(f"port = {old}\n", f"port = {new}\n")
    for usual, shorter in SHORTER.items():
        configuration = configuration.replace(usual, shorter)
    return configuration


def show_kill(cluster: Cluster, atlas: support.Atlas) -> None:
    """One upstream is killed: nobody notices. It comes back: it is asked little by little."""
    cluster.programs["two"].kill()
    support.expect("the same with two killed: nobody notices", ask(atlas), ONE_ALONE)
    print("    " + atlas.wait_until_said("upstream two is down: connect refused"))
    cluster.start("two")
    wait_until_up(atlas, times=1)
    print(f"    two is back, and begins slowly: {ask(atlas)}")
    wait_until_even(atlas)


def show_stop(cluster: Cluster, atlas: support.Atlas) -> None:
    """One upstream stops in the middle of its work, connections open: a request or two are slow."""
    cluster.programs["two"].stop()
    began = time.monotonic()
    support.expect("the same with two stopped: some wait, none fails", ask(atlas), ONE_ALONE)
    print(f"    all 20 took {time.monotonic() - began:.1f} s")
    print("    " + atlas.wait_until_said("upstream two is down: no answer in time"))
    cluster.programs["two"].send_signal(signal.SIGCONT)
    wait_until_up(atlas, times=2)
    wait_until_even(atlas)


def show_status_500(cluster: Cluster, atlas: support.Atlas) -> None:
    """One upstream answers 500: clients see it, until the circuit breaker opens."""
    cluster.set_status("two", 500)
    found = ask(atlas)
    print(f"    20 requests, two answers 500: {found}")
    # Three, or a few more if a health check from just before closes the breaker again.
    support.expect("two was spared most of its ten", found.get("500", 0) < 7, True)
    print("    " + atlas.wait_until_said("upstream two is down: status 500"))
    support.expect("20 more", ask(atlas), ONE_ALONE)
    cluster.set_status("two", 200)
    wait_until_up(atlas, times=3)
    wait_until_even(atlas)


def show_all_gone(cluster: Cluster, atlas: support.Atlas) -> None:
    """Both ordinary upstreams are gone: the spare one serves. It goes too: 503, soon said."""
    cluster.programs["one"].kill()
    cluster.programs["two"].kill()
    seconds = support.wait_until_fetched(atlas.url, "Hello from spare")
    print(f"    with one and two killed, spare stepped in after {seconds:.1f} s")
    support.expect("20 requests", ask(atlas), {"Hello from spare": 20})

    cluster.programs["spare"].kill()
    seconds = support.wait_until_fetched(atlas.url, "503")
    print(f"    with all killed, 503 came after {seconds:.1f} s")
    support.expect("its Retry-After", read_retry_after(atlas.url), "5")

    cluster.start("one")
    seconds = support.wait_until_fetched(atlas.url, "Hello from one")
    print(f"    one was back in rotation after {seconds:.1f} s")
    support.expect("20 requests", ask(atlas), ONE_ALONE)


def ask(atlas: support.Atlas) -> dict[str, int]:
    """Ask twenty times, and count the different answers."""
    return dict(support.fetch_often(atlas.url, 20))


def wait_until_up(atlas: support.Atlas, *, times: int) -> None:
    """Wait until Atlas has said so often that `two` is up."""
    print("    " + atlas.wait_until_said("upstream two is up", times=times))


def wait_until_even(atlas: support.Atlas) -> None:
    """Wait until `two` has its full share again, that is, for the end of its slow start."""
    deadline = time.monotonic() + support.PATIENCE
    while (found := ask(atlas)) != EVEN:
        if time.monotonic() > deadline:
            raise support.DemoFailed(f"two does not get its share: {found}")
    support.expect("20 requests a little later", found, EVEN)


def read_retry_after(url: str) -> str | None:
    """Fetch `url`, and return after how many seconds to come again."""
    try:
        with support.OPENER.open(url, timeout=support.PATIENCE):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return error.headers["Retry-After"]


if __name__ == "__main__":
    sys.exit(support.run(main))
