"""Anything at all is a configuration or has problems; it never ends in a traceback."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_pkg.config import loader, summary
from atlas_pkg.config.loader import Reader
from atlas_pkg.config.model import Config
from atlas_pkg.errors import ConfigError
from tests.config.reference import entries
from tests.config.samples import NAME

_SCALARS = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates(), st.times()
)
_KEYS = st.one_of(
    st.text(max_size=8),
    st.sampled_from([part for entry in entries() for part in entry.place.split(".")]),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_KEYS, inner, max_size=4)),
    max_leaves=12,
)


def outcome(reader: Reader[Config], document: dict[str, object]) -> list[str]:
    """The problems that reading ends with, or the summary of what is read."""
    built = reader.read(document, given={"path": NAME})
    return [place for place, _ in reader.problems] if built is None else [summary.summary(built)]


@given(st.dictionaries(_KEYS, _VALUES, max_size=6))
@settings(max_examples=50)
def test_any_document_is_a_configuration_or_has_problems(document: dict[str, object]) -> None:
    assert outcome(Reader(Config, {}), document)


@given(st.binary(max_size=60))
@settings(max_examples=100)
def test_no_bytes_raise_anything_but_a_config_error(data: bytes) -> None:
    try:
        told: tuple[str, ...] = (summary.summary(loader.parse_config(data, NAME, {})),)
    except ConfigError as error:
        told = error.problems

    assert told
    assert all(sentence.startswith("atlas.toml:") for sentence in told)
