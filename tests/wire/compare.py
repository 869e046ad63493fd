"""Plays the corpus through Atlas and other proxies: `python -m tests.wire.compare`.

Prints a table: for each rule how many of its cases each proxy passes. The same judge looks at all
of them, and it is lenient: order and case of names, fields that each adds, and the status of a
refusal are free. What counts is what is forwarded and what the client is told. Left out are cases
that ask for something that only Atlas promises (`peers: no`), and proxies that are not installed.

The rules are Atlas's own and at times stricter than the RFCs: a proxy that repairs what Atlas
refuses fails the case. Others run with a plain configuration; some of what they fail here they
could be configured to pass. `-v` lists the cases that Atlas or another proxy fails.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.wire.arena import Arena
from tests.wire.corpus import Case, load_cases
from tests.wire.judge import Lenient
from tests.wire.parties import BYTE_BY_BYTE, WHOLE
from tests.wire.proxies import PROXIES, find_program

# Failing cases wait as long as this, so it is short; the timeouts of `quick` are shorter.
PATIENCE = 2.5
SLICES = 4


def run(name: str, cases: list[Case]) -> dict[str, list[str]]:
    """Play `cases` through the proxy `name`; returns what went wrong, by the name of the case."""
    failed: dict[str, list[str]] = {}
    for config in sorted({case.config for case in cases}):
        with (
            contextlib.closing(Arena(patience=PATIENCE, judge=Lenient)) as arena,
            PROXIES[name](arena.port, config) as port,
        ):
            for case in (case for case in cases if case.config == config):
                deliveries = [WHOLE] if case.header.get("deliver") else [WHOLE, BYTE_BY_BYTE]
                if problems := arena.play(case, port, deliveries):
                    failed[case.name] = problems
    return failed


def main(arguments: list[str]) -> int:
    """Print the table; returns 1 if another proxy passes more cases of a rule than Atlas."""
    parser = argparse.ArgumentParser(prog="python -m tests.wire.compare", description=__doc__)
    parser.add_argument("-v", action="store_true", help="list the cases that somebody fails")
    options = parser.parse_args(arguments)
    cases = [case for case in load_cases() if case.header.get("peers") != "no"]
    names = ["Atlas", *(name for name in ("nginx", "HAProxy") if find_program(name.lower()))]
    print(f"playing {len(cases)} cases through {', '.join(names)} ...", file=sys.stderr, flush=True)
    # Failing cases only wait, so several programs of each kind run side by side.
    parts = [(name, cases[begin::SLICES]) for name in names for begin in range(SLICES)]
    failures: dict[str, dict[str, list[str]]] = {name: {} for name in names}
    with ThreadPoolExecutor(len(parts)) as pool:
        for (name, _), failed in zip(parts, pool.map(run, *zip(*parts, strict=True)), strict=True):
            failures[name] |= failed

    totals = Counter(case.rule for case in cases)
    lost = {
        name: Counter(case.rule for case in cases if case.name in failures[name]) for name in names
    }
    print("rule  cases" + "".join(f"{name:>9}" for name in names))
    behind = 0
    for rule, total in sorted(totals.items()):
        passed = [total - lost[name][rule] for name in names]
        behind += passed[0] < max(passed)
        print(f"{rule:4}  {total:5}" + "".join(f"{count:9}" for count in passed))
    print(
        f" all  {len(cases):5}" + "".join(f"{len(cases) - len(failures[name]):9}" for name in names)
    )
    if options.v:
        for name in names:
            print(f"\n{name} fails:")
            for case_name, problems in failures[name].items():
                print(f"  {case_name}\n      {problems[0][:300]}")
    print(f"Atlas is behind in {behind} rules")
    return 1 if behind else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
