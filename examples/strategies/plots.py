"""The plots of the page, as SVG. Needs matplotlib: `pip install .[plots]`.

Every strategy has one look in all of them: a colour, a dash and a mark, so that it can be told in
grey as well. Times are on logarithmic axes, since the tails differ by orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from examples.strategies import known, theory
from examples.strategies.scenario import tell
from examples.strategies.simulation import Played, Run, percentile

FOLDER = Path(__file__).resolve().parent / "plots"

# Colour, dash, mark: no two are alike in grey, nor for the colour-blind.
LOOKS: dict[Any, tuple[str, Any, str]] = {
    "random": ("#a6a6a6", (0, (1, 1)), "x"),
    "round_robin": ("#e69f00", (0, (4, 1.5)), "s"),
    "weighted_round_robin": ("#d55e00", (0, (6, 1, 1, 1)), "D"),
    "power_of_two": ("#3f8fd0", "-", "^"),
    "least_connections": ("#000000", "-", "o"),
    "ip_hash": ("#8f3f7f", (0, (3, 1, 1, 1)), "v"),
    "consistent_hash": ("#007a5e", (0, (8, 2)), "P"),
    "no": ("#000000", "-", "o"),
    "budget": ("#007a5e", (0, (6, 2)), "P"),
    "always": ("#d55e00", (0, (2, 1)), "v"),
}

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "atlas",  # the same plot is the same file
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 3.5,
}

_LEAST_SHARE = 1e-4

_PERCENTS = (50, 90, 99, 99.9)


def draw(name: str, played: Played) -> None:
    """Write the plot of one scenario; those of which something is known have one in common."""
    drawers = {
        "tail": _draw_tails,
        "p99": _draw_seconds,
        "answered": _draw_seconds,
        "hits": _draw_seconds,
        "sweep": _draw_sweep,
        "shares": _draw_shares,
    }
    shows = played[0][1].scenario.shows
    if shows != "known":
        with mpl.rc_context(STYLE):
            _save(drawers[shows](played), name)


def draw_known(played: dict[str, Played]) -> None:
    """Write the plot of what is known beside what was found."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_known_times(left, played)
        _draw_known_lengths(right, played["known_choices"])
        _save(figure, "known")


