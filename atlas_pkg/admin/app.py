"""App: metrics, status, steering, explanations, and the page that shows them.

It runs on an address of its own, in the same HTTP loop as the proxy. Everything that it shows
comes from `Aggregate`; here is only who may ask for what, and how the answer is written.

Reading is open to whoever reaches the address. Steering wants the configured token, and is off
without one. Requests that a browser was made to send by a foreign page are refused
(`same_origin.py`), except for what scrapers and orchestrators ask for by the name of a service.

Refusals are a sentence each, and never repeat what was sent.
"""

from __future__ import annotations

import functools
import hmac
import importlib.resources
import json
import logging
import urllib.parse
from collections.abc import Callable, Sequence

from atlas_pkg.admin.aggregate import Aggregate
from atlas_pkg.admin.commands import CommandError, parse_asking, parse_change
from atlas_pkg.admin.responses import TEXT, Reply, read_small_body, send_reply
from atlas_pkg.admin.same_origin import is_foreign_host, is_foreign_origin
from atlas_pkg.admin.stats import judge
from atlas_pkg.admin.text import show_status
from atlas_pkg.logs import Throttle
from atlas_pkg.observing.prometheus import CONTENT_TYPE
from atlas_pkg.serving.exchange import DONE, WAIT, Exchange, Step

log = logging.getLogger("atlas.admin")

# A change needs some forty bytes.
MOST_BODY = 4096

_STEER = "/-/upstreams/"
_ASK = "/-/explain"
_TOKEN = "/-/token"
_UNDER_ANY_NAME = frozenset({"/-/live", "/-/ready", "/metrics"})
_JSON = "application/json"
_REFRESH = ("Refresh", "5")  # seconds: a browser without scripts keeps up, too

# The page is drawn by its script, from our own documents; nothing else may run or be loaded.
_PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_FILES = (
    ("/", "page.html", "text/html; charset=utf-8"),
    ("/page.css", "page.css", "text/css; charset=utf-8"),
    ("/page.js", "page.js", "text/javascript; charset=utf-8"),
)

_RETRY_AFTER = ("Retry-After", "5")
_UNKNOWN = "there is no upstream of that name"

_View = Callable[[Exchange], Reply]

# Does what a request that may steer says in its body, and returns what was done.
_Order = Callable[[Exchange, bytes], str]


