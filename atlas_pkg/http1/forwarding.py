"""Heads for the next hop: what a proxy removes, what it sets, and in which form.

Fields that speak to the neighbour go no further (RFC 9110 §7.6.1): `Connection`, all that it names,
`Keep-Alive`, `TE`, `Upgrade` and the framing. `fields.py` has left them out of `Fields.kept`. Here
is added what the next hop is to be told: framing, `Via` (§7.6.3), `X-Forwarded-*`, and the fields
that the configuration sets. Those that it removes are taken out.

What is the same for every request of a client is built once, as a `ClientInfo`. The address
fields are set after everything else, so a client cannot have them removed by naming them in its
`Connection` field.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from atlas_pkg.config.model import Forwarding
from atlas_pkg.config.rules import Address
from atlas_pkg.http1.framing import NO_BODY, BodyKind, Framing
from atlas_pkg.http1.memo import Memo
from atlas_pkg.http1.message import OWN_NAME, Request, Response
from atlas_pkg.http1.syntax import SEPARATOR, fold_name
from atlas_pkg.http1.target import without_prefix

# Methods whose requests are expected to have a body: an upstream may answer 411 where one comes
# without any length, so an absent body is said to be empty (RFC 9110 §8.6).
_METHODS_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))

_FORWARDED = {
    b"x-forwarded-for": b"X-Forwarded-For",
    b"x-forwarded-proto": b"X-Forwarded-Proto",
    b"x-forwarded-host": b"X-Forwarded-Host",
}

# What tells of a client's certificate (`listen.tls.client_ca`).
_CERT_SUBJECT, _CERT_FINGERPRINT = "X-Client-Cert-Subject", "X-Client-Cert-Fingerprint"

_COOKIE_LINE = re.compile(rb"(?i)(?<=\n)(cookie:[ \t]*)([^\r]*)\r\n")
_HOST_LINE = re.compile(rb"(?i)(?<=\n)host:[^\r]*\r\n")

# An address, or one with a port: only in brackets is an IPv6 address followed by one.
_FORWARDED_FOR = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+(?=:[0-9]+\Z)|[0-9A-Fa-f:.]+))(?::[0-9]{1,5})?"
)

_MAX_FORWARDS_LINE = re.compile(rb"(?i)(?<=\n)max-forwards:[^\r]*\r\n")

# What a client hears that waits for it before it sends its body (RFC 9110 §15.2.1).
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_UPGRADES = b"Connection: Upgrade\r\n"

_INTERIM_REASONS = {100: b"Continue", 102: b"Processing", 103: b"Early Hints"}


class ClientInfo:
    """What forwarding needs to know of one client connection; built once for it."""

    __slots__ = ("address", "certificate", "is_trusted", "scheme", "tail", "text")

    def __init__(
        self, address: bytes, scheme: bytes, *, is_trusted: bool, certificate: bytes, tail: bytes
    ) -> None:
        self.address = address
        self.text = address.decode("ascii")
        self.scheme = scheme
        self.is_trusted = is_trusted
        self.certificate = certificate  # the lines that tell of the one that it has shown
        # What ends every HTTP/1.1 head from this client; empty where heads differ.
        self.tail = tail


class Forwarder:
    """Builds the heads that are sent on, as `[forwarding]` wants them. Immutable, thread-safe."""

    def __init__(
        self,
        settings: Forwarding,
        *,
        filter_cookie: Callable[[bytes], bytes] | None = None,
        tells_certificates: bool = False,
    ) -> None:
        """`filter_cookie` takes Atlas's own cookie out of a Cookie value, if there is one.

        `tells_certificates`: clients have to show one, so the fields that tell of it are ours.
        """
        self._filter_cookie = filter_cookie
        self._clients: Memo[ClientInfo] = Memo()
        self._trusted_proxies = settings.trusted_proxies
        self._x_forwarded = settings.x_forwarded
        self._via = settings.via
        self.makes_request_ids = settings.request_id
        requests_without = (*settings.remove_request_fields, *dict(settings.set_request_fields))
        responses_without = (*settings.remove_response_fields, *dict(settings.set_response_fields))
        ours = (_CERT_SUBJECT, _CERT_FINGERPRINT) if tells_certificates else ()
        self._request_remover = _build_remover((*requests_without, *ours))
        self._response_remover = _build_remover(responses_without)
        # Takes out what is set, and nothing else.
        self._response_setter = _build_remover(tuple(dict(settings.set_response_fields)))
        self._not_ours = frozenset(fold_name(name.encode("ascii")) for name in requests_without)
        # Whether answers may have a Date of ours is left to whoever sets or removes it.
        self.dates = "date" not in map(str.lower, responses_without)
        self._set_on_requests = _build_lines(settings.set_request_fields)
        self._set_on_responses = _build_lines(settings.set_response_fields)

    def describe_client(
        self, address: str, scheme: str, certificate: tuple[str, str] | None = None
    ) -> ClientInfo:
        """Prepare for a client connection from `address`, an IP address in text form.

        `certificate` is subject and fingerprint of the one that it has shown. Many connections come
        from few addresses, so what is found is remembered.
        """
        key = " ".join((scheme, address, *(certificate or ()))).encode("utf-8")
        client = self._clients.get(key)
        if client is None:
            client = self._describe_client(address, scheme, certificate)
            self._clients.put(key, client)
        return client

    def _describe_client(
        self, address: str, scheme: str, certificate: tuple[str, str] | None
    ) -> ClientInfo:
        ip = ipaddress.ip_address(address)
        is_trusted = any(ip in network for network in self._trusted_proxies)
        shown = b""
        if certificate is not None:
            names = (_CERT_SUBJECT, _CERT_FINGERPRINT)
            pairs = tuple(zip(names, certificate, strict=True))
            shown = "".join(f"{name}: {text}\r\n" for name, text in pairs).encode("utf-8")
        client = ClientInfo(
            address.encode("ascii"),
            scheme.encode("ascii"),
            is_trusted=is_trusted,
            certificate=shown,
            tail=b"",
        )
        if self._x_forwarded and not is_trusted and not self._not_ours:
            lines = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n%b\r\n"
            client.tail = self._via_line(1) + lines % (client.address, client.scheme, shown)
        return client

    def build_request_head(
        self,
        request: Request,
        client: ClientInfo,
        fallback_host: bytes,
        request_id: bytes = b"",
        strip: bytes = b"",
    ) -> bytes:
        """Build the head for the upstream.

        `fallback_host` is for an HTTP/1.0 request without Host. `request_id` goes out as
        X-Request-Id unless a trusted proxy has set one; empty means none. `strip` is taken off the
        path, and the upstream is told of it.
        """
        if client.tail and request.minor == 1 and not request_id:
            # The common road: equal requests are one object, and differ only in their client. What
            # is taken off may depend on that, too.
            onward = request.onward
            if onward is None or onward[0] != strip:
                core, host = self._build_core(request, strip, fallback_host)
                core += self._request_id_line(request, client, b"") + self._prefix_line(strip)
                onward = request.onward = (strip, core + b"X-Forwarded-Host: %b\r\n" % host)
            return onward[1] + client.tail
        core, host = self._build_core(request, strip, fallback_host)
        parts = [core, self._request_id_line(request, client, request_id)]
        parts.append(self._set_on_requests + self._via_line(request.minor))
        if client.is_trusted:
            parts.append(self._claims(request))
        parts.append(self._prefix_line(strip))
        parts.extend(self._forwarded_lines(request, client, host))
        parts += (client.certificate, b"\r\n")
        return b"".join(parts)

    def _build_core(
        self, request: Request, strip: bytes, fallback_host: bytes
    ) -> tuple[bytes, bytes]:
        """The part of a request head that does not depend on the client, and the host in it."""
        kept = request.fields.kept
        if self._request_remover is not None:
            kept = self._request_remover.sub(b"", kept)
        if self._filter_cookie is not None:
            kept = self._without_own_cookie(kept, self._filter_cookie)
        host = request.host
        target = without_prefix(request.target, strip) if strip else request.target
        parts = [request.method, b" ", target, b" HTTP/1.1"]
        if host is not request.fields.host or host is None:
            # Absolute form, or HTTP/1.0 without Host: the field that we send is ours, and first.
            host = host if host is not None else fallback_host
            kept = _HOST_LINE.sub(b"", kept)
            if b"host" not in self._not_ours:
                parts.append(b"\r\nHost: " + host)
        if request.hops_left is not None:
            kept = _MAX_FORWARDS_LINE.sub(b"", kept) + b"Max-Forwards: %d\r\n" % (
                request.hops_left - 1
            )
        parts.append(kept)
        if request.framing is not NO_BODY or request.method in _METHODS_WITH_BODY:
            parts.append(_framing_lines(request))
        if upgrade := request.upgrade:
            parts.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % upgrade)
        return b"".join(parts), host

    def build_response_head(
        self, response: Response, framing: Framing, persistence: bytes
    ) -> bytes:
        """Build the head for the client; `framing` is how we shall frame the body to it.

        `persistence` is the Connection line to send, or empty.
        """
        if framing is not response.framing:
            return self._frame_response(response, framing, persistence)
        head = response.onward.get(persistence)
        if head is None:
            head = self._frame_response(response, framing, persistence)
            response.onward[persistence] = head
        return head

    def _frame_response(self, response: Response, framing: Framing, persistence: bytes) -> bytes:
        fields = response.fields
        parts = [b"HTTP/1.1 %d %b" % (response.status, response.reason), self._kept(response)]
        if framing.kind is BodyKind.LENGTH:
            parts.append(b"Content-Length: %d\r\n" % framing.length)
        elif framing.kind is BodyKind.CHUNKED:
            parts.append(b"Transfer-Encoding: chunked\r\n")
        elif fields.framing.kind is BodyKind.LENGTH and response.status != 204:
            # HEAD and 304 tell the length of the body that they leave out (RFC 9110 §8.6).
            parts.append(b"Content-Length: %d\r\n" % fields.framing.length)
        if response.status == 426 and fields.upgrade:
            # It says what the client should upgrade to (RFC 9110 §15.5.22).
            parts.append(b"Upgrade: %b\r\n" % fields.upgrade)
            persistence = persistence[:-2] + b", Upgrade\r\n" if persistence else _UPGRADES
        parts += (persistence, self._via_line(response.minor), self._set_on_responses, b"\r\n")
        return b"".join(parts)

    def build_interim_head(self, response: Response) -> bytes:
        """Build a 1xx answer to pass on (RFC 9110 §15.2): its fields, and nothing of ours."""
        reason = response.reason or _INTERIM_REASONS.get(response.status, b"")
        return b"HTTP/1.1 %d %b%b\r\n" % (response.status, reason, self._kept(response))

    def build_switching_head(self, response: Response, mark: bytes = b"") -> bytes:
        """Build the 101 (Switching Protocols) that turns the connection into a tunnel.

        `mark` is the sticky cookie's line, or empty.
        """
        return b"HTTP/1.1 101 %b%bConnection: Upgrade\r\nUpgrade: %b\r\n%b%b\r\n" % (
            response.reason or b"Switching Protocols",
            self._kept(response),
            response.fields.upgrade,
            self._set_on_responses,
            mark,
        )

    def dress_answer(self, answer: bytes) -> bytes:
        """Put the fields that are set on answers on one that Atlas has made itself."""
        if not self._set_on_responses or self._response_setter is None:
            return answer
        head, _, body = answer.partition(b"\r\n\r\n")
        head = self._response_setter.sub(b"", head + b"\r\n")
        return b"".join((head, self._set_on_responses, b"\r\n", body))

    def _kept(self, response: Response) -> bytes:
        """What is passed on of an answer's fields."""
        kept = response.fields.kept
        return self._response_remover.sub(b"", kept) if self._response_remover else kept

    def client_address(self, request: Request, client: ClientInfo) -> bytes:
        """The client's own address, as far as those in between can be trusted."""
        if not client.is_trusted:
            return client.address
        appended = b",".join(request.fields.notable.get(b"x-forwarded-for", [])).split(b",")
        for entry in reversed(appended):
            ip = _parse_forwarded_for(entry.strip(b" \t"))
            if ip is None:
                break  # from here on it is anybody's text
            if not any(ip in network for network in self._trusted_proxies):
                return str(ip).encode("ascii")
        return client.address

    @staticmethod
    def _without_own_cookie(block: bytes, strip: Callable[[bytes], bytes]) -> bytes:
        def keep_others(match: re.Match[bytes]) -> bytes:
            others = strip(match[2])
            return match[1] + others + b"\r\n" if others else b""

        return _COOKIE_LINE.sub(keep_others, block)

    def _via_line(self, minor: int) -> bytes:
        """Via names the version in which the message came to us (RFC 9110 §7.6.3)."""
        if not self._via:
            return b""
        return b"Via: 1.%d %b\r\n" % (1 if minor else 0, OWN_NAME)

    def _request_id_line(self, request: Request, client: ClientInfo, request_id: bytes) -> bytes:
        """X-Request-Id: the client's own where it is believed or not our business, else ours."""
        if b"x-request-id" in self._not_ours:
            return b""
        theirs = request.fields.notable.get(b"x-request-id")
        if theirs and (client.is_trusted or not self.makes_request_ids):
            return b"".join(b"X-Request-Id: %b\r\n" % value for value in theirs)
        return b"X-Request-Id: %b\r\n" % request_id if request_id else b""

    def _prefix_line(self, strip: bytes) -> bytes:
        """What was taken off the path; behind what a trusted proxy says that it has taken off."""
        if not strip or b"x-forwarded-prefix" in self._not_ours:
            return b""
        return b"X-Forwarded-Prefix: %b\r\n" % strip

    def kept_request_id(self, request: Request, client: ClientInfo) -> bytes:
        """The X-Request-Id that the request came with, if it is passed on; else empty."""
        if not client.is_trusted and self.makes_request_ids:
            return b""
        theirs = request.fields.notable.get(b"x-request-id")
        return theirs[0] if theirs else b""

    def _claims(self, request: Request) -> bytes:
        """What a trusted proxy says of its client beyond what we would: passed as it came."""
        lines = b"\n" + request.fields.claims
        if self._request_remover is not None:
            lines = self._request_remover.sub(b"", lines)
        return lines[1:]

    def _forwarded_lines(self, request: Request, client: ClientInfo, host: bytes) -> list[bytes]:
        """What is told of the client: a trusted proxy's word, and what we add to it or set."""
        values: dict[bytes, list[bytes]] = {name: [] for name in _FORWARDED}
        if client.is_trusted:
            values = {name: request.fields.notable.get(name, []) for name in _FORWARDED}
        if self._x_forwarded:
            before = [value for value in values[b"x-forwarded-for"] if value]
            values[b"x-forwarded-for"] = [b", ".join([*before, client.address])]
            values[b"x-forwarded-proto"] = values[b"x-forwarded-proto"][:1] or [client.scheme]
            values[b"x-forwarded-host"] = values[b"x-forwarded-host"][:1] or [host]
        return [
            b"%b: %b\r\n" % (_FORWARDED[name], value)
            for name in _FORWARDED
            if name not in self._not_ours
            for value in values[name]
        ]


