"""The upstream behind Atlas while it is attacked: `python -m tests.hostile.upstream`.

A process of its own, so that its work does not hold up the client that measures. What it does is
chosen by the path: `/endless` sends 1xx answers for ever, `/large` a body that hardly ends, any
other path reads the request and answers a few bytes. It prints its port and serves until it is
ended.
"""

from __future__ import annotations

import sys
import threading

from tests.fakes import Conversation, Upstream, build_answer

# More than the buffers of all sockets on the way, and bounded all the same.
LARGE = 256 * 1024 * 1024

_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 16
_PIECE = b"x" * 65536


def serve(conversation: Conversation) -> None:
    """Answer one connection's requests."""
    answer = build_answer(b"fine")
    while request := conversation.read_head():
        if request.target == "/endless":
            while True:  # until Atlas hangs up
                conversation.send(_HINTS)
        if request.target == "/large":
            conversation.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
            for _ in range(LARGE // len(_PIECE)):
                conversation.send(_PIECE)
            continue
        for _ in conversation.read_body(request):
            pass
        conversation.send(answer)


if __name__ == "__main__":
    sys.setswitchinterval(0.0005)  # quick answers do not wait for the busy connections
    with Upstream(serve) as running:
        print(running.port, flush=True)
        threading.Event().wait()
