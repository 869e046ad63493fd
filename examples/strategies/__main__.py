"""The laboratory: play scenarios, and print what came of them: `python -m examples.strategies`.

Without names all are played, which takes some minutes, and compared with theory; names are those
of the files in `scenarios/`. `--write` puts tables and plots into this folder's page.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from atlas_pkg.balancing.strategies import STRATEGIES
from examples.strategies import known, scenario
from examples.strategies.scenario import Scenario, tell
from examples.strategies.simulation import Played, Run, percentile, play

PAGE = Path(__file__).resolve().parent / "README.md"

_TABLE = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->\n)", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play, print and write; the exit status is 1 where a figure is not as theory has it."""
    parser = argparse.ArgumentParser(prog="python -m examples.strategies")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(scenario.names()))
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--small", action="store_true", help="the short versions, in seconds")
    how.add_argument("--write", action="store_true", help="write tables and plots into the page")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(scenario.names()):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    if options.write and find_spec("matplotlib") is None:
        parser.error("--write needs matplotlib: pip install .[plots]")
    played, tables = {}, {}
    for name in options.names or scenario.names():
        world = scenario.load(name)
        world = world.shrink() if options.small else world
        began = time.perf_counter()
        played[name] = play(world)
        tables[name] = build_table(played[name])
        count = sum(len(run.born) for _, run in played[name])
        pace = (time.perf_counter() - began) / count * 1e6
        print(f"\n{name}: {world.title}\n\n{tables[name]}\n{count:,} requests, {pace:.0f} us each")
    figures = known.compare(played) if not options.names else []
    if figures:
        tables["known"] = build_known_table(figures)
        print(f"\nbeside theory\n\n{tables['known']}")
    if options.write:
        write(played, tables)
    return 0 if all(figure.holds for figure in figures) else 1


def write(played: dict[str, Played], tables: dict[str, str]) -> None:
    """Put tables into the page, and plots beside it."""
    from examples.strategies import plots  # noqa: PLC0415 (matplotlib is needed for this alone)

    text = PAGE.read_text(encoding="utf-8")
    text = _TABLE.sub(lambda found: found[1] + tables.get(found[2], found[3]) + found[4], text)
    PAGE.write_text(text, encoding="utf-8")
    for name, runs in played.items():
        plots.draw(name, runs)
    if "known" in tables:
        plots.draw_known(played)


def build_table(played: Played) -> str:
    """Tell all cases in a table; where two things vary, the slowest percent alone, crosswise."""
    keys = list(played[0][0])
    if len(keys) == 1:
        columns = _columns(played[0][1].scenario)
        rows = [
            [_name(case[keys[0]]), *(column(run) for column in columns.values())]
            for case, run in played
        ]
        return _show(["", *columns], rows)
    across = list(dict.fromkeys(case[keys[0]] for case, _ in played))
    cells: dict[str, list[str]] = {}
    for case, run in played:
        cells.setdefault(_name(case[keys[1]]), []).append(_ms(run, 99))
    head = ["p99, ms", *(tell(keys[0], value) for value in across)]
    return _show(head, [[name, *row] for name, row in cells.items()])


def build_known_table(figures: Sequence[known.Figure]) -> str:
    """Tell theory, what was found, and the error."""
    rows = [
        [
            figure.what,
            figure.source,
            f"{figure.expected:.3g}",
            f"{figure.found:.3g}",
            f"{figure.error:+.1%}" if figure.allowed else "" if figure.holds else "too many",
            f"{figure.allowed:.0%}" if figure.allowed else "at most",
        ]
        for figure in figures
    ]
    return _show(["", "theory", "says", "found", "error", "allowed"], rows)


def _name(label: str) -> str:
    return f"`{label}`" if label in STRATEGIES else tell("", label)


def _columns(world: Scenario) -> dict[str, Callable[[Run], str]]:
    times = {f"p{p:g}, ms": partial(_ms, percent=p) for p in (50, 99, 99.9)}
    match world.shows:
        case "answered":
            return {
                "answered in time": lambda run: f"{_answered(run):.0%}",
                "in the last ten seconds": lambda run: f"{_answered(run, -10):.0%}",
                "attempts a request": lambda run: f"{run.attempts / len(run.born):.2f}",
            }
        case "hits":
            marks = [event.at for event in world.events]
            return {
                "hits": lambda run: f"{run.hit_ratio(world.warm_up, marks[0]):.0%}",
                **{
                    f"from {at:g}": partial(
                        lambda run, at: f"{run.hit_ratio(at, at + 5):.0%}", at=at
                    )
                    for at in marks
                },
                **times,
            }
        case "shares":
            share = {
                "at the busiest": lambda run: f"{max(run.served.values()) / len(run.born):.0%}"
            }
            return {**share, **times}
    caches = {"hits": lambda run: f"{run.hit_ratio(world.warm_up):.0%}"}
    return {**times, **(caches if world.servers[0].cache else {})}


def _ms(run: Run, percent: float) -> str:
    ms = 1000 * percentile(run.times(), percent)
    return f"{ms:,.0f}" if ms >= 10 else f"{ms:.1f}"


def _answered(run: Run, since: float = 0.0) -> float:
    """The part that was answered in time; `since` counts from the end if it is negative."""
    times = run.times(since if since >= 0 else run.scenario.seconds + since)
    return sum(map(math.isfinite, times)) / len(times)


def _show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, line, *rows])


if __name__ == "__main__":
    sys.exit(main())
