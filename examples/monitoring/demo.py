"""Shows what Atlas tells those who watch it, as this folder's README says.

Starts three upstreams and Atlas on free ports, with a copy of `atlas.toml` in which health checks
come more often, and looks at the metrics, the readiness, the access log and the page while an
upstream dies, another is drained and a broken configuration is refused. Prometheus is not needed.
Run it from anywhere: `python examples/monitoring/demo.py`. Exit status 0 when all was as it should
be, else 1.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _support as support

HERE = Path(__file__).resolve().parent
NAMES = ("one", "two", "three")

TOKEN = "open-sesame"  # that of atlas.toml


class Admin:
    """Asks the admin address of Atlas, as Prometheus and administrators do."""

    def __init__(self, atlas: support.Atlas) -> None:
        line = atlas.wait_until_said("admin address ")
        self._url = line.rpartition(" ")[2]

    def fetch(self, path: str) -> str:
        """Fetch a page; returns its text, whatever the status."""
        try:
            with support.OPENER.open(self._url + path, timeout=support.PATIENCE) as answer:
                return str(answer.read().decode()).strip()
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode().strip()

    def read_metrics(self) -> dict[str, float]:
        """Scrape once; returns the value of every sample by its name and labels, as written."""
        lines = self.fetch("/metrics").splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def wait_until_metric(self, name: str, value: float) -> None:
        """Scrape until a sample has that value."""
        deadline = time.monotonic() + support.PATIENCE
        while (found := self.read_metrics().get(name)) != value:
            if time.monotonic() > deadline:
                raise support.DemoFailed(f"{name}: expected {value:g}, last seen: {found}")
            time.sleep(0.05)
        print(f"ok  {name} {value:g}")

    def steer(self, name: str, change: str) -> str:
        """Change an upstream as an administrator does."""
        request = urllib.request.Request(f"{self._url}/-/upstreams/{name}", change.encode())
        request.add_header("Authorization", f"Bearer {TOKEN}")
        with support.OPENER.open(request, timeout=support.PATIENCE) as answer:
            return str(answer.read().decode()).strip()


def main() -> None:
    """Go through what the README shows, one step after the other."""
    with contextlib.ExitStack() as stack:
        upstreams = {name: stack.enter_context(support.start_upstream(name)) for name in NAMES}
        ports = {name: upstream.wait_until_listening() for name, upstream in upstreams.items()}
        atlas = stack.enter_context(support.Atlas(configure(ports)))
        admin = Admin(atlas)

        show_health(atlas, admin)
        upstreams["two"].kill()
        show_death(atlas, admin)
        show_drain(atlas, admin)
        show_refusal(atlas, admin)

        for name in ("one", "three"):
            upstreams[name].kill()
        show_nobody_left(atlas, admin)
        support.expect("exit status after SIGTERM", atlas.terminate(), 0)


def configure(ports: dict[str, int]) -> str:
    """The example's configuration with the ports and the times of this run."""
    configuration = (HERE / "atlas.toml").read_text(encoding="utf-8")
    changes = {8080: 0, 9191: 0, 3001: ports["one"], 3002: ports["two"], 3003: ports["three"]}
    for old, new in changes.items():
        configuration = configuration.replace(f"port = {old}", f"port = {new}")
    return configuration.replace("interval = 1.0 ", "interval = 0.5 ")


def show_health(atlas: support.Atlas, admin: Admin) -> None:
    """All is well: every upstream has its share, and the access log its lines."""
    found = dict(support.fetch_often(atlas.url, 9))
    support.expect("9 requests", found, {f"Hello from {name}": 3 for name in NAMES})
    for name in NAMES:
        admin.wait_until_metric(
            f'atlas_requests_total{{group="default",upstream="{name}",code_class="2xx"}}', 3
        )
    support.expect("readiness", admin.fetch("/-/ready"), "ready: 3 of 3 upstreams usable")
    line = json.loads(atlas.wait_until_said('"end":"done"'))
    print(f"    the access log: {line['method']} {line['target']}, answered by {line['upstream']}")


def show_death(atlas: support.Atlas, admin: Admin) -> None:
    """One upstream is killed: clients notice nothing, those who watch do."""
    found = set(support.fetch_often(atlas.url, 9))
    support.expect("9 with two killed", found <= {"Hello from one", "Hello from three"}, True)
    print("    " + atlas.wait_until_said("upstream two is down: connect refused"))
    admin.wait_until_metric('atlas_upstream_up{group="default",upstream="two"}', 0)
    metrics = admin.read_metrics()
    failures = metrics[
        'atlas_upstream_failures_total{group="default",upstream="two",reason="connect-failed"}'
    ]
    support.expect(
        "as many retries as failures",
        failures,
        metrics['atlas_retries_total{group="default",upstream="two"}'],
    )
    support.expect("readiness", admin.fetch("/-/ready"), "ready: 2 of 3 upstreams usable")
    line = json.loads(atlas.wait_until_said('"retries":1'))
    print(f"    the access log: tried again once, then answered by {line['upstream']}")


def show_drain(atlas: support.Atlas, admin: Admin) -> None:
    """Another is taken out by hand, which no alert takes for a death, and is put back."""
    support.expect("steering one", admin.steer("one", "state=drain"), "done: state drain")
    support.expect("9 requests", dict(support.fetch_often(atlas.url, 9)), {"Hello from three": 9})
    admin.wait_until_metric('atlas_upstream_up{group="default",upstream="one"}', 0)
    admin.wait_until_metric('atlas_upstream_state{group="default",upstream="one",state="drain"}', 1)
    admin.wait_until_metric('atlas_upstream_state{group="default",upstream="two",state="down"}', 1)
    kinds = {
        row["name"]: row["kind"] for row in json.loads(admin.fetch("/stats.json"))["upstreams"]
    }
    expected = {"one": "drain", "two": "down", "three": "up"}
    support.expect("what /stats.json says", kinds, expected)
    support.expect("steering one", admin.steer("one", "state=ready"), "done: state ready")
    admin.wait_until_metric('atlas_upstream_up{group="default",upstream="one"}', 1)


def show_refusal(atlas: support.Atlas, admin: Admin) -> None:
    """A slip in the configuration is refused and told everywhere, and then put right."""
    good = atlas.path.read_text(encoding="utf-8")
    atlas.path.write_text(f"{good}weigth = 2\n", encoding="utf-8")
    print("    " + atlas.wait_until_said("did you mean"))
    admin.wait_until_metric("atlas_config_last_reload_success", 0)
    admin.wait_until_metric('atlas_config_reloads_total{result="failure"}', 1)
    text = admin.fetch("/status.txt")
    support.expect("in the text", "REFUSED" in text, True)

    atlas.path.write_text(f"{good}weight = 2\n", encoding="utf-8")
    print("    " + atlas.wait_until_said("Configuration hot-reloaded"))
    admin.wait_until_metric("atlas_config_last_reload_success", 1)
    admin.wait_until_metric('atlas_upstream_weight{group="default",upstream="three"}', 2)


def show_nobody_left(atlas: support.Atlas, admin: Admin) -> None:
    """The last upstreams are gone: 503, and whoever balances between machines is told as well."""
    seconds = support.wait_until_fetched(atlas.url, "503")
    print(f"    with all killed, 503 came after {seconds:.1f} s")
    admin.wait_until_metric(
        'atlas_upstream_failures_total{group="default",upstream="-",reason="no-upstream"}', 1
    )
    support.expect("readiness", admin.fetch("/-/ready"), "not ready: no upstream is usable")


if __name__ == "__main__":
    sys.exit(support.run(main))
