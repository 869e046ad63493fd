"""Shows one address with many services, as this folder's README says, and changes it under load.

Starts five upstreams and Atlas on free ports, with a copy of `atlas.toml`. While two clients go on
asking, the fence is opened, the blog goes into maintenance and comes back: no request may fail. Run
it from anywhere: `python examples/many-services/demo.py`. Exit status 0 when all was as it should
be, else 1.
"""

from __future__ import annotations

import contextlib
import http.client
import sys
import threading
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _support as support

HERE = Path(__file__).resolve().parent

NAMES = ("shop1", "shop2", "blog1", "blog2", "api1")
SHOP, BLOG = "shop.example.com", "blog.example.com"

MAINTENANCE = '[[routes]]\nhost = "blog.example.com"\nstatus = 503\n\n'


def main() -> None:
    """Run the example and check what it shows."""
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(support.start_upstream(name)) for name in NAMES]
        configuration = configure([program.wait_until_listening() for program in programs])
        atlas = stack.enter_context(support.Atlas(configuration))
        show_names(atlas)
        show_path(atlas)
        show_redirect(atlas)
        show_fence(atlas)
        show_changes(atlas, configuration)
        support.expect("exit status after SIGTERM", atlas.terminate(), 0)


def configure(ports: list[int]) -> str:
    """The example's configuration with the ports of this run, and the pages where they are."""
    configuration = (HERE / "atlas.toml").read_text(encoding="utf-8")
    configuration = configuration.replace("port = 8080\n", "port = 0\n")
    configuration = configuration.replace('"pages"', f'"{HERE / "pages"}"')
    for number, port in enumerate(ports, 3001):
        configuration = configuration.replace(f"port = {number}\n", f"port = {port}\n")
    return configuration


def ask(
    atlas: support.Atlas, host: str, target: str = "/", accept: str = "*/*"
) -> tuple[int, str, str]:
    """Ask for something under a name; returns status, Location, and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", atlas.port, timeout=support.PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", target, headers={"Host": host, "Accept": accept})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Location") or "", answer.read().decode()


def show_names(atlas: support.Atlas) -> None:
    """Each name has an application of its own, with a strategy of its own."""
    shop = {ask(atlas, SHOP)[2].strip() for _ in range(10)}
    support.expect(
        "who answers for the shop", sorted(shop), ["Hello from shop1", "Hello from shop2"]
    )
    for page in ("/one", "/two", "/three"):
        who = {ask(atlas, BLOG, page)[2] for _ in range(5)}
        support.expect(f"how many upstreams have {page} of the blog", len(who), 1)
    support.expect("status under another name", ask(atlas, "elsewhere.test")[0], 404)


def show_path(atlas: support.Atlas) -> None:
    """The API is asked without the path under which it is known, and told of it."""
    support.expect("who answers for the API", ask(atlas, SHOP, "/api")[2], "Hello from api1\n")
    head = ask(atlas, SHOP, "/api/head")[2].splitlines()
    support.expect("what the API is asked for", head[0], "GET /head HTTP/1.1")
    told = "X-Forwarded-Prefix: /api"
    support.expect("what it is told", told if told in head else head, told)


def show_redirect(atlas: support.Atlas) -> None:
    """What has moved is found again, with path and query."""
    status, location, _ = ask(atlas, "www.example.com", "/a?b=c")
    expected = (301, "https://shop.example.com/a?b=c")
    support.expect("where www.example.com leads", (status, location), expected)


def show_fence(atlas: support.Atlas) -> None:
    """Nobody gets around the fence, whatever an upstream would make of the path."""
    for target in ("/admin", "/admin/x", "/%61dmin", "//admin", "/x/../admin", "/x/..;/admin"):
        support.expect(f"status of {target}", ask(atlas, SHOP, target)[0], 403)
    page = ask(atlas, SHOP, "/admin", "text/html")[2]
    support.expect("what a browser is shown", "<h1>Not here</h1>" in page, True)


def show_changes(atlas: support.Atlas, configuration: str) -> None:
    """All of it changes while clients go on asking, and none of them meets an error."""
    seen: Counter[int] = Counter()
    is_over = threading.Event()

    def go_on() -> None:
        while not is_over.is_set():
            seen[ask(atlas, SHOP)[0]] += 1

    clients = [threading.Thread(target=go_on) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        change(atlas, configuration.replace('"10.0.0.0/8"', '"127.0.0.0/8"'), 1)
        support.expect("status of /admin, opened for us", ask(atlas, SHOP, "/admin")[0], 200)
        first = configuration.index("[[routes]]")
        change(atlas, configuration[:first] + MAINTENANCE + configuration[first:], 2)
        status, _, page = ask(atlas, BLOG, accept="text/html")
        support.expect("status of the blog in maintenance", status, 503)
        support.expect("what a browser is shown", "<h1>Back soon</h1>" in page, True)
        change(atlas, configuration, 3)
        support.expect("status of the blog afterwards", ask(atlas, BLOG)[0], 200)
    finally:
        is_over.set()
        for client in clients:
            client.join(support.PATIENCE)
    support.expect("what the clients of the shop met", sorted(seen), [200])


def change(atlas: support.Atlas, configuration: str, times: int) -> None:
    """Save another configuration, and wait until it is in force."""
    atlas.path.write_text(configuration, encoding="utf-8")
    atlas.wait_until_said("Configuration hot-reloaded", times=times)


if __name__ == "__main__":
    sys.exit(support.run(main))
