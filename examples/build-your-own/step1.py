"""Step 1: one connection, one upstream, and all waiting done by blocking.

Run it: `python3 step1.py 8080 127.0.0.1:3001`
"""

import contextlib
import socket
import sys

PATIENCE = 10.0  # seconds that anybody may take until the next bytes


def serve(client: socket.socket, address: tuple[str, int]) -> None:
    """Pass a request on, and its answer back until the upstream closes its connection."""
    request = client.recv(65536)
    with socket.create_connection(address, PATIENCE) as upstream:
        upstream.sendall(request)
        while data := upstream.recv(65536):
            client.sendall(data)


def main(port: str, upstream: str) -> None:
    """Serve one client after the other. Never ends."""
    host, _, upstream_port = upstream.rpartition(":")
    address = (host, int(upstream_port))
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            client, _ = listener.accept()
            client.settimeout(PATIENCE)
            # Whatever goes wrong with this client, the next one is waiting.
            with client, contextlib.suppress(OSError):
                serve(client, address)


if __name__ == "__main__":
    main(*sys.argv[1:])
