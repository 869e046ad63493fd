"""Atlas imported once, and forked for each test that starts it.

A start takes a third of a second of CPU time, nearly all of it for imports that are the same each
time. So each process of pytest keeps one of these. It has imported Atlas and read a configuration,
and no thread runs in it. A copy goes on from there as `python -W error atlas.py` does: with
arguments, folder and output of its own, up to the status that it ends with. `Forked` in toolkit.py
asks for them.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 - Python imports it for the first name that it looks up
import gc
import json
import logging
import os
import select
import socket
import sys
from pathlib import Path

from atlas_pkg.__main__ import main
from atlas_pkg.config.loader import load_config


def serve(requests: socket.socket) -> None:
    """Fork for each request, and tell who asked the process id, and later the exit status.

    Returns in the copies alone, once they look as a program does that was just started.
    """
    running: dict[int, tuple[int, socket.socket]] = {}  # by what tells of a copy's end
    poller = select.poll()
    poller.register(requests, select.POLLIN)
    gc.freeze()  # what the copies have in common is not looked through by each of them
    while True:
        ready = [fd for fd, _ in poller.poll()]
        for ended in running.keys() & ready:
            pid, asker = running.pop(ended)
            poller.unregister(ended)
            os.close(ended)
            with asker, contextlib.suppress(OSError):
                asker.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        if requests.fileno() not in ready:
            continue
        request, files, _, _ = socket.recv_fds(requests, 262144, 3)
        if not request:
            requests.close()
            sys.exit()
        output, errors, asker_fd = files
        if not (pid := os.fork()):
            break
        os.close(output)
        os.close(errors)
        asker = socket.socket(fileno=asker_fd)
        asker.send(b"%d" % pid)
        end = os.pidfd_open(pid)
        running[end] = (pid, asker)
        poller.register(end, select.POLLIN)

    os.dup2(output, 1)
    os.dup2(errors, 2)
    for sock in (requests, *(asker for _, asker in running.values())):
        sock.detach()
    os.closerange(3, 1024)
    sys.orig_argv, folder, environ = json.loads(request)
    sys.argv = sys.orig_argv[3:]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)


if __name__ == "__main__":
    load_config(Path("examples/reference/atlas.toml"))  # what a table may hold is now known
    serve(socket.socket(fileno=int(sys.argv[1])))
    status = main()
    # The interpreter would go on to let go of all that was imported, which costs as much again.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
