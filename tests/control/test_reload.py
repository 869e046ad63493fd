"""The watcher of the configuration file, on real files and real events.

Nothing here sleeps and hopes: a test waits for a delivery or for a line in the log, each with a
deadline. "Nothing was delivered" is asserted after the log has said that the file was looked at.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from watchdog.events import FileSystemEvent

from atlas_pkg.control import watch as watch_module
from atlas_pkg.control.reload import Burst, ConfigWatcher
from atlas_pkg.control.watch import trace_path

DEADLINE = 15.0  # for what should take milliseconds; never waited out in a passing run
NEVER = 600.0  # a poll interval no test lives to see: what arrives was brought by an event


class Receiver:
    """Takes what the watcher hands over."""

    def __init__(self) -> None:
        self.received: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def __call__(self, data: bytes) -> None:
        self.received.put(data)

    def next(self) -> bytes:
        return self.received.get(timeout=DEADLINE)

    def is_empty(self) -> bool:
        return self.received.empty()


class Lines(logging.Handler):
    """The watcher's log, to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self._records.put(record)

    def wait_for(self, words: str) -> logging.LogRecord:
        """Skip to the next line that contains `words`."""
        deadline = time.monotonic() + DEADLINE
        while True:
            record = self._records.get(timeout=max(0.0, deadline - time.monotonic()))
            if words in record.getMessage():
                return record

    def rest(self) -> list[str]:
        """Take the lines that nobody has waited for."""
        lines = []
        while not self._records.empty():
            lines.append(self._records.get().getMessage())
        return lines


Watch = Callable[..., ConfigWatcher]


@pytest.fixture
def lines() -> Iterator[Lines]:
    logger = logging.getLogger("atlas.reload")
    handler, level = Lines(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "atlas.toml"
    path.parent.mkdir()
    path.write_bytes(b"one")
    return path


@pytest.fixture
def watch(receiver: Receiver, lines: Lines) -> Iterator[Watch]:
    """Start a watcher of a file that holds `one`, and wait until it has taken its first look."""
    started: list[ConfigWatcher] = []

    def start(
        path: Path,
        on_change: Callable[[bytes], None] = receiver,
        *,
        debounce: float = 0.05,
        poll_interval: float = NEVER,
    ) -> ConfigWatcher:
        watcher = ConfigWatcher(
            path, on_change, seen=b"one", debounce=debounce, poll_interval=poll_interval
        )
        started.append(watcher)
        watcher.start()
        lines.wait_for("unchanged")
        return watcher

    yield start
    for watcher in started:
        watcher.stop()


def write_in_place(path: Path, data: bytes) -> None:
    """Overwrite with `data`, which is no shorter than the old; nobody sees a state between."""
    with path.open("r+b", buffering=0) as file:
        file.write(data)


def rename_over(path: Path, data: bytes) -> None:
    """Save as careful editors do: a new file, renamed over the old one, if there is one."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    new.replace(path)


def publish(volume: Path, version: str, data: bytes) -> None:
    """Swap the contents of a mounted volume the way Kubernetes does."""
    (volume / version).mkdir()
    (volume / version / "atlas.toml").write_bytes(data)
    (volume / "..data_tmp").symlink_to(version)
    (volume / "..data_tmp").replace(volume / "..data")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A mounted ConfigMap whose atlas.toml holds `one`."""
    path = tmp_path / "volume"
    path.mkdir()
    publish(path, "..version1", b"one")
    (path / "atlas.toml").symlink_to("..data/atlas.toml")
    return path


def test_in_place_write_is_delivered(config: Path, watch: Watch, receiver: Receiver) -> None:
    watch(config)

    write_in_place(config, b"two")

    assert receiver.next() == b"two"


def test_append_is_delivered(config: Path, watch: Watch, receiver: Receiver) -> None:
    watch(config)

    with config.open("ab") as file:
        file.write(b" and more")

    assert receiver.next() == b"one and more"


def test_rename_over_the_file_is_delivered_again_and_again(
    config: Path, watch: Watch, receiver: Receiver
) -> None:
    watch(config)

    for data in (b"two", b"three", b"four"):
        rename_over(config, data)
        assert receiver.next() == data
    write_in_place(config, b"five")
    assert receiver.next() == b"five"


def test_kubernetes_symlink_swap_is_delivered_again_and_again(
    volume: Path, watch: Watch, receiver: Receiver
) -> None:
    watch(volume / "atlas.toml")

    publish(volume, "..version2", b"two")
    assert receiver.next() == b"two"
    shutil.rmtree(volume / "..version1")
    publish(volume, "..version3", b"three")
    assert receiver.next() == b"three"


def test_write_behind_a_swapped_symlink_is_delivered(
    volume: Path, watch: Watch, receiver: Receiver
) -> None:
    watch(volume / "atlas.toml")
    publish(volume, "..version2", b"two")
    receiver.next()

    write_in_place(volume / "..version2" / "atlas.toml", b"edited")

    assert receiver.next() == b"edited"


def test_swap_to_equal_content_is_delivered_since_files_beside_it_may_differ(
    volume: Path, watch: Watch, receiver: Receiver
) -> None:
    watch(volume / "atlas.toml")

    publish(volume, "..version2", b"one")

    assert receiver.next() == b"one"


def test_swapped_directory_link_above_the_file_is_delivered(
    tmp_path: Path, config: Path, watch: Watch, receiver: Receiver
) -> None:
    (tmp_path / "current").symlink_to(config.parent)
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "atlas.toml").write_bytes(b"two")
    watch(tmp_path / "current" / "atlas.toml")

    (tmp_path / "new").symlink_to("next")
    (tmp_path / "new").replace(tmp_path / "current")

    assert receiver.next() == b"two"


