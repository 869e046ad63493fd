"""Every place of a file has the line that says it, whatever TOML allows between."""

from __future__ import annotations

import tomli

from atlas_pkg.config.document import find_lines

TEXT = '''
top = 1
[plain] # [not.this]
a.b = "x = 1"
"quoted.key" = { inner = 1, "in ner" = [2] }
text = """
[no.header]
no = "key"
"""
raw = \'\'\'
]
\'\'\'
  [ spaced . out ]
  x = [
    "]", # ]
    [1, 2],
  ]
[[many]]
y = 1
[[many.inner]]
z = 1
[[many.inner]]
z = 2
[[many]]
[many.inner]
z = 3
'''

LINES = {
    "top": 2,
    "plain": 3,
    "plain.a": 4,
    "plain.a.b": 4,
    'plain."quoted.key"': 5,
    'plain."quoted.key".inner': 5,
    'plain."quoted.key"."in ner"': 5,
    'plain."quoted.key"."in ner"[0]': 5,
    "plain.text": 6,
    "plain.raw": 10,
    "spaced": 13,
    "spaced.out": 13,
    "spaced.out.x": 14,
    "spaced.out.x[0]": 14,
    "spaced.out.x[1]": 14,
    "spaced.out.x[1][0]": 14,
    "spaced.out.x[1][1]": 14,
    "many": 18,
    "many[0]": 18,
    "many[0].y": 19,
    "many[0].inner": 20,
    "many[0].inner[0]": 20,
    "many[0].inner[0].z": 21,
    "many[0].inner[1]": 22,
    "many[0].inner[1].z": 23,
    "many[1]": 24,
    "many[1].inner": 25,
    "many[1].inner.z": 26,
}


def test_every_place_has_its_line() -> None:
    assert tomli.loads(TEXT)

    assert find_lines(TEXT) == LINES
    assert find_lines(TEXT.replace("\n", "\r\n")) == LINES


def test_a_table_in_a_later_one_of_an_array_is_not_that_of_the_first() -> None:
    text = "[[a]]\n[[a.b]]\n[[a]]\n[[a.b]]\n[a.b.c]\n"

    assert find_lines(text) == {
        "a": 1,
        "a[0]": 1,
        "a[0].b": 2,
        "a[0].b[0]": 2,
        "a[1]": 3,
        "a[1].b": 4,
        "a[1].b[0]": 4,
        "a[1].b[0].c": 5,
    }
