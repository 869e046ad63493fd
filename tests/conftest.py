"""What holds for all tests: none depends on how fast the machine is, and Python compiles once."""

from __future__ import annotations

import os
import sys

from hypothesis import settings

settings.register_profile("atlas", deadline=None)
settings.load_profile("atlas")

# Atlas is started a thousand times. Compiling it each time would take half of the CPU time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