class AdminApp:
    """Answers exchanges on the admin address. Thread-safe."""

    def __init__(self, aggregate: Aggregate, *, token: str, names: Sequence[str] = ()) -> None:
        """`token` is what steering wants, empty = read only; `names` are those under which it may
        be asked, beside its addresses and `localhost`.

        Reads the page's files, which must not change under a running program.
        """
        self._aggregate = aggregate
        self._token = token.encode()
        self._names = names
        self._throttle = Throttle(log)
        self._views: dict[str, _View] = {
            **{path: _static_view(name, kind) for path, name, kind in _PAGE_FILES},
            "/-/live": self._show_life,
            "/-/ready": self._show_readiness,
            "/metrics": self._show_metrics,
            "/stats.json": self._show_stats,
            "/status.txt": self._show_status,
            "/explain.json": self._show_exchanges,
        }

    def ask(self, _: Exchange) -> Step:
        """Leave it all to a thread: what is shown may have to be asked of other processes."""
        return WAIT

    def answer(self, _: Exchange) -> Step:
        """There is no upstream that could say something."""
        return WAIT

    def forward(self, exchange: Exchange) -> Step:
        """Answer one exchange. Raises `ClientError` and `StreamError`."""
        path = exchange.request.target.decode("ascii").partition("?")[0]
        refusal = None if path in _UNDER_ANY_NAME else self._refuse_foreign(exchange)
        order = self._find_order(path)
        if refusal is not None:
            send_reply(exchange, refusal)
        elif order is not None:
            self._steer(exchange, order)
        else:
            send_reply(exchange, self._view(exchange, path))
        return DONE

    def _find_order(self, path: str) -> _Order | None:
        if path.startswith(_STEER) and path != _STEER:
            return functools.partial(self._change, path.removeprefix(_STEER))
        return {_ASK: self._ask, _TOKEN: _know_token}.get(path)

    def _view(self, exchange: Exchange, path: str) -> Reply:
        view = self._views.get(path)
        if view is None:
            return _sentence(404, "there is nothing at this path")
        if exchange.request.method not in {b"GET", b"HEAD"}:
            return _not_allowed("GET, HEAD")
        try:
            return view(exchange)
        except CommandError as error:
            return _refused(error)

    def _refuse_foreign(self, exchange: Exchange) -> Reply | None:
        """Build the refusal of a request that a foreign page may be behind, or None."""
        request = exchange.request
        if is_foreign_host(request.host, self._names):
            cause, reason = (
                "Host",
                (
                    "this address is not asked under that name: use its IP address, "
                    "or put the name into admin.hosts"
                ),
            )
        elif is_foreign_origin(request.fields.values(b"origin"), request.host):
            cause, reason = "Origin", "this request comes from a page of somebody else"
        else:
            return None
        self._note_refusal(exchange, f"a foreign {cause}")
        return _sentence(403, reason)

    def _show_stats(self, _: Exchange) -> Reply:
        stats = self._aggregate.stats()
        stats["verdict"] = judge(stats)
        stats["may_steer"] = bool(self._token)
        return _json_reply(stats)

    def _show_status(self, _: Exchange) -> Reply:
        stats = self._aggregate.stats()
        return Reply(200, show_status(stats, judge(stats)).encode(), TEXT, fields=(_REFRESH,))

    def _show_exchanges(self, exchange: Exchange) -> Reply:
        return _json_reply(self._aggregate.explain(_query(exchange)))

    def _show_metrics(self, _: Exchange) -> Reply:
        return Reply(200, self._aggregate.metrics().encode(), CONTENT_TYPE)

    def _show_life(self, _: Exchange) -> Reply:
        return _sentence(200, "alive")

    def _show_readiness(self, _: Exchange) -> Reply:
        is_ready, reason = self._aggregate.readiness()
        if is_ready:
            return _sentence(200, f"ready: {reason}" if reason else "ready")
        return _sentence(503, f"not ready: {reason}", _RETRY_AFTER)

    def _steer(self, exchange: Exchange, order: _Order) -> None:
        """Carry out `order`, if the request may steer and says how."""
        refusal = self._refuse_steering(exchange)
        if refusal is not None:
            send_reply(exchange, refusal)
            return
        body = read_small_body(exchange, MOST_BODY)
        try:
            reply = _sentence(200, f"done: {order(exchange, body)}")
        except CommandError as error:
            reply = _refused(error)
        send_reply(exchange, reply, has_read_body=True)

    def _refuse_steering(self, exchange: Exchange) -> Reply | None:
        """Build the refusal of whoever may not steer, or None."""
        request = exchange.request
        if request.method != b"POST":
            return _not_allowed("POST")
        if not self._token:
            return _sentence(403, "read only: no admin.token is configured")
        given = request.fields.values(b"authorization")
        if not given:
            return _unauthorized("steering needs the token: Authorization: Bearer ...", "")
        scheme, _, token = given[0].partition(b" ")
        is_bearer = len(given) == 1 and scheme.lower() == b"bearer"
        # In constant time: how long a comparison takes must not tell how much of it is right.
        if not hmac.compare_digest(token.strip(b" "), self._token) or not is_bearer:
            self._note_refusal(exchange, "a wrong token")
            return _unauthorized("this is not the token", ', error="invalid_token"')
        return None

    def _change(self, quoted: str, exchange: Exchange, body: bytes) -> str:
        """Change an upstream."""
        try:
            name = urllib.parse.unquote(quoted, errors="strict")
        except UnicodeDecodeError:
            raise CommandError(404, _UNKNOWN) from None
        change = parse_change(_content_type(exchange), body)
        if not self._aggregate.steer(name, change):
            raise CommandError(404, _UNKNOWN)
        log.info("upstream %s: %s, by %s", name, change, _client(exchange))
        return str(change)

    def _ask(self, exchange: Exchange, body: bytes) -> str:
        """Have exchanges explained from now on."""
        asking = parse_asking(_content_type(exchange), body)
        self._aggregate.ask_for(asking)
        log.info("to be explained: %s, by %s", asking, _client(exchange))
        return f"explaining {asking}"

    def _note_refusal(self, exchange: Exchange, cause: str) -> None:
        self._throttle.write(logging.WARNING, cause, "%s: refused for %s", _client(exchange), cause)


def _static_view(name: str, kind: str) -> _View:
    body = importlib.resources.files(__package__).joinpath(name).read_bytes()
    reply = Reply(200, body, kind, _PAGE_POLICY)
    return lambda _: reply


def _know_token(_exchange: Exchange, _body: bytes) -> str:
    """Change nothing: whoever gets here has the token, and that was the question."""
    return "this is the token"


def _sentence(status: int, text: str, *fields: tuple[str, str]) -> Reply:
    return Reply(status, f"{text}\n".encode(), TEXT, fields=fields)


def _refused(error: CommandError) -> Reply:
    retry = (_RETRY_AFTER,) if error.status == 503 else ()
    return _sentence(error.status, error.reason, *retry)


def _not_allowed(methods: str) -> Reply:
    return _sentence(405, f"this path is for {methods}", ("Allow", methods))


def _unauthorized(text: str, error: str) -> Reply:
    return _sentence(401, text, ("WWW-Authenticate", f'Bearer realm="Atlas"{error}'))


def _json_reply(document: object) -> Reply:
    return Reply(200, json.dumps(document, separators=(",", ":"), allow_nan=False).encode(), _JSON)


def _content_type(exchange: Exchange) -> bytes:
    return exchange.request.fields.get(b"content-type") or b""


def _query(exchange: Exchange) -> dict[str, str]:
    query = exchange.request.target.decode("ascii").partition("?")[2]
    return dict(urllib.parse.parse_qsl(query, keep_blank_values=True))


def _client(exchange: Exchange) -> str:
    return exchange.client.info.address.decode("latin-1")
