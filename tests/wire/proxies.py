"""Starts the proxies that cases are played through: Atlas, and others to compare it with.

Each runs as a program of its own with one upstream. All are asked to add as little as they can to
a head, so that what the upstream receives is what the client sent.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.toolkit import Atlas, fork, free_port

START_PATIENCE = 20.0

_PLAIN = "[forwarding]\nx_forwarded = false\nvia = false\n"
_QUICK = (
    "[timeouts]\nclient_head = 1.0\nclient_body = 1.0\nclient_idle = 1.0\nupstream_head = 1.0\n"
    "upstream_body = 1.0\nconnect = 1.0\n"
)
_LIMITED = "[limits]\nbody = 1000\nupstream_head = 8192\n"

CONFIGS = {
    "plain": _PLAIN,
    "quick": _PLAIN + _QUICK,
    "limited": _PLAIN + _LIMITED,
    "full": "",
    "removing": _PLAIN + 'remove_request_fields = ["X-Remote-User"]\n',
    "setting": _PLAIN
    + 'set_request_fields = { X-Team = "blue" }\nset_response_fields = { X-Lane = "7" }\n'
    + 'remove_response_fields = ["X-Secret"]\n',
    "trusting": '[forwarding]\ntrusted_proxies = ["127.0.0.0/8"]\nvia = false\n',
}

_NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; server_tokens off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  large_client_header_buffers 8 32k; client_max_body_size {body};
  client_header_timeout {time}; client_body_timeout {time}; keepalive_timeout 75;
  proxy_read_timeout {time}; proxy_send_timeout {time}; proxy_connect_timeout {time};
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  map $request $onward_host {{
    default $http_host; "~*^\\S+ https?://(?<authority>[^/?# ]+)" $authority;
  }}
  upstream u {{ server 127.0.0.1:{upstream}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port} backlog=512;
    location / {{
      proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Host $onward_host;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
      proxy_request_buffering off; proxy_buffering off; proxy_buffer_size 16k; proxy_buffers 8 16k;
    }}
  }}
}}
"""

_HAPROXY = """
global
  maxconn 1024
  tune.bufsize 65536
defaults
  mode http
  timeout client {time}
  timeout http-request {time}
  timeout http-keep-alive 75s
  timeout connect {time}
  timeout server {time}
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  server s 127.0.0.1:{upstream}
"""


class ProxyFailed(Exception):
    """A proxy did not begin to serve."""


@contextlib.contextmanager
def run_atlas(upstream: int, config: str = "plain", *, lanes: int = 1) -> Iterator[int]:
    """Run Atlas in front of the port `upstream`; yields its own port."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "atlas.toml"
        path.write_text(
            f'[listen]\naddress = "127.0.0.1"\nport = 0\npin = false\nlanes = {lanes}\n'
            f'[[upstreams]]\nname = "u"\naddress = "127.0.0.1"\nport = {upstream}\n'
            + CONFIGS[config],
            encoding="utf-8",
        )
        with Atlas(path, begin=fork) as atlas:
            yield atlas.wait_until_listening().port


@contextlib.contextmanager
def run_nginx(upstream: int, config: str = "plain") -> Iterator[int]:
    """Run nginx in front of the port `upstream`; yields its own port."""
    with _run_peer("nginx", _NGINX, upstream, config) as port:
        yield port


@contextlib.contextmanager
def run_haproxy(upstream: int, config: str = "plain") -> Iterator[int]:
    """Run HAProxy in front of the port `upstream`; yields its own port."""
    with _run_peer("haproxy", _HAPROXY, upstream, config) as port:
        yield port


@contextlib.contextmanager
def _run_peer(name: str, template: str, upstream: int, config: str) -> Iterator[int]:
    program = find_program(name)
    if program is None:
        raise ProxyFailed(f"{name} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        path = Path(folder) / "config"
        values = {
            "folder": folder,
            "port": port,
            "upstream": upstream,
            "time": "1s" if config == "quick" else "10s",
            "body": "1000" if config == "limited" else "0",
        }
        path.write_text(template.format(**values), encoding="utf-8")
        options = ["-c", str(path), "-p", folder] if name == "nginx" else ["-f", str(path), "-db"]
        process = subprocess.Popen(
            [program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
        )
        try:
            _wait_until_open(process, port)
            yield port
        finally:
            _end(process)


PROXIES = {"Atlas": run_atlas, "nginx": run_nginx, "HAProxy": run_haproxy}


def find_program(name: str) -> str | None:
    """Look for a program where daemons are installed too."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which(name, path=places)


def _wait_until_open(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + START_PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)  # between two looks; bounded by the deadline
    raise ProxyFailed(f"nothing listens on port {port}")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
