"""The benchmark itself: its arithmetic, its own upstream, and one short run of the whole."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import __main__ as command
from tests.bench.load import LoadFailed, Outcome, connect, download, upload
from tests.bench.metrics import METRICS, SIZES
from tests.bench.processes import find_tree, held_to, read_cpu, read_memory
from tests.bench.report import Results, build_table, format_number, list_errors
from tests.bench.testbed import derive_figures
from tests.bench.upstream import Upstream
from tests.toolkit import ROOT, Program, find_program, wait_until

NEEDS_WRK = pytest.mark.skipif(find_program("wrk") is None, reason="wrk is not installed")
NEEDS_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def results(**rates: list[float]) -> Results:
    """Results of `ka16` with the given rates, a list of rounds for each rival."""
    found = Results()
    for rival, values in rates.items():
        for number, value in enumerate(values):
            found.add("ka16", rival, number, {"rate": value, "errors": 0.0, "others": 0.5})
    return found


def test_a_figure_is_the_median_of_the_rounds() -> None:
    assert results(atlas=[900.0, 100.0, 200.0]).median("ka16", "atlas", "rate") == 200.0
    assert results(atlas=[100.0, 200.0]).median("ka16", "atlas", "rate") == 150.0


def test_a_figure_that_was_not_measured_is_none() -> None:
    found = results(atlas=[1.0])

    assert found.median("ka16", "atlas", "throughput") is None
    assert found.median("ka64", "atlas", "rate") is None
    assert found.ratio("ka16", "atlas", "rate") is None


def test_a_ratio_is_taken_within_each_round() -> None:
    # In the second round the whole machine was slow; the ratio does not mind.
    found = results(atlas=[50.0, 5.0, 60.0], nginx=[100.0, 10.0, 100.0])

    assert found.ratio("ka16", "atlas", "rate") == 0.5
    assert found.ratio("ka16", "nginx", "rate") == 1.0


def test_a_ratio_uses_only_the_rounds_that_both_have_and_never_divides_by_nothing() -> None:
    assert results(atlas=[30.0], nginx=[100.0, 1.0]).ratio("ka16", "atlas", "rate") == 0.3
    assert results(atlas=[30.0], nginx=[0.0]).ratio("ka16", "atlas", "rate") is None


def test_added_latency_is_what_is_left_after_that_of_the_upstream_itself() -> None:
    found = Results()
    for rival, latency in (("direct", 0.001), ("atlas", 0.003)):
        found.add("ka1", rival, 0, {"latency_median": latency})
        found.add("ka16", rival, 0, {"latency_median": latency})

    assert found.median("ka1", "atlas", "latency_added") == pytest.approx(0.002)
    assert found.median("ka1", "direct", "latency_added") is None
    assert found.median("ka16", "atlas", "latency_added") is None
    assert found.ratio("ka1", "atlas", "latency_added") is None


def test_figures_of_requests() -> None:
    outcome = Outcome(1000, 2.0, 3, latency_median=0.01, latency_p99=0.09)

    assert derive_figures(outcome, 0.5) == {
        "errors": 3.0,
        "rate": 500.0,
        "cpu_per_request": 0.0005,
        "latency_median": 0.01,
        "latency_p99": 0.09,
    }
    assert "cpu_per_request" not in derive_figures(outcome, None)


def test_figures_of_bodies() -> None:
    outcome = Outcome(4, 2.0, body_bytes=4000)

    assert derive_figures(outcome, 0.4) == {
        "errors": 0.0,
        "throughput": 2000.0,
        "cpu_per_byte": 0.0001,
    }


def test_no_answers_are_no_figures() -> None:
    with pytest.raises(LoadFailed, match="nothing was answered"):
        derive_figures(Outcome(0, 1.0, 7), None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (99.94, "99.9"),
        (100.4, "100"),
        (-250, "-250"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


def test_table_has_a_row_for_each_figure_and_leaves_open_what_is_not_known() -> None:
    found = results(atlas=[5000.0], nginx=[10000.0])
    found.add("idle", "atlas", 0, {"memory_per_connection": 2048.0})

    table = build_table(found, ["ka16", "idle"], ["atlas", "nginx"]).splitlines()

    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in table] == [
        ["what is measured", "atlas", "nginx"],
        ["---", "---:", "---:"],
        ["requests a second: 1 KB, 16 connections", "5,000 (0.50)", "10,000"],
        ["KB per idle connection: 1,000 idle connections", "2.00", ""],
    ]


def test_errors_are_summed_and_told() -> None:
    found = results(atlas=[1.0], nginx=[1.0])
    found.add("ka16", "atlas", 1, {"rate": 1.0, "errors": 2.0})

    assert list_errors(found, ["ka16"], ["atlas", "nginx"]) == [
        "atlas: 2 errors in 1 KB, 16 connections"
    ]


def test_json_holds_medians_ratios_and_rounds() -> None:
    found = results(atlas=[5.0, 7.0], nginx=[10.0, 10.0])

    assert json.loads(json.dumps(found.as_json()))["ka16"]["atlas"] == {
        "errors": 0,
        "rate": {"median": 6.0, "ratio": pytest.approx(0.6), "rounds": [5.0, 7.0]},
    }
    assert found.others == 0.5


@NEEDS_LINUX
def test_runs_are_in_turns_and_only_what_says_something() -> None:
    options = command.parse_arguments(["--rounds", "2", "--metrics", "ka1,idle,up10", "--open"])

    runs = command.plan_runs(options, ["direct", "atlas", "nginx-large"])

    assert runs == [
        *[("ka1", number, rival) for number in (0, 1) for rival in ("direct", "atlas")],
        ("idle", 0, "atlas"),
        ("idle", 1, "atlas"),
        *[("up10", n, rival) for n in (0, 1) for rival in ("direct", "atlas", "nginx-large")],
    ]


@NEEDS_LINUX
@pytest.mark.parametrize(
    "arguments", [["--only", "apache"], ["--metrics", "ka2"], ["--rounds", "0"]]
)
def test_what_is_not_known_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.parse_arguments(arguments)

    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@NEEDS_LINUX
def test_without_wrk_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_program", lambda name: None)  # noqa: ARG005

    assert command.main([]) == 2
    assert capsys.readouterr().out.startswith("wrk is not installed")


@NEEDS_LINUX
def test_a_rival_that_is_not_installed_is_skipped_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.bench.rivals.find_program", lambda name: None)  # noqa: ARG005

    assert command.find_rivals(["direct", "nginx"]) == ["direct"]
    assert capsys.readouterr().out == "nginx is skipped: it is not installed\n"


@NEEDS_LINUX
def test_the_system_is_asked_about_the_whole_tree() -> None:
    tree = find_tree(os.getpid())

    assert tree[0] == os.getpid()
    assert read_cpu(tree) > 0
    assert read_memory([os.getpid()]) > 1_000_000
    assert read_cpu([2**30]) == read_memory([2**30]) == 0


@NEEDS_LINUX
def test_cpus_are_given_back() -> None:
    before = os.sched_getaffinity(0)

    with held_to({min(before)}):
        assert os.sched_getaffinity(0) == {min(before)}

    assert os.sched_getaffinity(0) == before


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[socket.socket]:
    """A connection to the benchmark's own upstream."""
    for path in ("/10m", "/100m"):
        with (tmp_path / path.strip("/")).open("wb") as file:
            file.truncate(SIZES[path])
    upstream = Upstream(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = connect(listener.getsockname()[1])
        served, _ = listener.accept()
    thread = threading.Thread(target=upstream.converse, args=(served,))
    thread.start()
    with client:
        yield client
    thread.join(20)
    upstream.close()


@NEEDS_LINUX
def test_own_upstream_serves_all_that_is_asked_of_it(asked: socket.socket, tmp_path: Path) -> None:
    for metric in METRICS.values():
        download(asked, metric.path)
        upload(asked, "/10m", tmp_path)


@NEEDS_LINUX
def test_an_answer_that_is_too_short_is_an_error(
    asked: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "/1k", 2048)

    with pytest.raises(ConnectionError, match="1024 bytes instead of 2048"):
        download(asked, "/1k")


@NEEDS_WRK
@NEEDS_LINUX
def test_one_short_run_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    options = ["--quick", "--rounds", "1", "--only", "atlas", "--metrics", "ka16"]

    with Benchmark(*options, "--json", str(path)) as program:
        assert program.wait(40) == 0, program.log

    written = json.loads(path.read_text())
    atlas = written["results"]["ka16"]["atlas"]
    assert atlas["errors"] == 0
    assert atlas["rate"]["median"] > 0
    assert atlas["cpu_per_request"]["median"] > 0
    assert written["machine"]["versions"]["wrk"]
    assert any("1 KB, 16 connections" in line for line in program.printed)


@NEEDS_WRK
@NEEDS_LINUX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_when_it_is_ended_it_ends_what_it_started(number: signal.Signals) -> None:
    with Benchmark("--quick", "--only", "atlas", "--metrics", "ka16") as program:
        program.wait_for("1 KB, 16 connections")
        started = wait_until(lambda: find_tree(program.pid)[1:], "something to be started")

        assert program.end(number) == 1

    assert "ended by a signal: the rest was not measured" in program.printed
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


class Benchmark(Program):
    """The benchmark as a program; what a failed test left running is ended."""

    def __init__(self, *options: str) -> None:
        super().__init__([sys.executable, "-m", "tests.bench", *options], cwd=ROOT)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGTERM)
