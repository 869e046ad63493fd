"""The files of `examples/deployment` and `several-machines` fit Atlas, and one another."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from atlas_pkg.config.loader import load_config, parse_config
from atlas_pkg.config.model import Config
from tests.toolkit import ROOT, find_program

DEPLOYMENT = ROOT / "examples" / "deployment"
SYSTEMD, CONTAINER = DEPLOYMENT / "systemd", DEPLOYMENT / "container"
KUBERNETES = DEPLOYMENT / "kubernetes" / "atlas.yaml"


def read_config_map() -> Config:
    """The configuration that stands in the ConfigMap."""
    found = re.search(
        r"^  atlas\.toml: \|\n((?:    .*\n|\n)+)", KUBERNETES.read_text(), re.MULTILINE
    )
    assert found
    text = re.sub(r"^    ", "", found[1], flags=re.MULTILINE)
    return parse_config(text.encode(), Path("atlas.toml"), environ={})


def number(pattern: str, path: Path) -> float:
    found = re.search(pattern, path.read_text(), re.MULTILINE)
    assert found
    return float(found[1])


def longest_end(config: Config) -> float:
    return config.timeouts.pre_drain + config.timeouts.drain


def test_an_end_is_given_the_time_that_it_takes() -> None:
    service = load_config(SYSTEMD / "atlas.toml", environ={})
    container = load_config(CONTAINER / "atlas.toml", environ={})
    pod = read_config_map()

    assert longest_end(service) < number(r"^TimeoutStopSec=(\d+)", SYSTEMD / "atlas.service")
    assert longest_end(container) < 10  # what `docker stop` waits
    assert longest_end(container) < number(r"stop_grace_period: (\d+)s", CONTAINER / "compose.yaml")
    before = number(r"command: \[sleep, \"(\d+)\"\]", KUBERNETES)
    grace = number(r"terminationGracePeriodSeconds: (\d+)", KUBERNETES)
    assert before + longest_end(pod) < grace


def test_ports_are_the_same_everywhere() -> None:
    service = load_config(SYSTEMD / "atlas.toml", environ={})
    pod, container = read_config_map(), load_config(CONTAINER / "atlas.toml", environ={})

    assert number(r"^ListenStream=(\d+)", SYSTEMD / "atlas.socket") == service.listen.port
    for config in (pod, container):
        assert config.admin
        ports = {config.listen.port, config.admin.port}
        assert ports == {8080, 9090}
    assert set(re.findall(r"containerPort: (\d+)", KUBERNETES.read_text())) == {"8080", "9090"}
    assert "EXPOSE 8080 9090\n" in (CONTAINER / "Dockerfile").read_text()


def test_machines_that_share_a_file_agree_on_cookies_and_keys() -> None:
    config = load_config(ROOT / "examples" / "several-machines" / "machine.toml", environ={})

    assert config.sticky is not None
    assert config.sticky.secret
    assert config.routing.strategy == "consistent_hash"


@pytest.mark.parametrize("unit", ["atlas.service", "atlas.socket"])
def test_systemd_finds_no_fault(unit: str) -> None:
    analyze = find_program("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")

    done = subprocess.run(
        [analyze, "verify", unit], cwd=SYSTEMD, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
