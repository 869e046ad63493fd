"""The suite: `python3 -m tests` runs all of it, see `tests/__main__.py`."""
