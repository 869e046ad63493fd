"""Build your own: every step serves real clients, and every experiment shows what its page says."""

from __future__ import annotations

import ast
import functools
import hashlib
import http.client
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests.test_readme import LINK, anchors, blocks
from tests.toolkit import ROOT, Program

FOLDER = ROOT / "examples" / "build-your-own"
STEPS = [1, 2, 3, 4, 5, 6, 7]
PAGES = sorted(FOLDER.glob("*.md"))

TIME_LIMIT = 50.0  # of what takes a few seconds, on a machine that may be busy

# More than curl sends without asking first (`Expect: 100-continue`).
BODY = bytes(range(256)) * 5000


def load_lab() -> Any:
    """Import `lab.py`, which is not in a package."""
    name = "build_your_own_lab"
    spec = importlib.util.spec_from_file_location(name, FOLDER / "lab.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lab = load_lab()


@pytest.fixture(scope="module")
def upstreams() -> Iterator[list[SimpleNamespace]]:
    """Two upstreams to play with, as the pages have them."""
    with ExitStack() as stack:
        found = []
        for name in ("one", "two"):
            program = Program([sys.executable, ROOT / "examples" / "upstream.py", name, "0"])
            stack.callback(program.end)
            line = program.wait_for("listens on", printed=True)
            found.append(SimpleNamespace(name=name, port=int(line.rpartition(":")[2])))
        yield found


@pytest.fixture(scope="module")
def url_of(upstreams: list[SimpleNamespace]) -> Iterator[Callable[[int], str]]:
    """Run a step, once for all tests, in front of as many upstreams as it can have."""
    with ExitStack() as stack:

        @functools.cache
        def start(step: int) -> str:
            scene = lab.Scene(f"step{step}")
            program = stack.enter_context(scene.start(*upstreams[: 1 if step < 4 else 2]))
            return f"http://127.0.0.1:{program.port}"

        yield start


def curl(*arguments: str, body: bytes = b"") -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "--max-time", "20", *arguments],
        input=body,
        capture_output=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("step", STEPS)
def test_step_answers_real_clients(step: int, url_of: Callable[[int], str]) -> None:
    close = {"Connection": "close"} if step == 1 else {}  # it waits for the upstream to close

    url = url_of(step)
    by_curl = curl(*[part for field in close for part in ("-H", f"{field}: close")], url)
    by_httpx = httpx.get(url, headers=close, trust_env=False, timeout=20)
    client = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    client.request("GET", "/", headers=close)
    by_library = client.getresponse().read().decode()
    client.close()

    for text in (by_curl, by_httpx.text, by_library):
        assert text in {"Hello from one\n", "Hello from two\n"}


@pytest.mark.parametrize("step", STEPS[1:])
def test_step_passes_bodies_and_heads_without_one(step: int, url_of: Callable[[int], str]) -> None:
    digest = f"sha256 {hashlib.sha256(BODY).hexdigest()}\n"

    url = url_of(step)
    assert curl("--data-binary", "@-", url, body=BODY).endswith(digest)
    chunked = ("-H", "Transfer-Encoding: chunked", "--data-binary", "@-")
    assert curl(*chunked, url, body=BODY).endswith(digest)
    heads = curl("-I", url, "--next", "-sS", "--noproxy", "*", url)
    assert "content-length: " in heads  # of a body that does not come
    assert heads.endswith("Hello from one\n" if step < 4 else ("one\n", "two\n"))
    assert httpx.post(url, content=BODY, trust_env=False, timeout=20).text.endswith(digest)
    assert httpx.post(url, content=iter([BODY]), trust_env=False, timeout=20).text.endswith(digest)


@pytest.mark.parametrize("step", STEPS[2:])
def test_step_keeps_connections(step: int, url_of: Callable[[int], str]) -> None:
    url = url_of(step)
    said = curl(
        "-w", "%{num_connects}", *[part for _ in "abc" for part in ("-o", "/dev/null", url)]
    )
    with httpx.Client(trust_env=False, timeout=20) as client:
        answers = [client.post(url, content=b"x" * size) for size in (0, 1, 100_000)]

    assert said == "100"
    assert [answer.status_code for answer in answers] == [200, 200, 200]


@pytest.mark.parametrize("step", STEPS[3:])
def test_step_shares_requests_among_upstreams(step: int, url_of: Callable[[int], str]) -> None:
    url = url_of(step)
    with httpx.Client(trust_env=False, timeout=20) as client:
        texts = [client.get(url).text for _ in range(10)]

    assert texts.count("Hello from one\n") == texts.count("Hello from two\n") == 5


@pytest.mark.parametrize("step", STEPS)
def test_experiments_show_what_the_page_says(step: int) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / f"experiment{step}.py"],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("step", "clients", "threads"), [("step6", 300, 303), ("step7", 3000, 36)])
def test_idle_clients_cost_a_thread_each_or_none(step: str, clients: int, threads: int) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "idle.py", step, str(clients)],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )

    assert f"{clients} idle clients, {threads} threads" in done.stdout, done.stderr
    assert "hears: HTTP/1.1 200 OK" in done.stdout


# The pages


def test_files_are_as_long_as_the_pages_say() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, count in re.findall(
            r"\[(\w+\.py)\]\(\1\)(?:, which[^:]*)?:?\s+(\d+) lines", text
        ):
            assert len((FOLDER / name).read_text(encoding="utf-8").splitlines()) == int(count), page


@pytest.mark.skipif(shutil.which("diff") is None, reason="diff is not installed")
@pytest.mark.parametrize("step", STEPS[1:-1])
def test_changes_are_as_small_as_the_pages_say(step: int) -> None:
    text = (FOLDER / f"step{step}.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"`diff -u` from step \d: (\d+) lines", text)

    done = subprocess.run(
        ["diff", "-u", f"step{step - 1}.py", f"step{step}.py"],
        cwd=FOLDER,
        capture_output=True,
        check=False,
    )

    assert len(done.stdout.splitlines()) == int(told) <= 150


def test_a_step_is_a_file_that_can_be_read_in_one_sitting() -> None:
    for path in FOLDER.glob("step*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 170, path


def test_steps_need_python_alone() -> None:
    own = {path.stem for path in FOLDER.glob("*.py")}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] in sys.stdlib_module_names | own, (path, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_pages_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_that_the_pages_name_exist(page: Path) -> None:
    for block in blocks("sh", page):
        for name in re.findall(r"examples/[\w/-]+\.\w+", block):
            assert (ROOT / name).exists(), name
