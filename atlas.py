#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["tomli", "watchdog"]
# ///
"""Start the load balancer: `python atlas.py config.toml`.

The block above is inline script metadata (PEP 723): a script runner that knows it installs the
two packages on its own (`uv run atlas.py`, `pipx run atlas.py`). Started without them, Atlas says
in one line how to get them. Everything else is in `atlas_pkg/`; its `main.py` is where to begin.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this line is for the interpreters that are too old
    sys.exit("atlas: needs Python 3.11 or newer, this is {}.{}".format(*sys.version_info[:2]))

try:
    from atlas_pkg.main import main
except ModuleNotFoundError as error:
    if error.name not in {"tomli", "watchdog"}:
        raise
    sys.exit(f"atlas: the package {error.name} is missing; run: pip install tomli watchdog")

if __name__ == "__main__":
    sys.exit(main())
