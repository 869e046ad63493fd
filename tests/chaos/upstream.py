"""An upstream as a process of its own, which falls ill on a signal.

SIGUSR1: it answers 500. SIGUSR2: it begins its answers and resets them in the middle. SIGHUP: it is
well again. Probes are answered in the same way. The token of every POST is printed as soon as its
head is here, before anything else can go wrong; so whoever reads the output knows what was
delivered, even if this process is killed.

`python -m tests.chaos.upstream NAME PORT`; the port that it listens on is the first line printed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from tests.fakes import Conversation, Upstream, build_answer

BODY = b"x" * 5000

MOODS = {signal.SIGUSR1: "500", signal.SIGUSR2: "cut", signal.SIGHUP: "well"}


class Ill:
    """The mood that all conversations follow."""

    def __init__(self, name: str) -> None:
        self.mood = "well"
        self._answer = name.encode() + b"\n" + BODY

    def serve(self, conversation: Conversation) -> None:
        while request := conversation.read_head():
            if request.line.startswith("POST"):
                # One write, since conversations run in threads.
                os.write(sys.stdout.fileno(), request.get("X-Token").encode() + b"\n")
            for _ in conversation.read_body(request):
                pass
            if self.mood == "cut":
                conversation.send(build_answer(self._answer)[:-4000])
                conversation.reset()
                return
            status = "500 Ill" if self.mood == "500" else "200 OK"
            conversation.send(build_answer(self._answer, status=status))


def main(name: str, port: int) -> None:
    ill = Ill(name)
    signal.pthread_sigmask(signal.SIG_BLOCK, MOODS)
    with Upstream(ill.serve, name=name, port=port) as upstream:
        print(upstream.port, flush=True)

        def follow() -> None:
            while True:
                ill.mood = MOODS[signal.Signals(signal.sigwait(MOODS))]

        threading.Thread(target=follow, daemon=True).start()
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
