"""The upstream of long runs, a process of its own: `python -m tests.soak.upstream NAME PORT`.

So its work does not hold up the clients that measure, and it can be killed and stopped. It prints
the port that it listens on and serves until it is ended.

What it does is chosen by the path: `/endless` sends 1xx answers for ever, `/large` a body that
hardly ends, `/events` an event every two seconds, `/news` an answer after five; whatever else is
answered with its name. Signals make it ill. SIGUSR1: it answers 500.
SIGUSR2: it begins its answers and resets them in the middle. SIGHUP: it is well again. Probes are
answered in the same way.

A request's `X-Token` is printed as soon as its head is here, before anything else can go wrong; so
whoever reads the output knows what was delivered, even if this process is killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from tests.fakes import Conversation, Upstream, build_answer

MOODS = {signal.SIGUSR1: "500", signal.SIGUSR2: "cut", signal.SIGHUP: "well"}

# More than the buffers of all sockets on the way, and bounded all the same.
LARGE = 256 * 1024 * 1024

_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 16
_PIECE = b"x" * 65536
_EVENTS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_CUT = build_answer(b"x" * 5000)[:1000]


class Ill:
    """The mood that all conversations follow."""

    def __init__(self, name: str) -> None:
        self.mood = "well"
        self._name = name.encode()

    def serve(self, conversation: Conversation) -> None:
        while request := conversation.read_head():
            if token := request.get("X-Token"):
                # One write, since conversations run in threads.
                os.write(sys.stdout.fileno(), token.encode() + b"\n")
            for _ in conversation.read_body(request):
                pass
            if request.target == "/endless":
                while True:  # until Atlas hangs up
                    conversation.send(_HINTS)
            elif request.target == "/large":
                conversation.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
                for _ in range(LARGE // len(_PIECE)):
                    conversation.send(_PIECE)
            elif request.target == "/events":
                conversation.send(_EVENTS)
                while True:  # until Atlas hangs up
                    time.sleep(2)
                    conversation.send(b"8\r\ndata: 1\n\r\n")
            elif request.target == "/news":
                time.sleep(5)
                conversation.send(build_answer(self._name))
            elif self.mood == "cut":
                conversation.send(_CUT)
                conversation.reset()
                return
            else:
                status = "500 Ill" if self.mood == "500" else "200 OK"
                conversation.send(build_answer(self._name, status=status))


def main(name: str, port: int) -> None:
    sys.setswitchinterval(0.0005)  # quick answers do not wait for the busy connections
    ill = Ill(name)
    signal.pthread_sigmask(signal.SIG_BLOCK, MOODS)
    with Upstream(ill.serve, name=name, port=port) as upstream:
        print(upstream.port, flush=True)
        while True:
            ill.mood = MOODS[signal.Signals(signal.sigwait(MOODS))]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
