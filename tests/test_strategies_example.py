"""The laboratory in `examples/strategies`: what its page promises, in short versions, seeds fixed.

Each scenario is played once, in some hundredths to tenths of a second. What is asserted are the
orders that the page tells, with room between them, and the figures beside theory.
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path

import pytest

from examples.strategies import __main__ as laboratory
from examples.strategies import known, scenario, theory
from examples.strategies.simulation import Played, Run, percentile, play

PAGE = laboratory.PAGE
PICTURE = re.compile(r"!\[[^]]+\]\((plots/(\w+)\.svg)\)")


@functools.cache
def played(name: str) -> Played:
    """All cases of a scenario's short version."""
    return play(scenario.load(name).shrink())


def runs(name: str) -> dict[str, Run]:
    """The runs by what varies."""
    return {"/".join(str(value) for value in case.values()): run for case, run in played(name)}


def p99(run: Run) -> float:
    return percentile(run.times(), 99)


@pytest.mark.parametrize("name", scenario.names())
def test_scenario_plays_to_its_end(name: str) -> None:
    for case, run in played(name):
        world = run.scenario
        expected = world.rate * world.seconds
        assert len(run.born) > 0.8 * expected, case
        assert run.attempts >= len(run.born)
        assert sum(run.served.values()) <= run.attempts
    assert laboratory.build_table(played(name)).count("\n") > 2


def test_the_same_seed_gives_the_same_figures() -> None:
    again = play(scenario.load("bursts").shrink())

    assert [run.took for _, run in again] == [run.took for _, run in played("bursts")]


# What is known


def test_figures_are_as_theory_has_them() -> None:
    figures = known.compare({name: played(name) for name in scenario.names()})

    assert len(figures) > 15
    assert [figure for figure in figures if not figure.holds] == []


def test_formulas_agree_where_they_must() -> None:
    one = theory.single_server_time(100, 0.8)

    assert theory.shared_line_time(1, 100, 0.8) == pytest.approx(one)
    assert theory.turns_time(1, 100, 0.8) == pytest.approx(one)
    assert theory.choices_time(100, 0.8, 1) == pytest.approx(one)
    assert theory.wait_probability(1, 0.8) == pytest.approx(0.8)
    assert theory.wait_probability(2, 0.75) == pytest.approx(2 * 0.75**2 / 1.75)


# What the page tells


def test_load_finds_the_fast_servers_without_weights() -> None:
    found = runs("speeds")

    assert p99(found["True/least_connections"]) < p99(found["True/weighted_round_robin"])
    assert p99(found["False/least_connections"]) < 3 * p99(found["True/least_connections"])
    assert p99(found["False/weighted_round_robin"]) > 10 * p99(found["False/power_of_two"])


def test_load_avoids_a_server_that_has_become_slow() -> None:
    found = runs("slow")

    worst = max(
        p99(found[name]) for name in ("least_connections", "power_of_two", "consistent_hash")
    )
    for blind in ("random", "round_robin", "ip_hash"):
        assert p99(found[blind]) > 5 * worst


def test_bursts_hurt_least_where_load_decides() -> None:
    found = runs("bursts")

    assert p99(found["least_connections"]) < p99(found["random"])
    assert p99(found["power_of_two"]) < p99(found["random"])


def test_many_balancers_see_little_of_the_load() -> None:
    found = runs("herd")

    assert p99(found["1/least_connections"]) < p99(found["1/random"]) / 2
    assert p99(found["100/least_connections"]) > 2 * p99(found["1/least_connections"])


def test_balancers_that_start_together_meet_at_the_first_server() -> None:
    busiest = {
        name: max(run.served.values()) / len(run.born) for name, run in runs("herd_start").items()
    }

    assert busiest["round_robin"] == busiest["least_connections"] > 0.5
    assert busiest["random"] < 0.1
    assert busiest["power_of_two"] < 0.1


def test_a_cold_server_wants_a_slow_start_or_a_look_at_the_load() -> None:
    found = runs("return")

    assert p99(found["0.0/round_robin"]) > 2 * p99(found["8.0/round_robin"])
    assert p99(found["0.0/round_robin"]) > 2 * p99(found["0.0/least_connections"])
    for run in found.values():
        assert max(run.times()) < math.inf  # retries have hidden the death of the server


def test_a_storm_of_retries_ends_with_the_budget_and_not_without() -> None:
    found = runs("storm")

    def answered_at_the_end(run: Run) -> float:
        times = run.times(since=run.scenario.seconds - 2)
        return sum(map(math.isfinite, times)) / len(times)

    assert answered_at_the_end(found["no"]) > 0.99
    assert answered_at_the_end(found["budget"]) > 0.99
    assert answered_at_the_end(found["always"]) < 0.05


def test_hashes_keep_caches_warm_while_servers_come_and_go() -> None:
    found = runs("cache")

    for name in ("ip_hash", "consistent_hash"):
        run = found[name]
        before, after = run.hit_ratio(6, 10), run.hit_ratio(10, 13)
        assert before > 1.4 * found["random"].hit_ratio(6, 10)
        assert before - after < 0.15  # a tenth of the keys has moved


def test_a_bound_keeps_a_popular_path_from_overloading_its_server() -> None:
    found = runs("hot")

    assert p99(found["ip_hash"]) > 3 * p99(found["consistent_hash"])
    assert found["random"].hit_ratio() < found["consistent_hash"].hit_ratio()
    assert found["consistent_hash"].hit_ratio() < found["ip_hash"].hit_ratio()


def test_a_thousand_servers_are_balanced_as_ten_are() -> None:
    found = runs("large")

    assert all(len(run.served) == 1000 for run in found.values())
    assert p99(found["least_connections"]) < p99(found["power_of_two"]) < p99(found["random"])


# The page


def test_every_scenario_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    linked = set(re.findall(r"\(scenarios/(\w+)\.toml\)", text))

    assert linked == set(scenario.names())


def test_every_plot_is_on_the_page_and_there() -> None:
    pictures = dict(PICTURE.findall(PAGE.read_text(encoding="utf-8")))
    drawn = {path.stem for path in (PAGE.parent / "plots").glob("*.svg")}

    assert set(pictures.values()) == drawn
    assert all((PAGE.parent / path).exists() for path in pictures)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in scenario.names() if "known" not in name])
def test_the_tables_of_the_page_are_those_of_the_code(name: str) -> None:
    table = laboratory.build_table(play(scenario.load(name)))

    assert f"<!-- table: {name} -->\n{table}<!-- end -->" in PAGE.read_text(encoding="utf-8")


def test_plots_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from examples.strategies import plots  # noqa: PLC0415

    monkeypatch.setattr(plots, "FOLDER", tmp_path)

    plots.draw("herd_start", played("herd_start"))
    plots.draw("storm", played("storm"))

    assert "<svg" in (tmp_path / "storm.svg").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"herd_start.svg", "storm.svg"}
