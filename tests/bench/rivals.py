"""Atlas and its rivals: how each is started in front of one upstream, tuned as its users would.

All do the same work: connections kept open on both sides, the same X-Forwarded fields, no access
log, bodies streamed and not written to disk, one worker. Whoever thinks that a rival could do
better changes its configuration here.

`nginx-large` is nginx with buffers for large bodies. It is faster there and costs memory for every
connection, so it is measured with large bodies only.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.toolkit import find_program

ROOT = Path(__file__).resolve().parents[2]

# What ratios are taken to, and what is asked without any proxy.
REFERENCE = "nginx"
DIRECT = "direct"

_ATLAS = """
[listen]
address = "127.0.0.1"
port = {port}

[limits]
requests_per_connection = 1000000000

[pool]
max_requests = 1000000000

[[upstreams]]
name = "u"
address = "127.0.0.1"
port = {upstream}
"""

NGINX_HEAD = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  sendfile on; tcp_nopush on; tcp_nodelay on;
  keepalive_timeout 75s; keepalive_requests 1000000000;
  client_max_body_size 0; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
"""

_NGINX = (
    NGINX_HEAD
    + """
  upstream u {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://u;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_request_buffering off;
      proxy_max_temp_file_size 0;
      {tuning}
    }}
  }}
}}
"""
)

_NGINX_LARGE = """
      proxy_buffer_size 256k; proxy_buffers 4 256k; proxy_busy_buffers_size 512k;
      client_body_buffer_size 256k;
"""

# `http-reuse always`, because by default the first request of a client opens a new connection.
_HAPROXY = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 75s
  timeout server 75s
  timeout http-keep-alive 75s
  http-reuse always
  option splice-auto
frontend f
  bind 127.0.0.1:{port} backlog 4096
  option forwardfor
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(Host)]
  default_backend b
backend b
  server u 127.0.0.1:{upstream}
"""


@dataclass(frozen=True)
class Rival:
    """A proxy that can be measured."""

    program: str  # what must be installed
    configuration: str
    # From the program's path, the configuration's and a folder to the command.
    command: Callable[[str, Path, Path], list[str]]
    tuning: str = ""
    is_for_bodies: bool = False

    def prepare(self, program: str, folder: Path, *, port: int, upstream: int) -> list[str]:
        """Write the configuration into `folder` and return the command that serves with it."""
        values = {"folder": folder, "port": port, "upstream": upstream, "tuning": self.tuning}
        path = folder / "configuration"
        path.write_text(self.configuration.format(**values), encoding="utf-8")
        return self.command(program, path, folder)


def build_nginx_command(program: str, path: Path, folder: Path) -> list[str]:
    """The command that runs nginx within `folder`."""
    return [program, "-p", str(folder), "-c", str(path), "-e", str(folder / "error.log")]


RIVALS = {
    "atlas": Rival(
        "python", _ATLAS, lambda program, path, _: [program, f"{ROOT}/atlas.py", f"{path}"]
    ),
    "nginx": Rival("nginx", _NGINX, build_nginx_command),
    "nginx-large": Rival(
        "nginx", _NGINX, build_nginx_command, tuning=_NGINX_LARGE, is_for_bodies=True
    ),
    "haproxy": Rival(
        "haproxy", _HAPROXY, lambda program, path, _: [program, "-db", "-q", "-f", f"{path}"]
    ),
}


def find_rival(rival: Rival) -> str | None:
    """The program to run, or None where it is not installed."""
    return find_python() if rival.program == "python" else find_program(rival.program)


def find_python() -> str | None:
    """An interpreter that has Atlas's packages: this one, or that of `.venv`."""
    if all(importlib.util.find_spec(name) for name in ("tomli", "watchdog")):
        return sys.executable
    python = ROOT / ".venv" / "bin" / "python"
    return str(python) if python.exists() else None
