"""What becomes of a path or a host, case by case, beside what nginx and HAProxy do with it.

`python -m tests.serving.route_cases` asks all three, each with real upstreams that tell what they
were asked for, and writes the answers beside the example that explains them. That takes nginx and
HAProxy; the suite only asks Atlas's own code (`test_router.py`).
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.fakes import Conversation, Upstream, build_answer
from tests.toolkit import ATLAS, ROOT, Atlas, find_program, free_port, wait_until

PAGE = ROOT / "examples" / "many-services" / "paths.md"

GROUPS = ("web", "api", "shop")

# What is meant is the same for all three: keep everybody out of /admin, send /api and what is
# beneath it to one server, /v1 without its name as well, one host to another server, the rest to a
# third one. Each says so as its manual has it.
ROUTES = """
[[routes]]
path = "/admin"
status = 403

[[routes]]
path = "/v1/private"
status = 403

[[routes]]
path = "/v1"
group = "api"
strip = true

[[routes]]
path = "/api"
group = "api"

[[routes]]
host = "shop.example.com"
group = "shop"

[[routes]]
host = "*.shop.example.com"
group = "shop"

[[routes]]
group = "web"
"""

NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr crit;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4;
  scgi_temp_path t5;
  server {{
    listen 127.0.0.1:{port} default_server;
    location /admin {{ return 403; }}
    location /v1/private {{ return 403; }}
    location /v1/ {{ proxy_pass http://127.0.0.1:{api}/; }}
    location /api {{ proxy_pass http://127.0.0.1:{api}; }}
    location / {{ proxy_pass http://127.0.0.1:{web}; }}
  }}
  server {{
    listen 127.0.0.1:{port};
    server_name shop.example.com *.shop.example.com;
    location / {{ proxy_pass http://127.0.0.1:{shop}; }}
    location /admin {{ return 403; }}
  }}
}}
"""

HAPROXY = r"""
defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 5s
frontend f
  bind 127.0.0.1:{port}
  http-request deny deny_status 403 if {{ path_beg /admin }}
  http-request deny deny_status 403 if {{ path_beg /v1/private }}
  use_backend v1 if {{ path_beg /v1/ }} or {{ path /v1 }}
  use_backend api if {{ path_beg /api }}
  use_backend shop if {{ req.hdr(host),host_only -i shop.example.com }}
  use_backend shop if {{ req.hdr(host),host_only -i -m end .shop.example.com }}
  default_backend web
backend v1
  http-request replace-path /v1(.*) \1
  server s 127.0.0.1:{api}
backend api
  server s 127.0.0.1:{api}
backend shop
  server s 127.0.0.1:{shop}
backend web
  server s 127.0.0.1:{web}
"""

HOST = "www.example.com"

