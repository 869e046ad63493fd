"""Servers and clients of other makers, which know the protocol in their own ways.

Each is skipped with a reason where its program is not installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx
import pytest

from tests.fakes import Conversation, Request, Scripted, build_answer
from tests.functional import programs
from tests.functional.conftest import Start
from tests.functional.programs import need, running
from tests.toolkit import Atlas, Program, build_config, free_port

BODY = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(BODY).hexdigest()

NODE_UPSTREAM = """
const http = require('http'), crypto = require('crypto');
const server = http.createServer((request, response) => {
  if (request.url === '/echo') return request.pipe(response);
  const hash = crypto.createHash('sha256');
  request.on('data', piece => hash.update(piece));
  request.on('end', () => response.end(request.method === 'POST' ? hash.digest('hex') : 'hello'));
});
server.listen(0, '127.0.0.1', () => console.log('port ' + server.address().port));
"""

WSGI_UPSTREAM = """
import hashlib

def app(environ, start_response):
    if environ["PATH_INFO"] == "/environ":
        start_response("200 OK", [("Content-Type", "text/plain")])
        told = [f"{name}={environ[name]}" for name in sorted(environ) if name.startswith("HTTP_")]
        return ["\\n".join(told).encode()]
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [hashlib.sha256(body).hexdigest().encode() if body else b"hello"]
"""


def table(port: int) -> dict[str, object]:
    return {"name": "a", "address": "127.0.0.1", "port": port}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[int]:
    script = tmp_path / "upstream.js"
    script.write_text(NODE_UPSTREAM)
    with running(Program([need("node"), script]), r"port (\d+)") as port:
        yield port


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "wsgi_upstream.py").write_text(WSGI_UPSTREAM)
    pytest.importorskip("gunicorn")
    command = [sys.executable, "-m", "gunicorn", "--bind=127.0.0.1:0", "--threads=4"]
    program = Program([*command, "--no-control-socket", "wsgi_upstream:app"], cwd=tmp_path)
    with running(program, r"Listening at: http://127\.0\.0\.1:(\d+)") as port:
        yield port


@pytest.fixture
def http_server(tmp_path: Path) -> Iterator[int]:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "file.bin").write_bytes(BODY)
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind=127.0.0.1"]
    with running(Program([*command, f"--directory={folder}"]), r"port (\d+)") as port:
        yield port


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file.bin").write_bytes(BODY)
    port = free_port()
    server = f"listen 127.0.0.1:{port}; root {tmp_path}; gzip on; gzip_min_length 0;"
    server += " gzip_types text/plain; gzip_proxied any;"
    with programs.nginx(tmp_path, port, server):
        yield port


@pytest.mark.parametrize("name", ["node", "gunicorn"])
def test_an_application_server_is_served(
    name: str, request: pytest.FixtureRequest, start: Start
) -> None:
    atlas = start(build_config(table(request.getfixturevalue(name))))

    with atlas.client() as client:
        for _ in range(20):
            assert client.get().text == "hello"
            assert client.post(BODY).text == DIGEST
        client.send_head("HEAD")
        assert client.read_head().status == 200
        client.send_head("POST", Transfer_Encoding="chunked")
        client.send(b"5\r\nhello\r\n0\r\n\r\n")
        assert client.read_answer().text == hashlib.sha256(b"hello").hexdigest()


def test_an_application_is_not_told_by_a_client_whom_it_serves(gunicorn: int, start: Start) -> None:
    forwarding = {"remove_request_fields": ["X-Remote-User"]}
    atlas = start(build_config(table(gunicorn), forwarding=forwarding))

    with atlas.client() as client:
        client.send(
            b"GET /environ HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 6.6.6.6\r\n"
            b"X-Forwarded_Port: 1\r\nX_Remote_User: admin\r\nX-Real_IP: 6.6.6.6\r\n"
            b"X-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Ssl: on\r\n\r\n"
        )
        told = client.read_answer().text.splitlines()

    assert told == [
        "HTTP_HOST=a",
        "HTTP_VIA=1.1 atlas",
        "HTTP_X_FORWARDED_FOR=127.0.0.1",
        "HTTP_X_FORWARDED_HOST=a",
        "HTTP_X_FORWARDED_PROTO=http",
    ]


@pytest.mark.parametrize("name", ["nginx", "http_server"])
def test_a_file_server_is_served(name: str, request: pytest.FixtureRequest, start: Start) -> None:
    atlas = start(build_config(table(request.getfixturevalue(name))))

    with atlas.client() as client:
        for _ in range(5):
            assert client.get("/file.bin").body == BODY
            assert client.get("/missing").status == 404
        client.send_head("HEAD", "/file.bin")
        assert client.read_head().get("Content-Length") == str(len(BODY))
        modified = client.get("/file.bin").get("Last-Modified")
        assert client.get("/file.bin", If_Modified_Since=modified).status == 304
        assert client.get("/file.bin").body == BODY


def test_nginx_may_compress_and_cut_ranges(nginx: int, start: Start) -> None:
    atlas = start(build_config(table(nginx)))

    with httpx.Client(base_url=f"http://127.0.0.1:{atlas.port}", timeout=20) as client:
        whole = client.get("/file.bin", headers={"Accept-Encoding": "gzip"})
        fields = {"Range": "bytes=256-511", "Accept-Encoding": "identity"}
        part = client.get("/file.bin", headers=fields)

    assert whole.headers["Content-Encoding"] == "gzip"
    assert whole.content == BODY
    assert (part.status_code, part.content) == (206, BODY[256:512])


@pytest.mark.parametrize("framing", ["Expect:", "Transfer-Encoding: chunked"])
def test_node_may_pipe_a_large_request_into_its_answer(
    framing: str, node: int, start: Start, tmp_path: Path
) -> None:
    # With a client that reads while it writes: else the answer has nowhere to go.
    curl = need("curl")
    atlas = start(build_config(table(node)))
    sent, received = tmp_path / "sent", tmp_path / "received"
    sent.write_bytes(BODY * 20)

    url = f"http://127.0.0.1:{atlas.port}/echo"
    run(curl, "-sf", "-H", framing, "--data-binary", f"@{sent}", "-o", str(received), url)

    assert received.read_bytes() == BODY * 20


def describe(conversation: Conversation, request: Request) -> None:
    """Answer with what came: the method, the target and the digest of the body."""
    digest = hashlib.sha256()
    for piece in conversation.read_body(request):
        digest.update(piece)
    method, target, _ = request.line.split(" ")
    answer = f"{method} {target} {digest.hexdigest()}".encode()
    conversation.send(build_answer(b"" if method == "HEAD" else answer))


@pytest.fixture
def described(upstreams: contextlib.ExitStack, start: Start) -> Atlas:
    """Atlas in front of an upstream that describes each request."""
    upstream = upstreams.enter_context(Scripted("a", ("unread", describe)))
    return start(build_config(upstream.table()))


def run(*command: str | Path, stdin: bytes = b"") -> str:
    result = subprocess.run(
        [str(part) for part in command], input=stdin, capture_output=True, timeout=40, check=True
    )
    return result.stdout.decode()


@pytest.mark.parametrize(
    "options",
    [["--data-binary", "@-"], ["-T", "-", "-X", "POST"], ["--http1.0", "--data-binary", "@-"]],
    ids=["length", "chunked", "HTTP/1.0"],
)
def test_curl_is_served(options: list[str], described: Atlas) -> None:
    curl = need("curl")
    url = f"http://127.0.0.1:{described.port}"

    assert run(curl, "-sf", f"{url}/x", f"{url}/y").count("GET /") == 2
    assert run(curl, "-sf", *options, f"{url}/up", stdin=BODY) == f"POST /up {DIGEST}"
    assert "200 OK" in run(curl, "-sfI", url)


def test_httpx_is_served(described: Atlas) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{described.port}", timeout=30) as client:
        for _ in range(20):
            assert client.get("/x?y=1").text.startswith("GET /x?y=1 ")
        assert client.post("/", content=BODY).text == f"POST / {DIGEST}"
        assert client.put("/", content=iter([BODY])).text == f"PUT / {DIGEST}"
        assert client.head("/").text == ""
        assert client.delete("/").status_code == 200


def test_aiohttp_is_served_with_many_requests_at_once(described: Atlas) -> None:
    async def ask() -> list[str]:
        base = f"http://127.0.0.1:{described.port}"
        connector = aiohttp.TCPConnector(limit=40)
        async with aiohttp.ClientSession(base, connector=connector) as session:

            async def one(number: int) -> str:
                async with session.post(f"/{number}", data=BODY[: number * 100]) as answer:
                    return await answer.text()

            return await asyncio.gather(*(one(number) for number in range(200)))

    answers = asyncio.run(ask())

    assert answers == [
        f"POST /{number} {hashlib.sha256(BODY[: number * 100]).hexdigest()}"
        for number in range(200)
    ]


NODE_CLIENT = """
const http = require('http'), port = process.argv[2], url = `http://127.0.0.1:${port}`;
const body = Buffer.alloc(1 << 20, 'abc');
const agent = new http.Agent({keepAlive: true, maxSockets: 4});
const ask = (method, path, data) => new Promise((resolve, reject) => {
  const request = http.request({host: '127.0.0.1', port, method, path, agent}, answer => {
    let text = '';
    answer.on('data', piece => text += piece).on('end', () => resolve(text));
  });
  request.on('error', reject);
  request.end(data);
});
(async () => {
  const answers = await Promise.all(
    Array.from({length: 40}, (_, n) => ask('POST', '/' + n, body.subarray(0, n * 1000))));
  for (let n = 0; n < 40; n++)
    if (!answers[n].startsWith(`POST /${n} `)) throw new Error(answers[n]);
  for (let n = 0; n < 20; n++) await (await fetch(`${url}/f`)).text();
  const answer = await fetch(`${url}/last`, {method: 'POST', body});
  console.log(await answer.text());
  process.exit(0);
})();
"""


def test_node_is_served(described: Atlas, tmp_path: Path) -> None:
    script = tmp_path / "client.js"
    script.write_text(NODE_CLIENT)

    printed = run(need("node"), script, str(described.port))

    body = (b"abc" * (1 << 20))[: 1 << 20]
    assert printed.strip() == f"POST /last {hashlib.sha256(body).hexdigest()}"


def test_python_s_own_client_is_served(described: Atlas) -> None:
    code = (
        "import sys, urllib.request\n"
        "print(urllib.request.urlopen(sys.argv[1], data=b'hello').read().decode())\n"
    )

    printed = run(sys.executable, "-c", code, f"http://127.0.0.1:{described.port}/u")

    assert printed.strip() == f"POST /u {hashlib.sha256(b'hello').hexdigest()}"


def test_wrk_finds_no_errors(described: Atlas) -> None:
    wrk = need("wrk")

    printed = run(
        wrk, "-t1", "-c32", "-d2s", "--timeout=20s", f"http://127.0.0.1:{described.port}/"
    )

    assert "requests in" in printed
    assert "Socket errors" not in printed
    assert "Non-2xx" not in printed
