"""App: files of a folder (mode "static").

A path leads to a file below `listen.root`, or to the index of a folder, and to nothing else: no
part of it begins with a dot, what a link leads to lies below the root as well, and folders are not
listed. A file is opened first, and what is said of it is asked of the descriptor. So a name that
comes to mean another file changes nothing for an answer that has begun. A file that is written to
meanwhile is found out before the last bytes of it are sent, and the answer is cut.

To open and to read a file may have to wait for a disk, so a thread does it. Small ones it keeps in
memory; with these the lane answers, as long as one look at the name (`stat`) says that it is still
the same file. Large ones are moved by `sendfile`, without a copy in Python.

Not done here: what conditions and ranges mean (`http1/conditions.py`).
"""

from __future__ import annotations

import errno
import fcntl
import functools
import logging
import mimetypes
import os
import stat
import sys
import threading
import time
import urllib.parse
from typing import NamedTuple

from atlas_pkg.errors import Stage, UpstreamError
from atlas_pkg.http1.conditions import Selection, select, show_date
from atlas_pkg.logs import Throttle
from atlas_pkg.serving.client import FINISH
from atlas_pkg.serving.exchange import DONE, WAIT, Exchange, Step

log = logging.getLogger("atlas.static")

# Up to this size a file is sent in one piece with its head, and kept in memory.
SMALL = 64 * 1024

# So much at the end of a large one is read before it is looked whether it has changed, and then
# sent; and what `sendfile` is asked for at once of all that comes before.
TAIL_BYTES = 4 * 1024
PIECE_BYTES = 8 * 1024 * 1024

# So much of small files is kept. Beyond it all are forgotten, and those asked for come anew.
MOST_KEPT = 32 * 1024 * 1024

# What was changed so shortly before it was read is not kept: the clock of files may stand still
# for some milliseconds, and a second change would not show.
SETTLED = 2.0

# One that was written to so shortly before is given this time to come to rest, for the same reason:
# the clock of files goes on once in 4 or 10 ms.
MOMENT = 0.02

# How often a small file is read again that was being written to.
READS = 3

# Not to wait for who writes into a pipe.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_NOT_FOUND = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO)
)
_FORBIDDEN = frozenset((errno.EACCES, errno.EPERM))

_PHRASES = {200: b"OK", 206: b"Partial Content", 304: b"Not Modified"}

# Types by what `mimetypes` calls an encoding: such a file is what it is, and nobody unpacks it.
_PACKED = {"gzip": b"application/gzip", "bzip2": b"application/x-bzip2", "xz": b"application/x-xz"}


class _Mark(NamedTuple):
    """What tells one state of a file from every other."""

    device: int
    inode: int
    changed_ns: int  # whatever of it: its content, its name, its time
    modified_ns: int  # its content, or so it was said
    size: int


class _SmallFile(NamedTuple):
    """A file that is kept in memory."""

    mark: _Mark
    content: bytes


class _ChangedError(Exception):
    """The file was written to while it was read."""