# Host, target, and what becomes of it: a status, or a group and what its upstream is asked for.
CASES: list[tuple[str, str, str]] = [
    # Where a path ends
    (HOST, "/", "web /"),
    (HOST, "/api", "api /api"),
    (HOST, "/api/", "api /api/"),
    (HOST, "/api?x=1", "api /api?x=1"),
    (HOST, "/api/x?y=/../admin", "api /api/x?y=/../admin"),
    (HOST, "/apis", "web /apis"),
    (HOST, "/api.json", "web /api.json"),
    (HOST, "/x/api", "web /x/api"),
    (HOST, "/admin", "403"),
    (HOST, "/admin/", "403"),
    (HOST, "/admin?x", "403"),
    (HOST, "/admin/x/y", "403"),
    (HOST, "/administrator", "web /administrator"),
    # Capitals
    (HOST, "/ADMIN", "web /ADMIN"),
    (HOST, "/Api", "web /Api"),
    # Escapes
    (HOST, "/%61dmin", "403"),
    (HOST, "/%61%64%6D%69%6e/x", "403"),
    (HOST, "/%61pi/x", "api /%61pi/x"),
    (HOST, "/api%2Fx", "web /api%2Fx"),
    (HOST, "/admin%2Fx", "403"),
    (HOST, "/admin%2fx", "403"),
    (HOST, "/x%2Fadmin", "web /x%2Fadmin"),
    (HOST, "/%2561dmin", "403"),
    (HOST, "/admin%20", "web /admin%20"),
    (HOST, "/caf%C3%A9", "web /caf%C3%A9"),
    (HOST, "/a%20b%26c", "web /a%20b%26c"),
    (HOST, "/100%25", "web /100%25"),
    (HOST, "/admin%3Fx", "403"),
    (HOST, "/admin%23x", "403"),
    (HOST, "/admin%3Bx", "403"),
    (HOST, "/admin%00", "400"),
    (HOST, "/admin%0A", "400"),
    (HOST, "/%u0061dmin", "400"),
    (HOST, "/%", "400"),
    (HOST, "/%c0%afadmin", "400"),
    (HOST, "/%c1%a1dmin", "400"),
    # Dot segments
    (HOST, "/x/../admin", "403"),
    (HOST, "/./admin", "403"),
    (HOST, "/./admin/%2e%2e", "403"),
    (HOST, "/admin/../x", "403"),
    (HOST, "/x/y/../../admin/z", "403"),
    (HOST, "/../admin", "403"),
    (HOST, "/x/..", "web /x/.."),
    (HOST, "/x/.../admin", "web /x/.../admin"),
    (HOST, "/x/%2e%2e/admin", "403"),
    (HOST, "/x/%2E./admin", "403"),
    (HOST, "/x/..%2Fadmin", "403"),
    (HOST, "/x%2F..%2Fadmin", "403"),
    (HOST, "/x/%252e%252e/admin", "403"),
    (HOST, "/x/..%252Fadmin", "403"),
    (HOST, "/x/..%00/admin", "400"),
    (HOST, "/api/../x", "api /api/../x"),
    (HOST, "/.well-known/x", "web /.well-known/x"),
    # Slashes
    (HOST, "//admin", "403"),
    (HOST, "///admin//x", "403"),
    (HOST, "/x//../admin", "403"),
    (HOST, "//x", "web //x"),
    (HOST, "//api/x", "web //api/x"),
    (HOST, "/\\admin", "403"),
    (HOST, "/x\\..\\admin", "403"),
    (HOST, "/x/..%5Cadmin", "403"),
    # Parameters
    (HOST, "/admin;x", "403"),
    (HOST, "/admin;x=1/y", "403"),
    (HOST, "/;x/admin", "403"),
    (HOST, "/x/..;/admin", "403"),
    (HOST, "/x/..;a=b/admin", "403"),
    (HOST, "/x;jsessionid=1", "web /x;jsessionid=1"),
    (HOST, "/api;v=1", "web /api;v=1"),
    # What is taken off
    (HOST, "/v1", "api /"),
    (HOST, "/v1?x", "api /?x"),
    (HOST, "/v1/x", "api /x"),
    (HOST, "/v1x", "web /v1x"),
    (HOST, "/%76%31/x%2Fy", "api /x%2Fy"),
    (HOST, "/v1/private", "403"),
    (HOST, "/v1/./private", "403"),
    (HOST, "/v1//private", "403"),
    (HOST, "/v1/x/../private", "403"),
    (HOST, "/v1/../private", "400"),
    (HOST, "/v1/../v1/private", "403"),
    # Hosts
    ("shop.example.com", "/", "shop /"),
    ("SHOP.example.COM", "/", "shop /"),
    ("shop.example.com:8080", "/", "shop /"),
    ("shop.example.com.", "/", "shop /"),
    ("shop.example.com.:80", "/", "shop /"),
    ("a.shop.example.com", "/", "shop /"),
    ("a.b.shop.example.com", "/", "shop /"),
    ("ashop.example.com", "/", "web /"),
    ("shop.example.com.evil.example", "/", "web /"),
    ("sh%6Fp.example.com", "/", "shop /"),
    ("shop.example.com", "/admin", "403"),
    ("shop.example.com", "/x/../admin", "403"),
    ("[::1]:80", "/", "web /"),
    ("192.0.2.1", "/", "web /"),
    # The whole address as target: its host counts, whatever the Host field says
    ("www.example.com", "http://shop.example.com/x", "shop /x"),
    ("shop.example.com", "http://www.example.com/admin", "403"),
    ("shop.example.com", "http://www.example.com", "web /"),
]


