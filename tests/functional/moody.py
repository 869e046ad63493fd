"""An upstream whose mood the test sets, and which remembers what it was sent."""

from __future__ import annotations

import threading

from tests.fakes import PATIENCE, Conversation, Request, Upstream, build_answer

STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000


class Moody(Upstream):
    """Answers with its name, unless its `mood` is another one than "well".

    "held": after `let_go` only, or "held, then reset"; "reset", "closed": without an answer, or
    "reset at once" without having read the body; "cut": in the middle of a body; "stream": with the
    beginning of a body, and after `let_go` with a reset; "silent": never; a status: with that.
    Probes of /health are answered with `health` whatever the mood, and are not counted.
    """

    def __init__(self, name: str, *, mood: str = "well", port: int = 0) -> None:
        self.mood = mood
        self.health = 200
        self.probes = 0
        self.seen: list[Request] = []
        self.bodies: list[bytes] = []
        self._turns = threading.Semaphore(0)
        super().__init__(self._converse, name=name, port=port)

    def let_go(self, count: int = 1) -> None:
        """Let so many of those that are held be answered."""
        self._turns.release(count)

    def close(self) -> None:
        self.let_go(1000)
        super().close()

    def tokens(self) -> list[str]:
        """The tokens of all requests that came in whole or in part."""
        return [request.get("X-Token") for request in self.seen]

    def _converse(self, conversation: Conversation) -> None:
        while request := conversation.read_head():
            if request.target == "/health":
                self.probes += 1
                conversation.send(build_answer(status=f"{self.health} Whatever"))
                continue
            self.seen.append(request)
            self.count()
            if self.mood == "reset at once":
                conversation.reset()
                return
            body = b"".join(conversation.read_body(request))
            self.bodies.append(body)
            if not self._answer(conversation, self.mood):
                return

    def _answer(self, conversation: Conversation, mood: str) -> bool:
        """Answer as the mood has it; False when the connection is over."""
        match mood:
            case "reset":
                conversation.reset()
                return False
            case "closed":
                return False
            case "cut":
                conversation.send(CUT)
                conversation.reset()
                return False
            case "stream":
                conversation.send(STREAM)
                self._turns.acquire(timeout=PATIENCE)
                conversation.reset()
                return False
            case "silent":
                conversation.wait_for_end()
                return False
            case "held":
                self._turns.acquire(timeout=PATIENCE)
                conversation.send(build_answer(self.name.encode()))
            case "held, then reset":
                self._turns.acquire(timeout=PATIENCE)
                conversation.reset()
                return False
            case "well":
                conversation.send(build_answer(self.name.encode()))
            case status:
                conversation.send(build_answer(self.name.encode(), status=f"{status} Whatever"))
        return True