class StaticFiles:
    """Answers with the files of a folder. Thread-safe."""

    def __init__(self) -> None:
        mimetypes.init()  # reads the system's files
        self._throttle = Throttle(log)
        # Guards what follows when something is added; looking something up is a single step.
        self._lock = threading.Lock()
        self._kept: dict[bytes, _SmallFile] = {}  # by the whole path
        self._kept_bytes = 0

    def forward(self, exchange: Exchange) -> Step:
        """Answer. Blocks. Raises `StreamError` for the client, and `UpstreamError` for a file that
        was written to while it was sent.
        """
        request, config = exchange.request, exchange.generation.config
        if request.has_body:
            exchange.following = FINISH  # nobody reads it here
        name = find_path(request.target, config.static.index)
        if request.method not in (b"GET", b"HEAD"):
            exchange.answer(
                405, "only GET and HEAD are served here", fields=b"Allow: GET, HEAD\r\n"
            )
        elif name is None:
            exchange.answer(404, "there is no such file")
        else:
            try:
                file = _open_below(exchange.generation.root, name)
            except OSError as error:
                self._refuse(exchange, error)
            else:
                try:
                    self._answer_with(exchange, file, exchange.generation.root, name)
                finally:
                    os.close(file)
        exchange.send_rest()
        return DONE

    def ask(self, exchange: Exchange) -> Step:
        """Answer with a small file that is known. Never waits."""
        request, config = exchange.request, exchange.generation.config
        name = find_path(request.target, config.static.index)
        if name is None or request.has_body or request.method not in (b"GET", b"HEAD"):
            return WAIT
        path = exchange.generation.root + b"/" + name
        known = self._kept.get(path)
        if known is None:
            return WAIT
        try:
            if _mark_of(os.stat(path)) != known.mark:  # noqa: PTH116 - a path of bytes
                return WAIT
        except OSError:
            return WAIT
        _answer_small(exchange, name, known)
        return WAIT if exchange.rest else DONE

    def answer(self, _: Exchange) -> Step:
        """There is no upstream that could say something."""
        return WAIT

    def _answer_with(self, exchange: Exchange, file: int, root: bytes, name: bytes) -> None:
        """Answer with an open file; raises as `forward`."""
        state = os.fstat(file)
        mark = _mark_of(state)
        if stat.S_ISDIR(state.st_mode):
            location = _add_slash(exchange.request.target)
            exchange.answer(308, "it is a folder", fields=b"Location: %b\r\n" % location)
        elif not stat.S_ISREG(state.st_mode):
            exchange.answer(404, "there is no such file")
        elif mark.size > SMALL:
            _await_rest(mark)
            _answer_large(exchange, name, file, mark)
        elif (small := _read_small(file)) is None:
            exchange.answer(503, "the file is being written")
        else:
            if time.time() - small.mark.changed_ns / 1e9 > SETTLED:
                self._keep(root + b"/" + name, small)
            _answer_small(exchange, name, small)

    def _keep(self, path: bytes, small: _SmallFile) -> None:
        with self._lock:
            if self._kept_bytes > MOST_KEPT:
                self._kept.clear()
                self._kept_bytes = 0
            before = self._kept.get(path)
            self._kept[path] = small
            self._kept_bytes += small.mark.size - (before.mark.size if before else 0)

    def _refuse(self, exchange: Exchange, error: OSError) -> None:
        """Answer that a file cannot be opened."""
        if error.errno in _NOT_FOUND:
            exchange.answer(404, "there is no such file")
        elif error.errno in _FORBIDDEN:
            exchange.answer(403, "the file may not be read")
        else:
            reason = error.strerror or str(error)
            self._throttle.write(logging.WARNING, reason, "a file cannot be opened: %s", reason)
            exchange.answer(503, "the file cannot be opened")


@functools.lru_cache(maxsize=1024)  # a target may have 8 KB
def find_path(target: bytes, index: str) -> bytes | None:
    """The path below the root to which a target leads; None if it leads nowhere.

    Several slashes count as one. A slash that is encoded is no slash, and part of no name.

    >>> find_path(b"/a%20b//c?d", "index.html"), find_path(b"/", "index.html")
    (b'a b/c', b'index.html')
    >>> find_path(b"/../etc", ""), find_path(b"/a/%2e%2e/b", ""), find_path(b"/%2fetc", "")
    (None, None, None)
    """
    raw = target.partition(b"?")[0].split(b"/")
    names = [urllib.parse.unquote_to_bytes(name) for name in raw if name]
    if any(name.startswith(b".") or b"/" in name or b"\0" in name for name in names):
        return None
    if not raw[-1]:
        names.append(os.fsencode(index))
    return b"/".join(names)


@functools.lru_cache(maxsize=1024)
def find_type(name: bytes) -> bytes:
    """The Content-Type of a file, by its name; text is taken to be UTF-8.

    >>> find_type(b"a/index.html"), find_type(b"a.tar.gz"), find_type(b"nothing")
    (b'text/html; charset=utf-8', b'application/gzip', b'application/octet-stream')
    """
    kind, encoding = mimetypes.guess_type("/" + name.decode("latin-1"), strict=False)
    if encoding is not None:
        return _PACKED.get(encoding, b"application/octet-stream")
    if kind is None:
        return b"application/octet-stream"
    return kind.encode("ascii") + (b"; charset=utf-8" if kind.startswith("text/") else b"")


def _add_slash(target: bytes) -> bytes:
    """Where a folder is to be found that was asked for without its slash.

    From the target as it came, so nothing in it needs to be encoded. With two slashes at its
    beginning it would name a host.
    """
    raw, mark, query = target.partition(b"?")
    return b"/" + b"/".join(name for name in raw.split(b"/") if name) + b"/" + mark + query


def _open_below(root: bytes, name: bytes) -> int:
    """Open what `name` leads to, if that lies below `root`. Raises `OSError`."""
    # The root may be a link itself, and may be set anew at any time: also right now.
    place = os.path.realpath(root).rstrip(b"/") + b"/"
    file = os.open(place + name, _FLAGS)
    try:
        if not _place_of(file).startswith(place):
            raise FileNotFoundError(errno.ENOENT, "leads out of the root")
    except OSError:
        os.close(file)
        raise
    return file


