"""What people put behind and in front of a proxy: a browser, git, pip, uploads, server-sent events.

Each program knows the protocol in its own way and complains in its own. Each test is skipped with
a reason where its program is not installed; nothing leaves this machine.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import random
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from websockets.sync.server import ServerConnection, serve

from tests.browser import Tab
from tests.fakes import Conversation, Request, Scripted, Upstream, build_answer
from tests.functional.conftest import Start
from tests.functional.programs import need, running
from tests.functional.test_interoperability import table
from tests.toolkit import Atlas, Program, Threads, build_config, wait_until

MEGABYTE = 1_000_000


def run(
    *command: str | Path, folder: Path, env: Mapping[str, str] | None = None, timeout: float = 40
) -> str:
    """Run a program that has no settings and no proxies but those given; returns its output."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG")}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**kept, "HOME": str(folder), "TMPDIR": str(folder), **(env or {})},
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    return result.stdout.decode()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A folder, and the port of Python's own server that serves it."""
    folder = tmp_path / "files"
    folder.mkdir()
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind=127.0.0.1"]
    with running(Program([*command, f"--directory={folder}"]), r"port (\d+)") as port:
        yield folder, port


# --- a browser ---

SCRIPTS, IMAGES = 60, 40

PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<p id="loaded"></p><p id="echo"></p>
<script>
  let loaded = 0;
  const put = (id, text) => document.getElementById(id).textContent = text;
  const count = () => put("loaded", loaded += 1);
  const socket = new WebSocket(`ws://${location.host}/echo`);
  socket.onopen = () => socket.send("hello");
  socket.onmessage = event => put("echo", event.data);
</script>
"""

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


def build_page() -> bytes:
    """The page, with all that it has to load."""
    scripts = [f'<script src="/{number}.js"></script>' for number in range(SCRIPTS)]
    images = [f'<img onload="count()" src="/{number}.svg">' for number in range(IMAGES)]
    return "\n".join([PAGE, *scripts, *images]).encode()


class WebServer:
    """Serves the page, what it asks for, and a WebSocket that sends everything back."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def serve(self, conversation: Conversation) -> None:
        while request := conversation.read_head():
            self.paths.append(request.target)
            if request.get("Upgrade").lower() == "websocket":
                self._echo(conversation, request)
                return
            conversation.send(self._answer(request.target))

    def _answer(self, target: str) -> bytes:
        if target == "/":
            return build_answer(build_page(), fields="Content-Type: text/html\r\n")
        if target.endswith(".js"):
            return build_answer(b"count();", fields="Content-Type: text/javascript\r\n")
        if target.endswith(".svg"):
            return build_answer(SVG, fields="Content-Type: image/svg+xml\r\n")
        return build_answer(b"", status="404 Not Found")

    def _echo(self, conversation: Conversation, request: Request) -> None:
        """Talk WebSocket (RFC 6455 §5.2), short frames only."""
        key = request.get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        fields = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}"
        conversation.send(f"HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n\r\n".encode())
        while True:
            _, length = struct.unpack("!BB", b"".join(conversation._read(2)))
            masked = b"".join(conversation._read(4 + (length & 0x7F)))
            text = bytes(byte ^ masked[at % 4] for at, byte in enumerate(masked[4:]))
            conversation.send(b"\x81" + bytes([len(text)]) + text)


def test_a_browser_loads_a_page_and_talks_over_a_websocket(
    upstreams: contextlib.ExitStack, start: Start, tab: Tab
) -> None:
    server = WebServer()
    atlas = start(build_config(upstreams.enter_context(Upstream(server.serve)).table()))

    tab.go(f"http://127.0.0.1:{atlas.port}/")
    tab.wait_for(f"document.getElementById('loaded')?.textContent == {SCRIPTS + IMAGES}")
    tab.wait_for("document.getElementById('echo').textContent == 'hello'")

    assert {"/", "/echo", "/0.js", f"/{IMAGES - 1}.svg"} <= set(server.paths)


# --- git ---


