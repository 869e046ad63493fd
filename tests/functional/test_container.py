"""As the image starts it: process 1, as nobody, with a root that it cannot write, and no home."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_pkg import bundle
from tests.fakes import Upstream, named
from tests.toolkit import Atlas, build_config

PYTHON = "/usr/bin/python3"  # nobody may not look into everybody's own

# Makes a view of the root that is read only, with the folder of the configuration in it, and is
# Atlas there. What it mounts nobody else sees, and it is gone with it.
SCRIPT = """
set -e
root=$1 config=$2; shift 2
mount --bind / "$root"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind "$config" "$root/mnt"
mount -o remount,bind,ro "$root/mnt"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs \\
    --bounding-set -all env -i PATH=/usr/bin HOME=/nonexistent "$@"
"""
UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "sh", "-c", SCRIPT, "sh")


@pytest.fixture
def a() -> Iterator[Upstream]:
    with named("A") as upstream:
        yield upstream


class Container(Atlas):
    """An Atlas in a container of its own."""

    def __init__(self, root: Path, config: Path, program: str, python: str) -> None:
        prefix = (*UNSHARE, str(root), str(config))
        super().__init__(
            Path("/mnt/atlas.toml"), prefix=prefix, program=Path(program), python=python
        )
        self.config = config

    def kill(self, number: int) -> None:
        """Signal process 1 from outside, as container engines do."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        os.kill(int(children), number)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A place for the root, and a folder with the program and the configuration."""
    root, config = tmp_path / "root", tmp_path / "config"
    root.mkdir()
    config.mkdir()
    bundle.write_bundle(config / "atlas.pyz")
    (config / "try.sh").write_text("test $$ = 1 && ! touch /tmp/x 2>&1 && test -e /mnt/try.sh")
    tried = [*UNSHARE, str(root), str(config), "sh", "/mnt/try.sh"]
    if not shutil.which("unshare") or subprocess.run(tried, check=False).returncode:
        pytest.skip("no such container can be made here")
    version = [PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not Path(PYTHON).exists() or subprocess.run(version, check=False).returncode:
        pytest.skip("the system has no Python that Atlas can use")
    return root, config


@pytest.mark.parametrize("workers", [1, 2])
def test_it_starts_reloads_and_ends(workers: int, a: Upstream, folders: tuple[Path, Path]) -> None:
    root, config = folders
    tables = {"listen": {"workers": workers}, "timeouts": {"drain": 8.0}, "log": {"access": "-"}}
    (config / "atlas.toml").write_text(build_config(**tables))
    with Container(root, config, "/mnt/atlas.pyz", PYTHON) as atlas:
        atlas.wait_until_listening()
        assert atlas.get().status == 503

        (config / "new").write_text(build_config(a.table(), **tables))
        (config / "new").replace(config / "atlas.toml")
        atlas.wait_for("Configuration hot-reloaded", times=workers)
        assert atlas.get().text == "A"
        atlas.kill(signal.SIGTERM)

        assert atlas.wait() == 0
    assert any('"GET / HTTP/1.1" 200' in line for line in atlas.printed)
    assert atlas.count("drained: all requests were finished") == workers
