"""What holds for all tests: none depends on how fast the machine is, and Python compiles once.

So does Chromium start: at most once in each process, for the first test that wants a page.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.browser import Browser, Tab, find_browser, start_browser

settings.register_profile("atlas", deadline=None)
settings.load_profile("atlas")

# Atlas is started a thousand times. Compiling it each time would take half of the CPU time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The Chromium that all tests share."""
    if find_browser() is None:
        pytest.skip("no Chromium is installed")
    with start_browser() as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    """A tab of one's own."""
    with browser.open_tab() as tab:
        yield tab


def pytest_collection_finish() -> None:
    """Six thousand tests are there to stay: the collector need not look through them each time."""
    gc.freeze()