class Git:
    """The git program, without any settings of the machine."""

    def __init__(self, folder: Path) -> None:
        self.program = need("git")
        self.folder = folder

    def __call__(self, *arguments: str | Path, folder: Path | None = None) -> str:
        env = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
        who = ("-c", "user.name=a", "-c", "user.email=a@example.test")
        return run(self.program, *who, *arguments, folder=folder or self.folder, env=env)

    def commit(self, folder: Path, name: str, size: int) -> None:
        """Add a file that does not get smaller when it is packed."""
        (folder / name).write_bytes(random.Random(name).randbytes(size))
        self("add", name, folder=folder)
        self("commit", "-q", "-m", name, folder=folder)


@pytest.fixture
def git(tmp_path: Path) -> Git:
    return Git(tmp_path)


@pytest.fixture
def work(git: Git, tmp_path: Path) -> Path:
    """A repository with a few commits."""
    folder = tmp_path / "work"
    git("init", "-q", folder)
    for number in range(5):
        git.commit(folder, f"file{number}", 400_000)
    return folder


def test_git_clones_file_by_file(
    git: Git, work: Path, files: tuple[Path, int], start: Start
) -> None:
    folder, port = files
    git("clone", "-q", "--bare", work, folder / "bare.git")
    git("update-server-info", folder=folder / "bare.git")
    atlas = start(build_config(table(port)))

    git("clone", "-q", f"http://127.0.0.1:{atlas.port}/bare.git", "clone")

    assert git("rev-parse", "HEAD", folder=git.folder / "clone") == git(
        "rev-parse", "HEAD", folder=work
    )
    git("fsck", "--strict", folder=git.folder / "clone")


class GitServer:
    """`git http-backend`, which wants to be called as CGI (RFC 3875)."""

    def __init__(self, git: Git, root: Path) -> None:
        self._git = git
        self._root = root
        self.was_chunked = False

    def serve(self, conversation: Conversation) -> None:
        while request := conversation.read_head():
            self.was_chunked |= request.get("Transfer-Encoding") == "chunked"
            body = b"".join(conversation.read_body(request))
            conversation.send(self._call(request, body))

    def _call(self, request: Request, body: bytes) -> bytes:
        path, _, query = request.target.partition("?")
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._git.folder),
            "GIT_PROJECT_ROOT": str(self._root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.line.split(" ")[0],
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": request.get("Content-Type"),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.get("Content-Encoding"),
            "GIT_PROTOCOL": request.get("Git-Protocol"),
            "REMOTE_USER": "a",
            "REMOTE_ADDR": "127.0.0.1",
        }
        command = [self._git.program, "http-backend"]
        done = subprocess.run(command, input=body, env=env, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        status = next((line[8:] for line in lines if line.startswith("Status: ")), "200 OK")
        fields = "".join(f"{line}\r\n" for line in lines if not line.startswith("Status: "))
        return build_answer(content, status=status, fields=fields)


def test_git_clones_and_pushes_with_its_own_protocol(
    git: Git, work: Path, upstreams: contextlib.ExitStack, start: Start, tmp_path: Path
) -> None:
    git("clone", "-q", "--bare", work, tmp_path / "root" / "bare.git")
    git("config", "http.receivepack", "true", folder=tmp_path / "root" / "bare.git")
    server = GitServer(git, tmp_path / "root")
    atlas = start(build_config(upstreams.enter_context(Upstream(server.serve)).table()))
    clone = tmp_path / "clone"

    git("clone", "-q", f"http://127.0.0.1:{atlas.port}/bare.git", clone)
    git.commit(clone, "large", 3 * MEGABYTE)  # beyond what git sends with a length
    git("push", "-q", "origin", "HEAD", folder=clone)

    pushed = git("rev-parse", "HEAD", folder=tmp_path / "root" / "bare.git")
    assert pushed == git("rev-parse", "HEAD", folder=clone)
    git("fsck", "--strict", folder=tmp_path / "root" / "bare.git")
    assert server.was_chunked


# --- pip ---


def build_wheel(folder: Path) -> Path:
    """A package of 30 MB, made without any tool."""
    payload = random.Random(1).randbytes(30 * MEGABYTE)
    info = "atlas_sample-1.0.dist-info"
    content = {
        "atlas_sample/__init__.py": b"",
        "atlas_sample/data.bin": payload,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: atlas-sample\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*content, f"{info}/RECORD"])
    path = folder / "atlas_sample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in {**content, f"{info}/RECORD": record.encode()}.items():
            wheel.writestr(name, data)
    return path