def test_deleted_file_is_reported_once_and_its_return_noticed(
    config: Path, watch: Watch, receiver: Receiver, lines: Lines
) -> None:
    watch(config, poll_interval=0.1)

    config.unlink()
    record = lines.wait_for("cannot be read")
    assert record.levelno == logging.WARNING
    assert "No such file" in record.getMessage()
    rename_over(config, b"two")

    assert receiver.next() == b"two"
    assert [line for line in lines.rest() if "cannot be read" in line] == []


def test_return_of_equal_content_is_not_delivered(
    config: Path, watch: Watch, receiver: Receiver, lines: Lines
) -> None:
    watch(config)
    config.unlink()
    lines.wait_for("cannot be read")

    rename_over(config, b"one")

    lines.wait_for("can be read again")
    lines.wait_for("unchanged")
    assert receiver.is_empty()


def test_directory_made_anew_is_watched_anew(
    config: Path, watch: Watch, receiver: Receiver, lines: Lines
) -> None:
    watch(config)

    shutil.rmtree(config.parent)
    lines.wait_for("cannot be read")
    config.parent.mkdir()
    rename_over(config, b"two")
    assert receiver.next() == b"two"
    write_in_place(config, b"three")

    assert receiver.next() == b"three"


def test_directory_replaced_in_a_moment_is_watched_anew(
    config: Path, watch: Watch, receiver: Receiver
) -> None:
    watch(config)

    # Often the same inode number is given out again at once.
    shutil.rmtree(config.parent)
    config.parent.mkdir()
    rename_over(config, b"two")
    assert receiver.next() == b"two"
    write_in_place(config, b"three")

    assert receiver.next() == b"three"


def test_directory_renamed_away_is_noticed_by_the_poll(
    config: Path, watch: Watch, receiver: Receiver
) -> None:
    watch(config, poll_interval=0.1)

    config.parent.rename(config.parent.with_name("old"))
    config.parent.mkdir()
    rename_over(config, b"two")

    assert receiver.next() == b"two"


def test_directory_put_in_place_of_another_is_watched_once_it_is_known(
    config: Path, watch: Watch, receiver: Receiver
) -> None:
    watcher = watch(config)
    config.parent.rename(config.parent.with_name("old"))
    config.parent.mkdir()
    rename_over(config, b"two")
    watcher.trigger()
    assert receiver.next() == b"two"

    write_in_place(config, b"three")

    assert receiver.next() == b"three"


def test_burst_of_writes_makes_one_call(config: Path, watch: Watch, receiver: Receiver) -> None:
    watcher = watch(config, debounce=1.0)

    began = time.monotonic()
    for number in range(50):
        config.write_bytes(b"")
        config.write_bytes(b"half")
        config.write_bytes(b"version %d" % number)
    took = time.monotonic() - began

    received = [receiver.next()]
    while received[-1] != b"version 49":
        received.append(receiver.next())
    watcher.stop()
    assert receiver.is_empty()
    # Unless the machine has stopped us in the middle of it.
    assert received == [b"version 49"] or took > 0.5


def test_empty_file_is_delivered_as_it_is(config: Path, watch: Watch, receiver: Receiver) -> None:
    watch(config)

    config.write_bytes(b"")

    assert receiver.next() == b""


def test_unchanged_rewrite_is_not_delivered(
    config: Path, watch: Watch, receiver: Receiver, lines: Lines
) -> None:
    watch(config)

    write_in_place(config, b"one")
    lines.wait_for("unchanged")
    rename_over(config, b"one")
    lines.wait_for("unchanged")

    assert receiver.is_empty()


