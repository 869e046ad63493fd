"""The process in which atheris runs; started by `python -m tests.soak fuzz`.

Only Atlas is instrumented: to cover more of the readers of other makers is no progress.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["atlas_pkg.http1"], enable_loader_override=False):
    from tests.soak.targets import check


def main() -> None:
    """Hand the command line over to libFuzzer."""
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
