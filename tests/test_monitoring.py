"""The monitoring example fits Atlas: its alerts and its dashboard ask for what is really exported.

Metrics are those of a running Atlas to which everything has happened that they count. Rules and
queries are checked by Prometheus's own `promtool`, and asked of a real Prometheus, where
they are installed. Expressions are read from the files as text, since no parser of YAML is at hand.
"""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import named
from tests.functional.admin_client import ADMIN, TOKEN, AdminClient
from tests.toolkit import Atlas, Program, build_config, find_program, free_port, wait_until

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "monitoring"
PROMTOOL = find_program("promtool")
PROMETHEUS = find_program("prometheus")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")

# After `expr:` either the rest of the line, or a block that is indented further.
EXPRESSION = re.compile(r"^ +expr: (?:\|\n((?: {10}.*\n)+)|(.*)\n)", re.MULTILINE)
MATCHERS = re.compile(r"(\w+)\{(.*?)\}")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"(.*?)"')
LABEL_LISTS = re.compile(r"\b(?:by|on|ignoring) \((.*?)\)")
PLAIN = re.compile(r"[\w|-]+")  # of a matcher's expressions those that are a list of words
NAME = re.compile(r"[a-zA-Z_]\w*")

# What PromQL itself is written with, as far as it is used here.
WORDS = {"max", "sum", "min", "by", "on", "ignoring", "group_left", "and", "or", "unless"}
WORDS |= {"time", "rate", "increase", "changes", "absent", "histogram_quantile"}

# What Prometheus adds by itself.
UP = "up"
TARGET_LABELS = {"job", "instance"}

MOST_BYTES = 256 * 1024


def alerts() -> dict[str, str]:
    """Return the expression of every alert by its name."""
    text = (EXAMPLE / "alerts.yml").read_text(encoding="utf-8")
    names = re.findall(r"^ +- alert: (\w+)$", text, re.MULTILINE)
    expressions = [block or line for block, line in EXPRESSION.findall(text)]
    return dict(zip(names, expressions, strict=True))


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((EXAMPLE / "dashboard.json").read_text(encoding="utf-8"))
    return document


def queries() -> dict[str, str]:
    """Return what the dashboard asks for, with Grafana's variables filled in."""
    board = dashboard()
    found = {
        f"{panel['title']}, {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }
    found |= {item["name"]: item["expr"] for item in board["annotations"]["list"]}
    return {
        name: text.replace("$instance", ".*").replace("$__rate_interval", "1m")
        for name, text in found.items()
    }


EXPRESSIONS = {**alerts(), **queries()}


@dataclass(frozen=True)
class Scrape:
    """A running Atlas and what it exports."""

    atlas: Atlas
    admin: AdminClient
    samples: dict[str, list[dict[str, str]]]  # the labels of every sample by its name


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrape]:
    """A running Atlas, one of whose upstreams fails, and its metrics."""
    path = tmp_path_factory.mktemp("monitoring") / "atlas.toml"
    with named("good") as good:
        dead = {"name": "dead", "address": "127.0.0.1", "port": free_port()}
        text = build_config(good.table(), dead, routing={"retries": 1}, admin=dict(ADMIN))
        path.write_text(text, encoding="utf-8")
        with Atlas(path) as atlas:
            admin = AdminClient(atlas.wait_until_listening())
            assert {atlas.get().status for _ in range(4)} == {200}
            assert admin.steer("good", "state=maintenance") == 200
            assert atlas.get().status == 502
            assert admin.steer("good", "state=ready", TOKEN) == 200
            wait_until(lambda: admin.metrics()["atlas_requests_total - 5xx"], "all to be counted")
            leaf = trustme.CA().issue_cert("localhost")
            leaf.private_key_and_cert_chain_pem.write_to_path(path.with_name("both.pem"))
            atlas.reload(f'{text}[listen.tls]\ncert = "both.pem"\nkey = "both.pem"\n')
            _, metrics = admin.ask("/metrics")
            yield Scrape(atlas, admin, read_samples(text_string_to_metric_families(metrics)))


def read_samples(families: Iterable[Metric]) -> dict[str, list[dict[str, str]]]:
    samples: dict[str, list[dict[str, str]]] = {}
    for family in families:
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample.labels)
    return samples


# Against what Atlas exports


@pytest.mark.parametrize("title", EXPRESSIONS)
def test_only_metrics_that_exist_are_asked_for(title: str, scraped: Scrape) -> None:
    text = LABEL_LISTS.sub("", MATCHERS.sub(r"\1", EXPRESSIONS[title]))

    names = set(NAME.findall(re.sub(r"\[\w+\]", "", text))) - WORDS

    assert names
    assert names - {UP} <= scraped.samples.keys()


