"""Step 2: heads and bodies, so that it is known where a message ends.

Run it: `python3 step2.py 8080 127.0.0.1:3001`
"""

import contextlib
import socket
import sys

from message import MalformedMessage, Stream, copy_body, read_request, read_response, refuse

PATIENCE = 10.0  # seconds that anybody may take until the next bytes


def serve(client: Stream, address: tuple[str, int]) -> None:
    """Pass a request on, and its answer back."""
    try:
        request = read_request(client)
    except MalformedMessage:
        refuse(client, b"400 Bad Request")
        return
    try:
        upstream = Stream(socket.create_connection(address, PATIENCE), PATIENCE)
        upstream.send(request.onward())
        copy_body(client, upstream, request.framing)
        response = read_response(upstream, request)
    except (OSError, MalformedMessage):
        refuse(client, b"502 Bad Gateway")
        return
    # From the first byte of the answer on, a failure can only cut the client.
    client.send(response.onward(b"Connection: close"))
    copy_body(upstream, client, response.framing)
    upstream.sock.close()


def main(port: str, upstream: str) -> None:
    """Serve one client after the other. Never ends."""
    host, _, upstream_port = upstream.rpartition(":")
    address = (host, int(upstream_port))
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            client, _ = listener.accept()
            # Whatever goes wrong with this client, the next one is waiting.
            with client, contextlib.suppress(OSError, MalformedMessage):
                serve(Stream(client, PATIENCE), address)


if __name__ == "__main__":
    main(*sys.argv[1:])
