"""How much does a client cost that says nothing?

    python3 examples/build-your-own/idle.py step6 1000
    python3 examples/build-your-own/idle.py step7 10000

Connects that many clients, has the last one ask, and says what the step uses meanwhile.
"""

from __future__ import annotations

import resource
import sys

from lab import Scene, Upstream, reset


def main(step: str, count: str) -> None:
    """Run the step with so many idle clients."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with Upstream() as one, Scene(step).start(one) as program:
        program.ask()
        memory = program.memory()
        clients = [program.connect() for _ in range(int(count))]
        clients[-1].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = clients[-1].recv(65536)
        threads = program.count_threads()
        each = (program.memory() - memory) / len(clients) / 1024
        for client in clients:
            reset(client)
    print(f"{step}: {len(clients)} idle clients, {threads} threads, {each:.1f} KB for each client")
    print(f"one of them asks and hears: {answer.splitlines()[0].decode()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
