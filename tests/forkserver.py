"""Atlas imported once, and forked for each test that starts it.

A start takes a third of a second of CPU time, nearly all of it for imports that are the same each
time. So each process of pytest keeps one of these. It has imported Atlas and done nothing else, and
no thread runs in it. A copy goes on from there as `python -W error atlas.py` does: with arguments,
folder and output of its own, up to an end that is one of the interpreter. `Forked` in toolkit.py
asks for them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
from types import FrameType

from atlas_pkg.__main__ import main


def serve(requests: socket.socket) -> None:
    """Fork for each request, and tell who asked the process id, and later the exit status.

    Returns in the copies alone, once they look as a program does that was just started.
    """
    running: dict[int, socket.socket] = {}

    def bury(_number: int, _frame: FrameType | None) -> None:
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            with running.pop(pid) as asker, contextlib.suppress(OSError):
                asker.send(b"%d" % os.waitstatus_to_exitcode(status))

    signal.signal(signal.SIGCHLD, bury)
    gc.freeze()  # what the copies have in common is not looked through by each of them
    while True:
        request, files, _, _ = socket.recv_fds(requests, 262144, 3)
        if not request:
            requests.close()
            sys.exit()
        output, errors, asker = files
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        if not (pid := os.fork()):
            break
        os.close(output)
        os.close(errors)
        running[pid] = socket.socket(fileno=asker)
        running[pid].send(b"%d" % pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.dup2(output, 1)
    os.dup2(errors, 2)
    for sock in (requests, *running.values()):
        sock.detach()
    os.closerange(3, 1024)
    sys.orig_argv, folder, environ = json.loads(request)
    sys.argv = sys.orig_argv[3:]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    sys.exit(main())