def telling(name: str) -> Upstream:
    """An upstream that answers with its name and what it was asked for."""

    def serve(conversation: Conversation) -> None:
        while request := conversation.read_head():
            target = request.line.split(" ")[1]
            conversation.send(build_answer(f"{name} {target}".encode(), fields="X-Told: yes\r\n"))

    return Upstream(serve, name=name)


def ask(port: int, host: str, target: str) -> str:
    """Ask on a connection of its own; returns what became of it, as in `CASES`."""
    head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(head.encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b"")).decode("latin-1")
    head, _, body = answer.partition("\r\n\r\n")
    return body if "x-told" in head.lower() else head.split(" ")[1] if " " in head else "closed"


@contextlib.contextmanager
def run(command: list[str], port: int) -> Iterator[None]:
    """Run a proxy until it has been asked everything."""

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return bool(ask(port, HOST, "/"))
        return False

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(answers)
        yield
    finally:
        process.terminate()
        process.wait(10)


def ask_all() -> dict[str, list[str]]:
    """What each of the three does with all cases."""
    found = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = {name: stack.enter_context(telling(name)).port for name in GROUPS}
        nginx, haproxy = free_port(), free_port()
        (folder / "nginx.conf").write_text(NGINX.format(port=nginx, **ports))
        (folder / "haproxy.cfg").write_text(HAPROXY.format(port=haproxy, **ports))
        upstreams = "".join(
            f'[[upstreams]]\nname = "{name}"\naddress = "127.0.0.1"\nport = {port}\n'
            f'group = "{name}"\n'
            for name, port in ports.items()
        )
        config = folder / "atlas.toml"
        config.write_text(f'[listen]\naddress = "127.0.0.1"\nport = 0\n{upstreams}{ROUTES}')
        with Atlas(config) as atlas:
            atlas.wait_until_listening()
            found["Atlas"] = [ask(atlas.port, host, target) for host, target, _ in CASES]
        programs = {
            "nginx": (nginx, ["-p", f"{folder}/", "-c", f"{folder}/nginx.conf"]),
            "HAProxy": (haproxy, ["-db", "-f", f"{folder}/haproxy.cfg"]),
        }
        for name, (port, arguments) in programs.items():
            program = find_program(name.lower())
            assert program is not None, f"{name} is not installed"
            with run([program, *arguments], port):
                found[name] = [ask(port, host, target) for host, target, _ in CASES]
    return found


def write_page(found: dict[str, list[str]]) -> str:
    """The page as it stands beside the example."""
    lines = [
        "# Paths and hosts, beside nginx and HAProxy",
        "",
        "What becomes of a request: the status that it is refused with, or who answers it and what",
        "that server was asked for. `python -m tests.serving.route_cases` wrote this, with the",
        f"configurations in it; do not edit by hand. The host is {HOST} where none is named.",
        "",
        "| host and target | Atlas | nginx `location` | HAProxy `path_beg` |",
        "| --- | --- | --- | --- |",
    ]
    for index, (host, target, _) in enumerate(CASES):
        asked = target if host == HOST else f"{host} {target}"
        cells = (asked, *(answers[index] for answers in found.values()))
        lines.append("| " + " | ".join(f"`{text}`" for text in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Ask, compare with what is expected of Atlas, and write."""
    found = ask_all()
    wrong = [
        f"{host} {target}: {answer}, expected {wanted}"
        for (host, target, wanted), answer in zip(CASES, found["Atlas"], strict=True)
        if answer != wanted
    ]
    print("\n".join([*wrong, f"{len(CASES)} cases, {len(wrong)} not as expected"]))
    PAGE.write_text(write_page(found), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    assert ATLAS.exists()
    sys.exit(main())