@pytest.mark.parametrize("title", EXPRESSIONS)
def test_only_labels_that_exist_are_asked_for(title: str, scraped: Scrape) -> None:
    text = EXPRESSIONS[title]
    names = set(NAME.findall(MATCHERS.sub(r"\1", text))) & scraped.samples.keys()
    labels = TARGET_LABELS.union(
        *(labels.keys() for name in names for labels in scraped.samples[name])
    )

    assert {part for found in LABEL_LISTS.findall(text) for part in NAME.findall(found)} <= labels
    for metric, matchers in MATCHERS.findall(text):
        for label, operator, value in MATCHER.findall(matchers):
            assert label in labels
            is_list = operator in {"=", "=~"} and PLAIN.fullmatch(value)
            if metric != UP and is_list and label not in TARGET_LABELS:
                assert set(value.split("|")) <= {
                    sample[label] for sample in scraped.samples[metric]
                }


# Against each other


def test_every_alert_is_explained_and_is_seen_to_fire() -> None:
    explained = re.findall(r"^### (\w+)$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    fires = re.compile(r"alertname: (\w+)\n +exp_alerts:\n +- exp_labels")
    tried = fires.findall((EXAMPLE / "alerts_test.yml").read_text(encoding="utf-8"))

    assert explained == list(alerts())
    assert set(tried) == set(alerts())


def test_panels_are_told_apart() -> None:
    panels = dashboard()["panels"]

    for key in ("id", "title"):
        values = [panel[key] for panel in panels]
        assert len(set(values)) == len(values)
    for panel in panels:
        assert panel["description"]
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)


def test_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert cells
        assert not cells & taken, panel["title"]
        taken |= cells

    rows = {y for _, y in taken}
    assert rows == set(range(len(rows)))
    assert len(taken) == 24 * len(rows), "the dashboard has holes"


def test_screenshots_are_small_and_shown() -> None:
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    pictures = sorted((EXAMPLE / "screenshots").iterdir())

    assert {picture.stem for picture in pictures} == {
        *("healthy", "one-down", "refused-reload", "narrow", "dark", "explained")
    }
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG\r\n")
        assert picture.stat().st_size < MOST_BYTES, picture.name
        assert f"(screenshots/{picture.name})" in text


# Against Prometheus


def promtool(*arguments: str | Path) -> None:
    assert PROMTOOL is not None
    command = [PROMTOOL, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize(
    ("what", "file"),
    [("config", "prometheus.yml"), ("rules", "alerts.yml")],
)
def test_promtool_finds_no_fault(what: str, file: str) -> None:
    promtool("check", what, EXAMPLE / file)


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", EXAMPLE / "alerts_test.yml")


@needs_promtool
def test_promtool_finds_no_fault_in_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": text}
        for number, text in enumerate(queries().values())
    ]
    path = tmp_path / "rules.yml"
    # What is JSON is YAML, too.
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))

    promtool("check", "rules", path)


@pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed")
def test_every_panel_has_something_to_show(scraped: Scrape, tmp_path: Path) -> None:
    # Nobody has started Atlas anew.
    asked = {name: text for name, text in queries().items() if name != "Restarts"}
    text = (EXAMPLE / "prometheus.yml").read_text(encoding="utf-8")
    text = text.replace("9191", str(scraped.admin.port)).replace(
        "_interval: 5s", "_interval: 250ms"
    )
    (tmp_path / "alerts.yml").write_text((EXAMPLE / "alerts.yml").read_text())
    (tmp_path / "prometheus.yml").write_text(text)

    prometheus = Program(
        [
            str(PROMETHEUS),
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        ]
    )
    try:
        address = re.search(r"address=([\d.:]+)", prometheus.wait_for("Listening on"))
        assert address
        prometheus.wait_for("Server is ready")
        for name, query in asked.items():
            wait_until_shown(scraped.atlas, address[1], name, query)
    finally:
        prometheus.end()


def wait_until_shown(atlas: Atlas, address: str, name: str, query: str) -> None:
    """Wait until a query finds something. Quantiles want requests, and rates two scrapes."""

    def look() -> list[object]:
        atlas.get()
        return ask_prometheus(address, query)

    wait_until(look, name)


def ask_prometheus(address: str, query: str) -> list[object]:
    """The series that a query finds, those aside whose value is no number."""
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        found = json.load(answer)["data"]["result"]
    return [series for series in found if series["value"][1] != "NaN"]
