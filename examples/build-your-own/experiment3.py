"""Experiments with step 3: what breaks if a line is left out."""

from __future__ import annotations

import sys

from lab import TIMES, Experiment, Handler, Scene, Upstream, ask, run, wait_until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"


def one_client_stays(scene: Scene) -> str:
    """One client keeps its connection; another one asks."""
    with Upstream() as one, scene.start(one) as step:
        staying = step.client()
        ask(staying, "GET /")
        status, _ = step.ask(timeout=scene.limit)
        staying.close()
        return "others are served meanwhile" if status else "nobody else is served meanwhile"


def a_connection_goes_stale(scene: Scene) -> str:
    """The upstream closes a connection while nobody uses it; then comes a POST."""

    def answer_once(handler: Handler) -> None:
        handler.greet()
        handler.close_connection = True  # and it has not said so

    with Upstream(behave=answer_once) as one, scene.start(one) as step:
        client = step.client()
        ask(client, "GET /")
        wait_until(lambda: one.closed)
        return f"{ask(client, 'POST /')[0]}"


def an_order_gets_no_answer(scene: Scene) -> str:
    """The upstream takes an order over a kept connection, and dies before it answers."""

    def die(handler: Handler) -> None:
        if handler.server.requests.count("POST /order") != 1:
            handler.greet()
        else:
            handler.close_connection = True

    with Upstream(behave=die) as one, scene.start(one) as step:
        client = step.client()
        ask(client, "GET /")
        status, _ = ask(client, "POST /order")
        return f"{status}, and ordered {TIMES[one.requests.count('POST /order')]}"


def an_upstream_says_too_much(scene: Scene) -> str:
    """The upstream gives two answers to one question; then the client asks another one."""

    def say_too_much(handler: Handler) -> None:
        body = handler.path.encode()
        surplus = OK % (6, b"forged") if handler.path == "/first" else b""
        handler.wfile.write(OK % (len(body), body) + surplus)

    with Upstream(behave=say_too_much) as one, scene.start(one) as step:
        client = step.client()
        ask(client, "GET /first")
        return f"who asks for /second gets {ask(client, 'GET /second')[1]}"


EXPERIMENTS = [
    Experiment(
        "A client that stays",
        "start(serve_client, Stream(client, PATIENCE), address)",
        "serve_client(Stream(client, PATIENCE), address)",
        one_client_stays,
    ),
    Experiment(
        "A connection that has gone stale, and a POST",
        "    while idle and idle[-1].is_readable():  # unasked: it can only have been closed\n"
        "        idle.pop().sock.close()\n",
        "",
        a_connection_goes_stale,
    ),
    Experiment(
        "An order that gets no answer",
        "        if not is_stale or not may_go_again(request):",
        "        if not is_stale:",
        an_order_gets_no_answer,
    ),
    Experiment(
        "An answer that nobody has asked for",
        "if response.is_last() or connection.buffered:",
        "if response.is_last():",
        an_upstream_says_too_much,
    ),
]

if __name__ == "__main__":
    sys.exit(run(__file__, EXPERIMENTS))