def test_pip_downloads_from_an_index(files: tuple[Path, int], start: Start, tmp_path: Path) -> None:
    pytest.importorskip("pip")
    folder, port = files
    index = folder / "simple" / "atlas-sample"
    index.mkdir(parents=True)
    wheel = build_wheel(index)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    link = f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>'
    (index / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    atlas = start(build_config(table(port)))

    run(
        *(sys.executable, "-m", "pip", "--isolated", "download", "--no-deps", "--no-cache-dir"),
        *("--disable-pip-version-check", "--only-binary=:all:"),
        *(f"--index-url=http://127.0.0.1:{atlas.port}/simple", "--dest=got", "atlas-sample"),
        folder=tmp_path,
    )

    got = tmp_path / "got" / wheel.name
    assert hashlib.sha256(got.read_bytes()).hexdigest() == digest


# --- uploads and events ---

NODE_SERVER = """
const http = require('http'), crypto = require('crypto');
let events;
const server = http.createServer((request, response) => {
  if (request.url === '/events') {
    response.writeHead(200, {'Content-Type': 'text/event-stream'});
    response.write('data: 0\\n\\n');
    events = response;
    return;
  }
  if (request.url.startsWith('/event/')) {
    events.write(`data: ${request.url.slice(7)}\\n\\n`);
    return response.end('sent');
  }
  const pieces = [];
  request.on('data', piece => pieces.push(piece));
  request.on('end', () => {
    const body = Buffer.concat(pieces);
    const boundary = request.headers['content-type'].split('boundary=')[1];
    const file = body.subarray(body.indexOf('\\r\\n\\r\\n') + 4,
                               body.lastIndexOf(`\\r\\n--${boundary}--`));
    response.end(crypto.createHash('sha256').update(file).digest('hex'));
  });
});
server.listen(0, '127.0.0.1', () => console.log('port ' + server.address().port));
"""

WSGI_SERVER = """
import hashlib

def app(environ, start_response):
    body = environ["wsgi.input"].read()
    boundary = environ["CONTENT_TYPE"].split("boundary=")[1].encode()
    file = body[body.index(b"\\r\\n\\r\\n") + 4 : body.rindex(b"\\r\\n--" + boundary + b"--")]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [hashlib.sha256(file).hexdigest().encode()]
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[int]:
    script = tmp_path / "server.js"
    script.write_text(NODE_SERVER)
    with running(Program([need("node"), script]), r"port (\d+)") as port:
        yield port


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "wsgi_server.py").write_text(WSGI_SERVER)
    pytest.importorskip("gunicorn")
    command = [sys.executable, "-m", "gunicorn", "--bind=127.0.0.1:0", "--threads=4"]
    program = Program([*command, "--no-control-socket", "wsgi_server:app"], cwd=tmp_path)
    with running(program, r"Listening at: http://127\.0\.0\.1:(\d+)") as port:
        yield port


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("name", ["node", "gunicorn"])
def test_a_form_with_a_large_file_is_uploaded(
    name: str, chunked: bool, request: pytest.FixtureRequest, start: Start, tmp_path: Path
) -> None:
    curl = need("curl")
    atlas = start(build_config(table(request.getfixturevalue(name))))
    data = random.Random(2).randbytes(50 * MEGABYTE)
    (tmp_path / "large.bin").write_bytes(data)
    options = ["-H", "Transfer-Encoding: chunked"] if chunked else []

    said = run(
        *(curl, "-sf", *options, "-F", "file=@large.bin", f"http://127.0.0.1:{atlas.port}/form"),
        folder=tmp_path,
    )

    assert said == hashlib.sha256(data).hexdigest()
    assert atlas.peak_memory < 100 * MEGABYTE


def test_server_sent_events_come_one_by_one(node: int, start: Start) -> None:
    atlas: Atlas = start(build_config(table(node)))

    base = f"http://127.0.0.1:{atlas.port}"
    with (
        httpx.Client(base_url=base, timeout=20) as client,
        client.stream("GET", "/events") as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        heard = [next(lines)]
        for number in range(1, 10):
            # Sent only now, when the one before it has been read to its end.
            assert httpx.get(f"{base}/event/{number}", timeout=20).text == "sent"
            heard.append(next(lines))

    assert answer.headers["Content-Type"] == "text/event-stream"
    assert heard == [f"data: {number}" for number in range(10)]


# Upgrades, with a length that says that there is no body, and with a body

JAVA_CLIENT = """
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;

public class Talk {
    public static void main(String[] arguments) throws Exception {
        var heard = new CompletableFuture<String>();
        var listener = new WebSocket.Listener() {
            public CompletionStage<?> onText(WebSocket socket, CharSequence text, boolean last) {
                heard.complete(text.toString());
                return null;
            }
        };
        var socket = HttpClient.newHttpClient().newWebSocketBuilder()
            .buildAsync(URI.create(arguments[0]), listener).join();
        socket.sendText("hello", true).join();
        System.out.println(heard.get());
        socket.sendClose(1000, "").join();
    }
}
"""


@pytest.mark.engines("lane")
def test_a_websocket_client_of_the_jdk_talks(start: Start, tmp_path: Path) -> None:
    java = need("java")
    need("javac")  # which compiles what follows
    (tmp_path / "Talk.java").write_text(JAVA_CLIENT)

    def echo(websocket: ServerConnection) -> None:
        assert websocket.request is not None
        assert websocket.request.headers["Connection"] == "Upgrade"
        websocket.send(f"{websocket.recv()} to you too")

    with serve(echo, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        atlas = start(build_config(table(server.socket.getsockname()[1])))
        said = run(java, "Talk.java", f"ws://127.0.0.1:{atlas.port}/", folder=tmp_path)
        server.shutdown()

    assert said == "hello to you too\n"


DOCKER_SWITCHED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


def test_docker_runs_a_command_over_an_upgrade_with_a_body(
    upstreams: contextlib.ExitStack, start: Start, tmp_path: Path
) -> None:
    docker = need("docker")

    def told(text: bytes) -> bytes:
        return build_answer(text, fields="Content-Type: application/json\r\n")

    output = b"\x01\0\0\0" + struct.pack(">I", 6) + b"hello\n"  # of standard output
    daemon = Scripted(
        "daemon",
        targets={
            "/v1.44/containers/c/json": told(b'{"Id": "c", "State": {"Running": true}}'),
            "/v1.44/containers/c/exec": told(b'{"Id": "e"}'),
            "/v1.44/exec/e/start": (DOCKER_SWITCHED + output, "close"),
            "/v1.44/exec/e/json": told(b'{"ExitCode": 0}'),
        },
    )
    atlas = start(build_config(upstreams.enter_context(daemon).table()))
    env = {"DOCKER_HOST": f"tcp://127.0.0.1:{atlas.port}", "DOCKER_API_VERSION": "1.44"}

    said = run(docker, "exec", "c", "say", "hello", folder=tmp_path, env=env)

    assert said == "hello\n"
    (begun,) = (request for request in daemon.seen if request.target == "/v1.44/exec/e/start")
    assert begun.get("Upgrade") == "tcp"
    assert daemon.bodies[daemon.seen.index(begun)].startswith(b'{"Detach":false')


def test_a_wget_that_ends_its_sending_at_once_waits_in_the_queue(
    upstreams: contextlib.ExitStack, start: Start, tmp_path: Path
) -> None:
    busybox = need("busybox")
    upstream = upstreams.enter_context(Scripted("a", ("hold", 200)))
    atlas = start(build_config(upstream.table(max_connections=1)))
    threads = Threads()

    for _ in range(2):
        threads.start(
            lambda: run(busybox, "wget", "-qO-", f"http://127.0.0.1:{atlas.port}/", folder=tmp_path)
        )
    wait_until(lambda: upstream.requests, "the first of them")
    threading.Event().wait(1.0)  # longer than a client that is gone is waited for
    upstream.let_go(2)

    assert threads.join() == ["a", "a"]
