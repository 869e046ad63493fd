"""Arithmetic and words: medians, ratios, the table, and the same as JSON.

A figure is the median over the rounds. A ratio is the median of the rounds' own ratios: the rivals
of one round ran within seconds of each other, so what slows the whole machine for a while slows
them alike, and the ratio holds where the figures do not.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from tests.bench.metrics import FIGURES, METRICS
from tests.bench.rivals import DIRECT, REFERENCE

# Figures of one run, by name.
Run = Mapping[str, float]


class Results:
    """All runs: by metric, by rival, and by round."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], dict[int, Run]] = {}

    def add(self, metric: str, rival: str, number: int, run: Run) -> None:
        """Take in the run of round `number`."""
        self._runs.setdefault((metric, rival), {})[number] = run

    def values(self, metric: str, rival: str, figure: str) -> dict[int, float]:
        """A figure of every round that has it, by the number of the round."""
        runs = self._runs.get((metric, rival), {})
        if figure != "latency_added":
            return {number: run[figure] for number, run in runs.items() if figure in run}
        if rival == DIRECT or METRICS[metric].connections != 1:
            return {}
        ours = self.values(metric, rival, "latency_median")
        base = self.values(metric, DIRECT, "latency_median")
        return {number: ours[number] - base[number] for number in ours.keys() & base.keys()}

    def median(self, metric: str, rival: str, figure: str) -> float | None:
        """The median of a figure over the rounds, or None where there is none."""
        values = self.values(metric, rival, figure)
        return statistics.median(values.values()) if values else None

    def ratio(self, metric: str, rival: str, figure: str) -> float | None:
        """The median of the ratios to the reference, each taken within one round."""
        if not FIGURES[figure].has_ratio or rival == DIRECT:
            return None
        ours = self.values(metric, rival, figure)
        base = self.values(metric, REFERENCE, figure)
        ratios = [
            ours[number] / base[number] for number in ours.keys() & base.keys() if base[number]
        ]
        return statistics.median(ratios) if ratios else None

    def sum_errors(self, metric: str, rival: str) -> int:
        """How many requests went wrong, over all rounds."""
        return int(sum(self.values(metric, rival, "errors").values()))

    @property
    def others(self) -> float:
        """How many CPUs other programs used meanwhile; the median of all runs."""
        shares = [
            run["others"]
            for runs in self._runs.values()
            for run in runs.values()
            if "others" in run
        ]
        return statistics.median(shares) if shares else 0.0

    def as_json(self) -> dict[str, dict[str, object]]:
        """Medians, ratios and every round, in seconds and bytes."""
        found: dict[str, dict[str, object]] = {}
        for metric, rival in self._runs:
            found.setdefault(metric, {})[rival] = {
                "errors": self.sum_errors(metric, rival),
                **{
                    figure: {
                        "median": self.median(metric, rival, figure),
                        "ratio": self.ratio(metric, rival, figure),
                        "rounds": [values[number] for number in sorted(values)],
                    }
                    for figure in FIGURES
                    if (values := self.values(metric, rival, figure))
                },
            }
        return found


def format_number(value: float) -> str:
    """Three digits or more: 12,345, 123, 12.3, 1.23."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def build_table(results: Results, metrics: Sequence[str], rivals: Sequence[str]) -> str:
    """Build a Markdown table: a row for each figure of each metric, a column for each rival."""
    rows = [["what is measured", *rivals]]
    for name, figure in FIGURES.items():
        for metric in metrics:
            cells = [_build_cell(results, metric, rival, name) for rival in rivals]
            if any(cells):
                rows.append([f"{figure.title}: {METRICS[metric].what}", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"| {row[0].ljust(widths[0])} | "
        + " | ".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        + " |"
        for row in rows
    ]
    lines.insert(1, "| --- |" + " ---: |" * len(rivals))
    return "\n".join(lines)


def _build_cell(results: Results, metric: str, rival: str, figure: str) -> str:
    value = results.median(metric, rival, figure)
    if value is None:
        return ""
    text = format_number(value * FIGURES[figure].scale)
    ratio = results.ratio(metric, rival, figure)
    return text if ratio is None or rival == REFERENCE else f"{text} ({ratio:.2f})"


def list_errors(results: Results, metrics: Sequence[str], rivals: Sequence[str]) -> list[str]:
    """Say of every rival where requests went wrong."""
    return [
        f"{rival}: {count} errors in {METRICS[metric].what}"
        for metric in metrics
        for rival in rivals
        if (count := results.sum_errors(metric, rival))
    ]
