#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["tomli", "watchdog"]
# ///
"""Start the load balancer: `python atlas.py config.toml`.

The block above is inline script metadata (PEP 723): a script runner that knows it installs the
two packages on its own (`uv run atlas.py`, `pipx run atlas.py`). Started without them, Atlas says
how to get them. Everything else is in `atlas_pkg/`; its `main.py` is where to begin.

This file is written so that a Python that is too old can read it and say so, even Python 2.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this line is for the interpreters that are too old
    sys.exit("atlas: needs Python 3.11 or newer, this is {}.{}".format(*sys.version_info[:2]))

HELP = """\
Each of these provides it, also where the system's Python refuses pip install (Debian, Ubuntu):
  uv run atlas.py                 installs what is needed by itself
  pipx run atlas.py               so does this
  python3 -m venv .venv && .venv/bin/pip install tomli watchdog
                                  then start with .venv/bin/python atlas.py
  python3 atlas.pyz               the single file, which has both packages inside; README.md,
                                  "As one file", tells how it is made"""

try:
    from atlas_pkg.__main__ import main
except ModuleNotFoundError as error:
    if error.name not in ("tomli", "watchdog"):
        raise
    sys.exit("atlas: the package " + error.name + " is missing.\n" + HELP)

if __name__ == "__main__":
    sys.exit(main())
