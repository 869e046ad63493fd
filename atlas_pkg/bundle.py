"""Write Atlas as one file that needs Python alone: `python -m atlas_pkg.bundle`.

The file is a zip archive behind a `#!` line (PEP 441): Python finds the archive by its end, so it
runs under any name, `atlas.pyz` as well as `atlas.py`. Inside are this package, and tomli and
watchdog as they are installed here. Only their Python sources are taken: the compiled speed-ups
some wheels carry would tie the file to one platform, and both packages work without. The same
sources give the same bytes: names are sorted, times fixed, and nothing is compressed, since two
builds of zlib need not agree. Compiled bytecode is left out too, as it fits one Python version
only; that costs a moment at each start.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

from atlas_pkg.errors import AtlasError

_BUNDLED = ("tomli", "watchdog")

# The earliest time that a zip archive can hold.
_EPOCH = (1980, 1, 1, 0, 0, 0)

_SHEBANG = b"#!/usr/bin/env python3\n"

_START = b"""\
import sys

if sys.version_info < (3, 11):
    sys.exit("atlas: needs Python 3.11 or newer, this is {}.{}".format(*sys.version_info[:2]))

from atlas_pkg.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
"""


class BundleError(AtlasError):
    """A package that belongs into the bundle is not installed in a form that can be copied."""


def build_bundle() -> bytes:
    """Build the archive with its `#!` line. Raises `BundleError`."""
    members = {"__main__.py": _START}
    members.update(_own_members())
    for name in _BUNDLED:
        members.update(_package_members(name))
    whole = io.BytesIO()
    whole.write(_SHEBANG)
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for path, data in sorted(members.items()):
            member = zipfile.ZipInfo(path, _EPOCH)
            member.create_system = 3  # Unix, on every system: it says how to read the next line
            member.external_attr = 0o644 << 16
            archive.writestr(member, data)
    return whole.getvalue()


def _own_members() -> Iterator[tuple[str, bytes]]:
    """Yield every file of this package, data files included."""
    root = Path(__file__).resolve().parent
    for path in root.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            yield f"{root.name}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _package_members(name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the Python sources of an installed package, and the licences it must travel with."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise BundleError(f"{name}: not installed") from None
    has_sources = False
    for path in distribution.files or ():
        member = _member_name(name, path)
        if member is None:
            continue
        has_sources = has_sources or member == f"{name}/__init__.py"
        yield member, path.read_binary()
    if not has_sources:
        raise BundleError(f"{name}: installed without its sources; run: pip install {name}")


def _member_name(package: str, path: PurePosixPath) -> str | None:
    """Say what an installed file is called in the bundle; None for one that stays out."""
    top = path.parts[0]
    if top == package and path.suffix == ".py":
        return str(path)
    is_licence = path.name.upper().startswith(("LICENSE", "COPYING", "AUTHORS"))
    if top.endswith(".dist-info") and is_licence:
        return f"licences/{package}/{path.name}"
    return None


def write_bundle(output: Path) -> int:
    """Write the bundle to `output`, executable, and return its size. An old one is replaced."""
    whole = build_bundle()
    output.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place: a running Atlas may still read from the old file.
    unfinished = output.with_name(f".{output.name}.unfinished")
    unfinished.write_bytes(whole)
    unfinished.chmod(0o755)
    unfinished.replace(output)
    return len(whole)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 when the bundle cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m atlas_pkg.bundle",
        description="Write Atlas and the packages it needs as one file.",
    )
    parser.add_argument("--output", type=Path, default=Path("dist/atlas.pyz"), metavar="FILE")
    output: Path = parser.parse_args(argv).output
    try:
        size = write_bundle(output)
    except (BundleError, OSError) as error:
        sys.stderr.write(f"bundle: {error}\n")
        return 1
    sys.stdout.write(f"{output}: {size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