def _place_of(file: int) -> bytes:
    """Where an open file lies, all links resolved."""
    if sys.platform == "darwin":
        return fcntl.fcntl(file, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")
    return os.readlink(b"/proc/self/fd/%d" % file)  # noqa: PTH115 - a path of bytes


def _mark_of(state: os.stat_result) -> _Mark:
    return _Mark(state.st_dev, state.st_ino, state.st_ctime_ns, state.st_mtime_ns, state.st_size)


def _read_small(file: int) -> _SmallFile | None:
    """Read a whole file; None if it does not come to rest."""
    for _ in range(READS):
        mark = _mark_of(os.fstat(file))
        _await_rest(mark)
        try:
            return _SmallFile(mark, _read(file, mark, 0, mark.size))
        except _ChangedError:
            continue
    return None


def _await_rest(mark: _Mark) -> None:
    """Wait until whatever is written from now on shows in another mark. Blocks for a moment."""
    age = time.time() - mark.modified_ns / 1e9
    if 0 <= age < MOMENT:  # it may lie in the future
        time.sleep(MOMENT - age)


def _read(file: int, mark: _Mark, start: int, length: int) -> bytes:
    """Read a part; raises `_ChangedError` where the content is not in this state any more."""
    data = os.pread(file, length, start)
    now = _mark_of(os.fstat(file))
    if len(data) < length or (now.modified_ns, now.size) != (mark.modified_ns, mark.size):
        raise _ChangedError
    return data


def _answer_small(exchange: Exchange, name: bytes, small: _SmallFile) -> None:
    """Answer with a file in memory. Never waits."""
    begun = _begin(exchange, name, small.mark)
    if begun is not None:
        chosen, head = begun
        body = small.content[chosen.start : chosen.start + chosen.length]
        exchange.answer_whole(chosen.status, head + body)


def _answer_large(exchange: Exchange, name: bytes, file: int, mark: _Mark) -> None:
    """Answer with an open file, all but the tail by `sendfile`. Blocks."""
    begun = _begin(exchange, name, mark)
    if begun is None:
        return
    chosen, head = begun
    length = 0 if exchange.request.method == b"HEAD" else chosen.length
    moved, before_tail = 0, max(0, length - TAIL_BYTES)
    try:
        if before_tail:
            exchange.start(chosen.status)
            exchange.send(head)
        while moved < before_tail:
            count = min(PIECE_BYTES, before_tail - moved)
            timeout = exchange.generation.config.timeouts.client_write
            if not exchange.client.stream.send_file(file, chosen.start + moved, count, timeout):
                raise _ChangedError
            moved += count
        tail = _read(file, mark, chosen.start + moved, length - moved)
        if before_tail:
            exchange.send(tail)
            exchange.is_complete = True
        else:
            exchange.answer_whole(chosen.status, head + tail)
        moved += len(tail)
    except _ChangedError:
        raise UpstreamError(Stage.BODY, "the file was written to while it was sent") from None
    finally:
        if exchange.record is not None:
            exchange.record.body_out = moved


def _begin(exchange: Exchange, name: bytes, mark: _Mark) -> tuple[Selection, bytes] | None:
    """Decide what of a file is sent, and with which head; None if something else was answered."""
    now = int(time.time())
    tag = b'"%x-%x"' % (mark.modified_ns, mark.size)
    modified = min(mark.modified_ns // 1_000_000_000, now)  # RFC 9110 §8.8.2.1
    chosen = select(exchange.request, size=mark.size, tag=tag, modified=modified, now=now)
    if chosen.status == 412:
        exchange.answer(412, "the file is not what was expected")
        return None
    if chosen.status == 416:
        size = b"Content-Range: bytes */%d\r\n" % mark.size
        exchange.answer(416, "the file is shorter", fields=size)
        return None
    head = b"HTTP/1.1 %d %b\r\nDate: %b\r\n%bLast-Modified: %b\r\nETag: %b\r\n%b\r\n" % (
        chosen.status,
        _PHRASES[chosen.status],
        show_date(now),
        _describe(chosen, mark.size, name),
        show_date(modified),
        tag,
        exchange.persistence(),
    )
    return chosen, exchange.generation.forwarder.dress_answer(head)


def _describe(chosen: Selection, size: int, name: bytes) -> bytes:
    """The lines that tell what the body is; none with 304."""
    if chosen.status == 304:
        return b""
    lines = b"Content-Type: %b\r\nContent-Length: %d\r\n" % (find_type(name), chosen.length)
    if chosen.status == 206:
        last = chosen.start + chosen.length - 1
        lines += b"Content-Range: bytes %d-%d/%d\r\n" % (chosen.start, last, size)
    return lines + b"Accept-Ranges: bytes\r\n"
