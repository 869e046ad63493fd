"""All who are connected: what becomes of a client, and who makes room."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from atlas_pkg.net.stream import Stream
from atlas_pkg.serving.client import ABORT, CLOSE, FINISH, PARK, TAKEN, Client
from atlas_pkg.serving.clients import LINGER, Clients
from tests.serving.client_support import LATER, Ends, is_open

NOW = 1000.0


def wait_for_input(client: Client) -> None:
    client.stream.wait_until_readable(20.0)


def test_clients_are_counted(ends: Ends) -> None:
    clients, made = ends.clients, [ends.make()[0] for _ in range(3)]
    assert len(clients) == 3

    clients.close(made[0])
    clients.close(made[0])  # twice is once

    assert len(clients) == 2
    assert not is_open(made[0])


def test_one_that_may_say_more_waits_at_its_lane(ends: Ends) -> None:
    client, _ = ends.make()

    assert ends.clients.put_away(client, PARK) is PARK

    assert ends.lane.parked == [client]
    assert is_open(client)


def test_without_a_lane_whoever_serves_one_sees_to_its_waiting(ends: Ends) -> None:
    client, _ = ends.make(has_lane=False)

    assert ends.clients.put_away(client, PARK) is PARK

    assert is_open(client)
    assert not ends.clients.parked


def test_one_that_is_closed_reads_the_end_of_input(ends: Ends) -> None:
    client, theirs = ends.make()
    client.stream.send(b"last answer", 20.0)

    assert ends.clients.put_away(client, CLOSE) is TAKEN

    assert theirs.recv(99) == b"last answer"
    assert theirs.recv(99) == b""
    assert len(ends.clients) == 0


def test_one_that_is_aborted_cannot_take_what_was_sent_for_complete() -> None:
    clients = Clients()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), 20)
        ours, _ = listener.accept()
    client = Ends.wrap(ours, clients)

    assert clients.put_away(client, ABORT) is TAKEN

    with theirs, pytest.raises(ConnectionResetError):
        theirs.recv(1)
    assert len(clients) == 0


def test_one_that_somebody_else_serves_is_left_alone(ends: Ends) -> None:
    client, _ = ends.make()

    assert ends.clients.put_away(client, TAKEN) is TAKEN

    assert is_open(client)
    assert len(ends.clients) == 1
    assert ends.lane.parked == []


def test_one_that_is_done_and_silent_is_closed_at_once(ends: Ends) -> None:
    client, theirs = ends.make()

    assert ends.clients.put_away(client, FINISH) is TAKEN

    assert not is_open(client)
    assert theirs.recv(1) == b""


@pytest.mark.parametrize("sign", ["was sending", "has sent more", "had sent more"])
def test_one_that_may_be_sending_reads_its_last_answer_first(sign: str, ends: Ends) -> None:
    client, theirs = ends.make()
    client.stream.send(b"413", 20.0)
    if sign == "was sending":
        client.is_sending = True
    elif sign == "had sent more":
        client.stream.buffered = b"rest of a body"
    else:
        theirs.send(b"rest of a body")
        wait_for_input(client)

    assert ends.clients.put_away(client, FINISH) is PARK

    assert theirs.recv(99) == b"413"
    assert theirs.recv(99) == b""  # our half is closed,
    theirs.send(b"more and more")  # and theirs may still be used
    assert is_open(client)
    assert ends.lane.parked == [client]
    assert client.is_lingering
    assert 0 < client.deadline - time.monotonic() <= LINGER


def test_a_lingering_client_has_longer_while_it_sends(ends: Ends) -> None:
    client, theirs = ends.make(time.monotonic() + 0.5)
    client.is_lingering = True
    client.linger_until, client.linger_bytes = time.monotonic() + 20, 100
    theirs.send(b"x")
    wait_for_input(client)

    assert ends.clients.throw_away_input(client) is PARK
    assert client.deadline > time.monotonic() + 0.5

    client.linger_until = time.monotonic() + 1  # in all, whatever it sends
    theirs.send(b"x")
    wait_for_input(client)
    assert ends.clients.throw_away_input(client) is PARK
    assert client.deadline == client.linger_until

    theirs.send(b"x" * 99)  # and no more than that
    wait_for_input(client)
    assert ends.clients.throw_away_input(client) is CLOSE


def test_a_lingering_client_does_not_hold_up_a_drain(ends: Ends) -> None:
    client, theirs = ends.make(deadline := time.monotonic() + 5)
    client.is_lingering = True
    client.linger_until, client.linger_bytes = deadline + 20, 100
    ends.clients.is_draining = True
    theirs.send(b"x")
    wait_for_input(client)

    assert ends.clients.throw_away_input(client) is PARK
    assert client.deadline == deadline


def test_what_a_lingering_client_sends_is_thrown_away_until_it_closes(ends: Ends) -> None:
    client, theirs = ends.make(time.monotonic() + 20)
    client.is_lingering = True
    client.linger_until, client.linger_bytes = time.monotonic() + 20, 30_000
    for _ in range(3):
        theirs.send(b"x" * 10_000)
        wait_for_input(client)
        assert ends.clients.throw_away_input(client) is PARK
    assert client.stream.buffered == b""

    theirs.close()
    wait_for_input(client)

    assert ends.clients.throw_away_input(client) is CLOSE


def test_a_lingering_client_that_does_not_end_is_closed_in_time(ends: Ends) -> None:
    client, theirs = ends.make(time.monotonic() - 0.001)
    client.is_lingering = True
    theirs.send(b"x")

    assert ends.clients.throw_away_input(client) is CLOSE


def test_one_turn_of_a_lingering_client_is_bounded(ends: Ends) -> None:
    client, theirs = ends.make(time.monotonic() + 20)
    client.is_lingering = True
    client.linger_until, client.linger_bytes = client.deadline, 1 << 30
    is_over = threading.Event()

    def flood() -> None:
        theirs.settimeout(0.05)
        while not is_over.is_set():
            try:
                theirs.send(b"x" * 100_000)
            except OSError:
                continue

    flooding = threading.Thread(target=flood)
    flooding.start()
    for _ in range(20):
        assert ends.clients.throw_away_input(client) is PARK
    is_over.set()
    flooding.join(20)


def park(ends: Ends, *deadlines: float, has_lane: bool = True) -> list[Client]:
    made = [ends.make(deadline, has_lane=has_lane)[0] for deadline in deadlines]
    for client in made:
        ends.clients.parked[client.stream.fd] = client
    return made


def test_only_those_are_taken_that_have_waited_too_long(ends: Ends) -> None:
    late, later, in_time = park(ends, NOW - 1, NOW, NOW + 1)

    assert list(ends.clients.take_expired(NOW)) == [late, later]

    assert list(ends.clients.parked.values()) == [in_time]


def test_one_that_has_come_in_the_place_of_another_meanwhile_is_spared(ends: Ends) -> None:
    # Between the look and the taking one has left, and a new one has got its descriptor.
    first, second = park(ends, NOW - 1, NOW - 1)
    newcomer, _ = ends.make()
    taken = []
    for client in ends.clients.take_expired(NOW):
        taken.append(client)
        ends.clients.parked[second.stream.fd] = newcomer

    assert taken == [first]
    assert ends.lane.parked == [newcomer]


def test_one_that_somebody_else_has_taken_is_not_taken_twice(ends: Ends) -> None:
    first, second = park(ends, NOW - 1, NOW - 1)
    taken = []
    for client in ends.clients.take_expired(NOW):
        taken.append(client)
        ends.clients.parked.pop(second.stream.fd, None)

    assert taken == [first]


def test_the_longest_waiting_make_room_first(ends: Ends) -> None:
    oldest, older, newest = park(ends, LATER, LATER, LATER)

    assert ends.clients.dismiss_idle(2) == 2

    assert [is_open(client) for client in (oldest, older, newest)] == [False, False, True]
    assert len(ends.clients) == 1


def test_whoever_is_saying_something_need_not_make_room(ends: Ends) -> None:
    halfway, lingering, speaking, idle = park(ends, LATER, LATER, LATER, LATER)
    halfway.head_since, lingering.is_lingering = NOW, True
    speaking.stream.buffered = b""
    ends.peer(speaking).send(b"GET / HTTP/1.1\r\n\r\n")
    wait_for_input(speaking)

    assert ends.clients.dismiss_idle(4) == 1

    assert not is_open(idle)
    assert all(is_open(client) for client in (halfway, lingering, speaking))
    assert ends.clients.parked.keys() == {
        client.stream.fd for client in (halfway, lingering, speaking)
    }


def test_whoever_has_only_just_come_has_time_for_a_first_word(ends: Ends) -> None:
    now = time.monotonic()
    came_long_ago, just_came, just_answered = park(ends, now + 60, now + 75, now + 75)
    just_answered.requests = 1

    assert ends.clients.dismiss_idle(3, came_by=now - 5) == 2

    assert [is_open(each) for each in (came_long_ago, just_came, just_answered)] == [
        False,
        True,
        False,
    ]
    assert ends.clients.dismiss_idle(3) == 1  # where somebody else wants the room


def test_without_a_lane_its_own_thread_closes_the_one_that_makes_room(ends: Ends) -> None:
    (client,) = park(ends, LATER, has_lane=False)
    received: list[bytes] = []
    waiting = threading.Thread(target=lambda: received.append(client.stream.receive(20.0)))
    waiting.start()

    assert ends.clients.dismiss_idle(1) == 1

    waiting.join(20)
    assert received == [b""]
    assert is_open(client)  # to be closed by its thread


def test_without_a_lane_one_whose_head_is_just_being_read_need_not_make_room(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    (client,) = park(ends, LATER, has_lane=False)

    def look(_: Stream) -> bool:
        ends.clients.parked.clear()  # its thread has taken it meanwhile, with all that it has said
        return True

    monkeypatch.setattr(Stream, "is_silent", look)
    assert ends.clients.dismiss_idle(1) == 0

    assert not client.stream.has_ended()


def test_there_is_room_below_the_limit(ends: Ends) -> None:
    ends.make()

    assert ends.clients.wait_until_below(2, 0)
    assert not ends.clients.wait_until_below(1, 0)


def test_waiting_for_room_ends_when_one_leaves(ends: Ends) -> None:
    made = [ends.make()[0] for _ in range(3)]
    seen: list[bool] = []
    waiting = threading.Thread(target=lambda: seen.append(ends.clients.wait_until_below(3, 20)))
    waiting.start()

    ends.clients.close(made[1])
    waiting.join(20)

    assert seen == [True]


def test_cutting_wakes_whoever_reads_and_leaves_closing_to_the_owner(ends: Ends) -> None:
    made = [ends.make()[0] for _ in range(3)]
    received: list[bytes] = []
    reading = threading.Thread(target=lambda: received.append(made[0].stream.receive(20.0)))
    reading.start()

    assert ends.clients.cut() == 3

    reading.join(20)
    assert received == [b""]
    assert all(is_open(client) for client in made)
    assert ends.clients.is_cut
