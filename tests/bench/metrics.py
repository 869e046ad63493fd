"""What is measured, and the figures that come of it.

A metric is one kind of load. Each is run against every rival in turn, for several rounds, and every
run yields figures: of requests their rate and latency, of bodies their throughput, of both what
they cost the proxy in CPU time. Figures are kept in seconds and bytes; only the table scales them.

Not here: how the load is made (`load.py`) and what is done with the figures (`report.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MEGABYTE = 1_000_000

IDLE_CONNECTIONS = 1000

# What the upstreams hold, by path. What is chunked is as long as `/10m`.
SIZES = {"/1k": 1024, "/10m": 10 * MEGABYTE, "/100m": 100 * MEGABYTE, "/chunked": 10 * MEGABYTE}


class Kind(Enum):
    """How a metric is measured."""

    REQUESTS = "requests"
    DOWNLOADS = "downloads"
    UPLOADS = "uploads"
    IDLE = "idle"


@dataclass(frozen=True)
class Metric:
    """One kind of load."""

    what: str
    kind: Kind
    connections: int
    path: str = "/1k"
    closes: bool = False  # a new connection for each request
    differs: bool = False  # no head is like another

    @property
    def needs_python_upstream(self) -> bool:
        """Is this beyond what nginx does as an upstream: chunks at will, and swallowing bodies?"""
        return self.kind is Kind.UPLOADS or self.path == "/chunked"


METRICS = {
    "ka1": Metric("1 KB, 1 connection", Kind.REQUESTS, 1),
    "ka16": Metric("1 KB, 16 connections", Kind.REQUESTS, 16),
    "ka64": Metric("1 KB, 64 connections", Kind.REQUESTS, 64),
    "ka256": Metric("1 KB, 256 connections", Kind.REQUESTS, 256),
    "vary64": Metric("1 KB, 64 connections, all heads different", Kind.REQUESTS, 64, differs=True),
    "close16": Metric(
        "1 KB, new connection per request, 16 at once", Kind.REQUESTS, 16, closes=True
    ),
    "down10": Metric("10 MB down, 4 connections", Kind.DOWNLOADS, 4, "/10m"),
    "down100": Metric("100 MB down, 1 connection", Kind.DOWNLOADS, 1, "/100m"),
    "chunked": Metric("10 MB down in chunks, 4 connections", Kind.DOWNLOADS, 4, "/chunked"),
    "up10": Metric("10 MB up, 4 connections", Kind.UPLOADS, 4, "/10m"),
    "idle": Metric(f"{IDLE_CONNECTIONS:,} idle connections", Kind.IDLE, IDLE_CONNECTIONS),
}


@dataclass(frozen=True)
class Figure:
    """One thing to know of a run: its title in the table, and the factor to its unit there."""

    title: str
    scale: float = 1.0
    has_ratio: bool = True


FIGURES = {
    "rate": Figure("requests a second"),
    "cpu_per_request": Figure("CPU per request, µs", 1e6),
    "latency_median": Figure("latency p50, µs", 1e6),
    "latency_p99": Figure("latency p99, µs", 1e6),
    # Ratios of what is left after a subtraction say little.
    "latency_added": Figure("latency added, µs", 1e6, has_ratio=False),
    "throughput": Figure("MB a second", 1 / MEGABYTE),
    "cpu_per_byte": Figure("CPU per GB, ms", 1e12),
    "memory_per_connection": Figure("KB per idle connection", 1 / 1024),
}
