"""What the figures were measured on: the processor, the kernel, and the versions of the programs.

A figure without these is worth little, so they stand above every table and in the JSON.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

from atlas_pkg import __version__
from tests.bench.rivals import find_python
from tests.toolkit import find_program

_PROGRAMS = ("nginx", "haproxy", "wrk")


def describe_machine() -> dict[str, object]:
    """Collect what is known of this machine."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": find_cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
        "versions": {
            "atlas": __version__,
            "python": find_version(find_python() or sys.executable),
            **{name: version for name in _PROGRAMS if (version := find_version(name))},
        },
    }


def find_cpu_model() -> str:
    """The processor's name as the kernel knows it."""
    match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.machine()


def find_version(name: str) -> str:
    """The version of a program; empty where it is not installed or does not say."""
    program = find_program(name)  # or, as it is, a path
    if program is None:
        return ""
    option = "-V" if "python" in name else "-v"
    # Some answer on standard error, and wrk with status 1.
    ran = subprocess.run([program, option], capture_output=True, text=True, timeout=10, check=False)
    match = re.search(r"\d+\.\d+(?:\.\d+)?", ran.stderr + ran.stdout)
    return match[0] if match else ""


def build_caption(machine: dict[str, object], how: str) -> str:
    """One paragraph to stand above the table; `how` says in which way it was measured."""
    versions = machine["versions"]
    assert isinstance(versions, dict)
    programs = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine['date']}, {how}: {machine['cpus']} CPUs ({machine['cpu']}), "
        f"Linux {machine['kernel']}, {programs}."
    )
