"""A stream whose bytes are encrypted (TLS), for either side of a conversation.

`TlsStream(plain, context)` takes the connection of a `Stream` over and has the same verbs; whoever
holds one need not know which it is. Towards a client it is the server of TLS, towards an upstream
its client, which looks for `server_name`. Before anything else both ends shake hands:
`shake_hands_now` goes on as far as it can without waiting, `shake_hands` waits. What fails, fails
as a `StreamError`; the reason of a certificate that was not accepted is in it.

The library's `SSLSocket` is used *non-blocking*: "want read" and "want write" are "not now". It
reads one record at a time, so what the kernel does not tell of would be the rest of a record that
was read in part. There never is one: all verbs read whole records, and what goes beyond what was
asked for is put into `buffered`, where everybody looks. (Through `MemoryBIO` a gigabyte costs a
third more, although it takes fewer system calls.)

A record may hold nothing for us (a session ticket, a change of keys). So a readable socket is not
always a readable stream, and a look at one (`is_readable`, `has_ended`) has to read.

The end of input is an alert, close-notify. A connection that ends without one has been cut, maybe
by somebody in between, and that is a failure, never an end (RFC 9112 §9.8).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from atlas_pkg.errors import Side, StreamError
from atlas_pkg.net.stream import RECEIVE_BYTES, Stream

# The most that a record holds (RFC 8446 §5.1).
RECORD_BYTES = 16 * 1024

# What is read of a file at once, to be encrypted.
_FILE_BYTES = 256 * 1024

# How a subject's attributes are called in text (RFC 4514 §3).
_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}

# Below TLS.
_send = socket.socket.send

_NOT_NOW = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


def build_context(protocol: int) -> ssl.SSLContext:
    """Build a context for whose connections an end without close-notify is an error.

    Early releases of Python 3.11 take it for a good end, unless they are told otherwise.
    """
    context = ssl.SSLContext(protocol)
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)  # OpenSSL 1.1.1 has none
    return context


class TlsStream(Stream):
    """One TLS connection's bytes, with the verbs of `Stream`.

    A subclass, since it is one in all that its users can see.
    """

    __slots__ = ("_has_ended", "_keep_session", "_lock", "_tls")

    is_plain = False
    receive_bytes = RECORD_BYTES

    def __init__(
        self,
        plain: Stream,
        context: ssl.SSLContext,
        *,
        server_name: str | None = None,
        session: ssl.SSLSession | None = None,
        keep_session: Callable[[ssl.SSLSession], None] | None = None,
    ) -> None:
        """Takes over the connection of `plain`, which is not to be used any more.

        Nothing of it may have been read. `session` is one of an earlier connection under the same
        `context`; `keep_session` is told one that the next connection can go on with. Raises
        `StreamError`; then it is still to be closed.
        """
        try:
            self._tls = context.wrap_socket(
                plain._sock,  # noqa: SLF001 - the one place where a connection changes hands
                server_side=plain.side is Side.CLIENT,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
                server_hostname=server_name and server_name.encode("idna").decode("ascii"),
                session=session,
            )
        except (OSError, ValueError) as error:
            raise StreamError(plain.side, f"TLS: {error}") from None
        self._tls.setblocking(False)
        super().__init__(self._tls, plain.side)
        self.client_gone = plain.client_gone
        self._keep_session = keep_session
        # The other end has said close-notify, of which the kernel will not tell again.
        self._has_ended = False
        # Guards the state of the encryption: one thread may read while another writes, and before
        # Python 3.13 the library does not guard it. What is done under it never waits.
        self._lock = threading.Lock()

    @property
    def session(self) -> ssl.SSLSession | None:
        """What another connection to the same server can go on with, as far as it is known yet.

        TLS 1.3 tells after the handshake, so this is best asked for at the end.
        """
        return self._tls.session

    def peer_certificate(self) -> tuple[str, str] | None:
        """The certificate that the other end has shown, if any: its subject, and its SHA-256.

        The subject is written as in RFC 4514, `CN=app,O=Example`, the other in hexadecimal digits.
        It is empty where the certificate holds a name, of whatever kind, that is no text.
        """
        try:
            certificate = self._tls.getpeercert(binary_form=True)
        except ValueError:  # they are still shaking hands
            return None
        if not certificate:
            return None
        subject: Any = ()
        with contextlib.suppress(ValueError, OSError):
            subject = (self._tls.getpeercert() or {}).get("subject", ())
        parts = [
            "+".join(f"{_SHORT.get(name, name)}={_escape(value)}" for name, value in part)
            for part in reversed(subject)
        ]
        return ",".join(parts), hashlib.sha256(certificate).hexdigest()

    def shake_hands_now(self) -> bool:
        """Go on with the handshake; whether it is complete. Never waits. Raises `StreamError`."""
        try:
            self._tls.do_handshake()
        except _NOT_NOW:
            return False
        except OSError as error:
            raise self.broken(error) from None
        return True

    def shake_hands(self, timeout: float) -> None:
        """Shake hands within `timeout`. Blocks. Raises `StreamError`."""
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.wait_until_readable(left)
            except ssl.SSLWantWriteError:
                self.wait_until_writable(left)
            except OSError as error:
                raise self.broken(error) from None
            else:
                return

    def receive_now(self) -> bytes | None:
        if self._has_ended:
            return b""
        with self._lock:
            try:
                data = self._tls.read(RECORD_BYTES)
            except _NOT_NOW:
                return None
            except ssl.SSLZeroReturnError:  # that is the end, too, once we have said ours
                data = b""
            except OSError as error:
                raise self.broken(error) from None
        self._has_ended = not data
        if self._keep_session is not None:
            # TLS 1.3 tells of a session after the handshake, and before it says anything else.
            if (session := self.session) is not None:
                self._keep_session(session)
            self._keep_session = None
        return data

    def receive(self, timeout: float, other: Stream | None = None) -> bytes:
        deadline = time.monotonic() + timeout
        while (data := self.receive_now()) is None:
            self.wait_until_readable(deadline - time.monotonic(), other)
        return data

    def receive_into(self, view: memoryview, timeout: float, other: Stream | None = None) -> int:
        deadline = time.monotonic() + timeout
        while (count := self._read_records(view)) is None:
            self.wait_until_readable(deadline - time.monotonic(), other)
        return count

    def _read_records(self, view: memoryview) -> int | None:
        """Fill `view` with what has come; what goes beyond it is put into `buffered`."""
        if self._has_ended:
            return 0
        count, most = 0, len(view)
        with self._lock:
            try:
                while (received := self._tls.recv_into(view[count:])) == RECORD_BYTES:
                    count += received
                    if most - count < RECORD_BYTES:
                        return count
                count += received
                self._has_ended = not received
                if left := self._tls.pending():
                    self.buffered += self._tls.read(left)
            except _NOT_NOW:
                return count or None
            except ssl.SSLZeroReturnError:
                self._has_ended = True
            except OSError as error:
                if not count:
                    raise self.broken(error) from None
                # What came before it is still good; the next read meets it again.
        return count

    def send_now(self, data: bytes) -> bytes:
        try:
            sent = self.send_some(data)
        except StreamError:
            return data
        return data[sent:] if sent < len(data) else b""

    def send_some(self, data: bytes | memoryview) -> int:
        sent, most = 0, len(data)
        with self._lock:
            try:
                if most <= RECORD_BYTES:
                    return self._tls.write(data)
                view = memoryview(data)
                while sent < most:  # of more at once the library would not say how far it came
                    sent += self._tls.write(view[sent : sent + RECORD_BYTES])
            except _NOT_NOW:
                return sent
            except OSError as error:
                raise self.broken(error) from None
        return sent

    def send(self, data: bytes | memoryview, timeout: float) -> None:
        sent = self.send_some(data)
        while sent < len(data):
            self.wait_until_writable(timeout)
            sent += self.send_some(memoryview(data)[sent:])

    def send_parts(self, parts: Sequence[bytes | memoryview], timeout: float) -> None:
        self.send(parts[0] if len(parts) == 1 else b"".join(parts), timeout)

    def send_file(self, file: int, start: int, count: int, timeout: float) -> bool:
        while count:
            data = os.pread(file, min(count, _FILE_BYTES), start)
            if not data:
                return False
            self.send(data, timeout)
            start, count = start + len(data), count - len(data)
        return True

    def is_readable(self, timeout: float = 0.0) -> bool:
        """Is there something to read (bytes, the end, an error), now or within `timeout`?

        Reads: only that tells. What it finds is in `buffered`.
        """
        if self.buffered or self._has_ended:
            return True
        if not super().is_readable(timeout):
            return False
        try:
            data = self.receive_now()
        except StreamError:
            return True
        self.buffered = data or b""
        return data is not None

    def has_ended(self) -> bool:
        """Has the other end closed, with nothing left to read? Never waits.

        Reads, as `is_readable` does.
        """
        if len(self.buffered) < RECEIVE_BYTES and not self.is_silent():
            try:
                self.buffered += self.receive_now() or b""
            except StreamError:
                return True
        return self._has_ended

    def end_sending(self) -> None:
        """Close the sending half, with close-notify: the other end reads the end of input."""
        with contextlib.suppress(OSError):  # no descriptors are left, or the other end is gone
            self._send_close_notify()
        super().end_sending()

    def _send_close_notify(self) -> None:
        """Send close-notify, and read nothing; raises `OSError`.

        The library looks for the other's at the same time, and where it finds data it is through
        with the connection: what is on its way would be lost. So meanwhile the descriptor stands
        for a socket on which nothing comes, and what is written there is sent.
        """
        near, far = socket.socketpair()
        with near, far, self._lock:
            near.setblocking(False)
            connection = os.dup(self.fd)
            try:
                os.dup2(near.fileno(), self.fd, inheritable=False)
                with contextlib.suppress(OSError, ValueError):
                    self._tls.unwrap()
            finally:
                os.dup2(connection, self.fd, inheritable=False)
                os.close(connection)
            near.shutdown(socket.SHUT_WR)
            _send(self._tls, far.recv(RECORD_BYTES))

    def close(self) -> None:
        """Close the connection, with close-notify; harmless when it is closed already."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()
        super().close()

    def broken(self, error: OSError) -> StreamError:
        """Translate what the library or the kernel reports."""
        if not isinstance(error, ssl.SSLError):
            return super().broken(error)
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = f"its certificate is not accepted: {error.verify_message}"
        elif isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING":
            reason = "ended without close-notify"
        elif error.reason == "WRONG_VERSION_NUMBER":  # of the record, not of what is agreed upon
            reason = "what came is not TLS"
        else:
            reason = (error.reason or "failed").replace("_", " ").lower()
        return StreamError(self.side, f"TLS: {reason}")


def _escape(value: str) -> str:
    """Write an attribute's value so that it cannot be taken for two (RFC 4514 §2.4).

    Control characters are left out.
    """
    value = re.sub(r'([",+;<>\\]|^[ #]| $)', r"\\\1", value)
    return "".join(character for character in value if character.isprintable())