def _parse_forwarded_for(entry: bytes) -> Address | None:
    """Read one entry of X-Forwarded-For, with a port or brackets as some proxies write them.

    An IPv4 address written as IPv6 is that IPv4 address. None for anything else.
    """
    match = _FORWARDED_FOR.fullmatch(entry)
    if match is None:
        return None
    try:
        ip = ipaddress.ip_address((match[1] or match[2]).decode("ascii"))
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def _framing_lines(request: Request) -> bytes:
    """The framing and expectation of a request that has or announces a body."""
    framing = request.framing
    lines = b""
    if framing.kind is BodyKind.CHUNKED:
        lines = b"Transfer-Encoding: chunked\r\n"
    elif framing.kind is BodyKind.LENGTH:
        lines = b"Content-Length: %d\r\n" % framing.length
    elif request.method in _METHODS_WITH_BODY and not request.upgrade:
        lines = b"Content-Length: 0\r\n"
    if request.expects_continue:
        lines += b"Expect: 100-continue\r\n"
    return lines


def _build_lines(fields: tuple[tuple[str, str], ...]) -> bytes:
    lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in fields]
    return b"".join(lines)


def _build_remover(names: tuple[str, ...]) -> re.Pattern[bytes] | None:
    """An expression for the lines of the fields to remove, or None where there are none.

    With each go all that an application might take for it (`syntax.SEPARATOR`).
    """
    if not names:
        return None
    folded = [fold_name(name.encode("latin-1")) for name in names]
    alternatives = b"|".join(SEPARATOR.join(map(re.escape, name.split(b"-"))) for name in folded)
    return re.compile(rb"(?i)(?<=\n)(?:" + alternatives + rb"):[^\r]*\r\n")