def _save(figure: Figure, name: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{name}.svg", facecolor="white", metadata={"Date": None})


def _panels(played: Played) -> dict[str, list[tuple[str, Run]]]:
    """Sort the cases into panels, by what varies first where two things do."""
    panels: dict[str, list[tuple[str, Run]]] = {}
    for case, run in played:
        *others, (_, label) = case.items()
        panels.setdefault(", ".join(tell(*other) for other in others), []).append((label, run))
    return panels


def _start(played: Played, height: float = 3.4) -> tuple[Figure, list[tuple[Axes, str, Any]]]:
    panels = _panels(played)
    figure = Figure(figsize=(4.0 + 3.4 * len(panels), height), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    return figure, [
        (ax, title, runs) for ax, (title, runs) in zip(axes, panels.items(), strict=True)
    ]


def _look(label: Any) -> dict[str, Any]:
    colour, dash, mark = LOOKS[label]
    return {"color": colour, "linestyle": dash, "marker": mark, "label": tell("", label)}


def _finish(figure: Figure, axes: list[Axes]) -> None:
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")


def _scale_times(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(
        FuncFormatter(lambda ms, _: f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms")
    )


def _draw_tails(played: Played) -> Figure:
    figure, panels = _start(played)
    parts = [10 ** -(step / 20) for step in range(6, 61)]  # of the requests that take longer
    for ax, title, runs in panels:
        for label, run in runs:
            times = run.times()
            values = [1000 * percentile(times, 100 * (1 - part)) for part in parts]
            ax.plot([-math.log10(part) for part in parts], values, markevery=9, **_look(label))
        _scale_times(ax)
        ax.set_xticks(
            [-math.log10(1 - p / 100) for p in _PERCENTS], [f"{p:g} %" for p in _PERCENTS]
        )
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(title)
        ax.set_xlabel("so many requests take no longer")
    panels[0][0].set_ylabel("time")
    _finish(figure, [ax for ax, *_ in panels])
    return figure


def _draw_seconds(played: Played) -> Figure:
    world = played[0][1].scenario
    figure, panels = _start(played)
    for ax, title, runs in panels:
        for label, run in runs:
            seconds = run.by_second()
            if world.shows == "p99":
                values = [1000 * percentile(sorted(times), 99) for times in seconds]
            elif world.shows == "answered":
                values = [sum(math.isfinite(took) for took in times) for times in seconds]
            else:
                values = [100 * run.hit_ratio(n, n + 1) for n in range(len(seconds))]
            ax.plot(range(len(seconds)), values, markevery=len(values) // 8, **_look(label))
        marks = {event.at for event in world.events}
        if world.burst:
            marks |= {world.burst.every, world.burst.every + world.burst.lasts}
        for at in marks:
            ax.axvline(at, color="#555555", linewidth=0.8, linestyle=":", zorder=0)
        ax.set_title(title)
        ax.set_xlabel("second")
        if world.shows == "p99":
            _scale_times(ax)
        else:
            ax.set_ylim(bottom=-0.03 * ax.get_ylim()[1])  # a line at 0 is to be seen
    words = {
        "p99": "99 % take no longer",
        "answered": "answered in time, a second",
        "hits": "hits, %",
    }
    panels[0][0].set_ylabel(words[world.shows])
    _finish(figure, [ax for ax, *_ in panels])
    return figure


def _draw_sweep(played: Played) -> Figure:
    figure = Figure(figsize=(7.4, 3.4), layout="constrained")
    ax = figure.subplots()
    lines: dict[str, list[tuple[float, float]]] = {}
    for case, run in played:
        value, label = case.values()
        lines.setdefault(label, []).append((value, 1000 * percentile(run.times(), 99)))
    for label, points in lines.items():
        ax.plot(*zip(*points, strict=True), **_look(label))
    values = [value for value, _ in points]
    ax.set_xscale("log")
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(f"number of {next(iter(played[0][0]))}")
    ax.set_ylabel("99 % take no longer, ms")
    ax.set_ylim(0)
    _finish(figure, [ax])
    return figure


def _draw_shares(played: Played) -> Figure:
    figure = Figure(figsize=(8.6, 2.2), layout="constrained")
    axes = figure.subplots(1, len(played), sharey=True)
    for ax, (case, run) in zip(axes, played, strict=True):
        ax.bar(range(1, len(run.served) + 1), run.served.values(), color="#444444")
        ax.set_title(tell("", case["strategy"]))
        ax.set_xlabel("server")
        ax.grid(visible=False, axis="x")
    axes[0].set_ylabel("requests")
    return figure


def _draw_known_times(ax: Axes, played: dict[str, Played]) -> None:
    loads = [step / 100 for step in range(40, 93)]
    curves: dict[str, tuple[str, Callable[[float], float]]] = {
        "random": ("by chance: M/M/1", lambda load: theory.single_server_time(100, load)),
        "round_robin": ("in turns: E10/M/1", lambda load: theory.turns_time(10, 100, load)),
        "least_connections": (
            "one line: M/M/10",
            lambda load: theory.shared_line_time(10, 100, load),
        ),
    }
    for label, (words, formula) in curves.items():
        colour, dash, mark = LOOKS[label]
        ax.plot(loads, [1000 * formula(load) for load in loads], color=colour, linestyle=dash)
        found = [
            (known.load_of(run.scenario), 1000 * fmean(run.times()))
            for case, run in played["known_turns"] + played["known_line"]
            if case["strategy"] == label
        ]
        looks = {"color": colour, "marker": mark, "linestyle": dash}
        ax.plot(*zip(*found, strict=True), **{**looks, "linestyle": ""})
        ax.plot([], [], label=words, **looks)
    _scale_times(ax)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda load, _: f"{load:.0%}"))
    ax.set_xlabel("load of ten servers")
    ax.set_title("mean time: theory (lines) and found (marks)")
    ax.legend(loc="upper left")


def _draw_known_lengths(ax: Axes, played: Played) -> None:
    lengths = range(1, 13)
    for case, run in played:
        label, load = case["strategy"], known.load_of(run.scenario)
        look = _look(label)
        if label in known.CHOICES:
            shares = [theory.share_with_at_least(n, load, known.CHOICES[label]) for n in lengths]
            ax.plot(lengths, shares, color=look["color"], linestyle=look["linestyle"])
        found = [(n, known.share_with_at_least(run, n)) for n in lengths]
        shown = [point for point in found if point[1] > _LEAST_SHARE]
        ax.plot(*zip(*shown, strict=True), **{**look, "linestyle": ""})
        ax.set_title(f"part of {run.scenario.servers[0].count} servers at a load of {load:.0%}")
    ax.set_yscale("log")
    ax.set_ylim(_LEAST_SHARE, 1.5)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    ax.set_xlabel("requests there, or more")
    ax.legend(loc="lower right", handlelength=1)