def test_our_own_reading_causes_no_further_look(
    config: Path, watch: Watch, receiver: Receiver, lines: Lines
) -> None:
    watcher = watch(config, debounce=0.0)

    # Had each look caused the next, these five would drown in others.
    for _ in range(5):
        watcher.trigger()
        assert receiver.next() == b"one"
    watcher.stop()

    assert lines.rest() == []


def test_what_happens_beside_the_file_causes_no_look(
    config: Path, watch: Watch, receiver: Receiver, lines: Lines
) -> None:
    watch(config, debounce=0.0)
    log = config.with_name("access.log")

    for number in range(20):
        with log.open("a") as file:
            file.write(f"request {number}\n")
    log.rename(log.with_suffix(".1"))
    log.with_suffix(".1").unlink()
    # The kernel keeps the order: once this has arrived, all of the above has been passed over.
    rename_over(config, b"two")

    assert receiver.next() == b"two"
    assert lines.rest() == []


def test_trigger_delivers_unchanged_content(config: Path, watch: Watch, receiver: Receiver) -> None:
    watcher = watch(config)

    watcher.trigger()

    assert receiver.next() == b"one"


def test_trigger_does_not_wait_for_quiet(config: Path, receiver: Receiver) -> None:
    watcher = ConfigWatcher(config, receiver, seen=b"one", debounce=NEVER, poll_interval=NEVER)
    watcher.start()
    write_in_place(config, b"two")

    watcher.trigger()

    assert receiver.next() == b"two"
    watcher.stop()


def test_trigger_reports_a_missing_file_every_time(
    config: Path, watch: Watch, receiver: Receiver, lines: Lines
) -> None:
    watcher = watch(config)
    config.unlink()
    lines.wait_for("cannot be read")

    watcher.trigger()

    lines.wait_for("cannot be read")
    assert receiver.is_empty()


def test_the_watcher_is_not_even_told_of_files_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: queue.SimpleQueue[FileSystemEvent] = queue.SimpleQueue()
    monkeypatch.setattr(watch_module._Ear, "on_any_event", lambda _, event: told.put(event))
    page, last = tmp_path / "page.html", tmp_path / "last"
    page.write_text("served from beside the configuration")
    watch = watch_module.Watch(lambda: None)
    watch.open()
    watch.follow({tmp_path / "atlas.toml"})

    for _ in range(100):
        page.read_text()
    last.touch()
    events = [told.get(timeout=DEADLINE)]
    while events[-1].src_path != str(last):
        events.append(told.get(timeout=DEADLINE))
    watch.close()

    assert [event for event in events if event.src_path == str(page)] == []


def test_pipe_in_place_of_the_file_is_reported_and_not_opened(
    config: Path, watch: Watch, lines: Lines
) -> None:
    watch(config)
    config.unlink()

    os.mkfifo(config)

    lines.wait_for("not a regular file")


def test_change_arrives_while_the_file_is_never_left_alone(
    config: Path, watch: Watch, receiver: Receiver
) -> None:
    watch(config, debounce=1.0, poll_interval=1.2)
    over = threading.Event()

    def make_noise() -> None:
        while not over.wait(0.01):
            config.touch()

    noise = threading.Thread(target=make_noise, name="noise")
    noise.start()
    try:
        write_in_place(config, b"two")
        assert receiver.next() == b"two"
    finally:
        over.set()
        noise.join()


def test_change_made_before_the_start_is_delivered(config: Path, receiver: Receiver) -> None:
    write_in_place(config, b"two")
    watcher = ConfigWatcher(config, receiver, seen=b"one", poll_interval=NEVER)

    watcher.start()

    assert receiver.next() == b"two"
    watcher.stop()


