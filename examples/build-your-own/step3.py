"""Step 3: keep-alive on both sides, a thread for each client, and a pool for each thread.

Run it: `python3 step3.py 8080 127.0.0.1:3001`
"""

import contextlib
import socket
import sys
import threading

from attempt import ask, pass_back
from message import MalformedMessage, Stream, read_request, refuse

PATIENCE = 10.0  # seconds that a client may take until the next bytes


def serve(client: Stream, address: tuple[str, int], idle: list[Stream]) -> bool:
    """Answer one request; may the client ask again?"""
    try:
        request = read_request(client)
    except MalformedMessage:
        return refuse(client, b"400 Bad Request")
    try:
        connection, response = ask(client, request, address, idle)
    except (OSError, MalformedMessage):
        return refuse(client, b"502 Bad Gateway")
    return pass_back(client, request, connection, response, idle)


def serve_client(client: Stream, address: tuple[str, int]) -> None:
    """Serve a client from its first request to its last."""
    idle: list[Stream] = []
    # Whatever goes wrong with this client, it costs nobody else.
    with client.sock, contextlib.suppress(OSError, MalformedMessage):
        while serve(client, address, idle):
            pass


def start(target, *arguments) -> None:
    """Have a thread of its own do something; it ends with the program."""
    threading.Thread(target=target, args=arguments, daemon=True).start()


def main(port: str, upstream: str) -> None:
    """Give each client a thread. Never ends."""
    host, _, upstream_port = upstream.rpartition(":")
    address = (host, int(upstream_port))
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            client, _ = listener.accept()
            start(serve_client, Stream(client, PATIENCE), address)


if __name__ == "__main__":
    main(*sys.argv[1:])
