"""Configurations in a line, and what is said about them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from atlas_pkg.config.loader import parse_config
from atlas_pkg.config.model import Config
from atlas_pkg.errors import ConfigError

NAME = Path("atlas.toml")

UPSTREAM = '[[upstreams]]\nname = "a"\naddress = "10.0.0.1"\nport = 3000\n'
UPSTREAMS = UPSTREAM + UPSTREAM.replace('"a"', '"b"').replace("0.1", "0.2")


def parse(text: str, environ: dict[str, str] | None = None) -> Config:
    """Parse a file of this text."""
    return parse_config(text.encode(), NAME, environ or {})


def problems(text: str | bytes, environ: dict[str, str] | None = None) -> list[str]:
    """Return everything that is said about a file that is refused."""
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(ConfigError) as caught:
        parse_config(data, NAME, environ or {})
    return list(caught.value.problems)


def mistakes(text: str, environ: dict[str, str] | None = None) -> list[str]:
    """Return the same without file and line."""
    return [re.sub(r"^atlas\.toml:(\d+:)? ", "", problem) for problem in problems(text, environ)]