def test_relative_path_outlives_a_change_of_directory(
    config: Path, watch: Watch, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    watch(Path("atlas.toml"))
    monkeypatch.chdir("/")

    write_in_place(config, b"two")

    assert receiver.next() == b"two"


def test_poll_does_alone_where_the_system_refuses_to_watch(
    config: Path,
    watch: Watch,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> NoReturn:
        raise OSError(errno.EMFILE, "inotify instance limit reached")

    monkeypatch.setattr(watch_module, "Observer", refuse)

    watch(config, poll_interval=0.1)
    for data in (b"number two", b"number three"):
        write_in_place(config, data)
        assert receiver.next() == data


def test_refusal_to_watch_is_logged_once(
    config: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> NoReturn:
        raise OSError(errno.EMFILE, "inotify instance limit reached")

    monkeypatch.setattr(watch_module, "Observer", refuse)
    watcher = ConfigWatcher(config, Receiver(), seen=b"one", debounce=0.0, poll_interval=0.02)

    watcher.start()
    assert lines.wait_for("cannot watch").levelno == logging.WARNING
    for _ in range(3):
        rename_over(config, b"one")
        lines.wait_for("unchanged")
    watcher.stop()

    assert [line for line in lines.rest() if "cannot watch" in line] == []


def test_failing_receiver_is_logged_and_does_not_end_the_watching(
    config: Path, watch: Watch, lines: Lines
) -> None:
    received: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def fail(data: bytes) -> None:
        received.put(data)
        raise ValueError(data.decode())

    watch(config, fail)

    write_in_place(config, b"two")
    record = lines.wait_for("taking over the configuration failed")
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
    write_in_place(config, b"three")
    lines.wait_for("taking over the configuration failed")

    assert [received.get(timeout=DEADLINE), received.get(timeout=DEADLINE)] == [b"two", b"three"]


def test_calls_come_one_at_a_time_from_the_named_thread(config: Path, watch: Watch) -> None:
    calls: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    running: list[bytes] = []
    may_end = threading.Event()

    def receive(data: bytes) -> None:
        running.append(data)
        may_end.wait(DEADLINE)
        calls.put((threading.current_thread().name, len(running)))
        running.remove(data)

    watcher = watch(config, receive)

    for _ in range(3):
        watcher.trigger()
    may_end.set()

    assert [calls.get(timeout=DEADLINE) for _ in range(3)] == [("atlas-reload", 1)] * 3


def test_stop_is_prompt_and_leaves_no_thread(config: Path, receiver: Receiver) -> None:
    before = set(threading.enumerate())
    watcher = ConfigWatcher(config, receiver, seen=b"one", debounce=NEVER, poll_interval=NEVER)
    watcher.start()
    watcher.trigger()
    receiver.next()

    watcher.stop()

    assert set(threading.enumerate()) <= before


def test_stop_may_come_twice_or_without_a_start(config: Path, receiver: Receiver) -> None:
    ConfigWatcher(config, receiver, seen=b"one").stop()
    watcher = ConfigWatcher(config, receiver, seen=b"one")
    watcher.start()

    watcher.stop()
    watcher.stop()

    assert receiver.is_empty()


def test_stop_may_be_called_by_the_receiver(config: Path) -> None:
    done = threading.Event()

    def receive(_data: bytes) -> None:
        watcher.stop()
        done.set()

    watcher = ConfigWatcher(config, receive, seen=b"one")
    watcher.start()
    watcher.trigger()

    assert done.wait(DEADLINE)


def test_burst_is_due_when_it_has_been_quiet() -> None:
    burst = Burst(quiet=0.2, limit=2.0)

    burst.note(10.0)
    burst.note(10.1)

    assert burst.due() == pytest.approx(10.3)


def test_burst_is_due_at_its_limit_however_loud_it_is() -> None:
    burst = Burst(quiet=0.2, limit=2.0)

    for tenth in range(100):
        burst.note(10.0 + tenth / 10)

    assert burst.due() == pytest.approx(12.0)


def test_burst_is_not_due_without_an_event() -> None:
    burst = Burst(quiet=0.2, limit=2.0)
    assert burst.due() is None

    burst.note(10.0)
    burst.clear()

    assert burst.due() is None


def test_trace_names_every_link_on_the_way(tmp_path: Path) -> None:
    tmp_path = tmp_path.resolve()
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "c" / "real.toml").touch()
    (tmp_path / "b" / "middle.toml").symlink_to(tmp_path / "c" / "real.toml")
    (tmp_path / "a" / "atlas.toml").symlink_to("../b/middle.toml")

    end, found = trace_path(tmp_path / "a" / "atlas.toml")

    assert end == tmp_path / "c" / "real.toml"
    assert found == {
        tmp_path / "a" / "atlas.toml",
        tmp_path / "b" / "middle.toml",
        tmp_path / "c" / "real.toml",
    }


def test_trace_into_a_missing_directory_names_what_must_appear_first(tmp_path: Path) -> None:
    tmp_path = tmp_path.resolve()

    end, found = trace_path(tmp_path / "no" / "such" / "atlas.toml")

    assert end == tmp_path / "no" / "such" / "atlas.toml"
    assert found == {tmp_path / "no"}


def test_trace_of_a_loop_ends(tmp_path: Path) -> None:
    tmp_path = tmp_path.resolve()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    _, found = trace_path(tmp_path / "a")

    assert tmp_path / "a" in found
