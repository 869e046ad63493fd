"""The queue for those who find everybody full."""

from __future__ import annotations

import threading
import time

import pytest

from atlas_pkg.balancing.balancer import Balancer
from atlas_pkg.balancing.lease import ANYWHERE, Affinity, Lease, Outcome
from atlas_pkg.config.model import CircuitBreaker, UpstreamConfig
from atlas_pkg.errors import ClientGone, NoUpstream
from tests.balancing.samples import Clock, build_config, build_settings
from tests.toolkit import Threads, wait_until


def build(*upstreams: UpstreamConfig, queue: float = 20.0, clock: Clock | None = None) -> Balancer:
    breaker = CircuitBreaker(failures=1, open_for=10.0)
    settings = build_settings(*upstreams, circuit_breaker=breaker, queue=queue)
    return Balancer(settings, clock=clock or time.monotonic)


def full(queue: float = 20.0) -> tuple[Balancer, Lease]:
    """A balancer whose only upstream is full, and the lease that fills it."""
    balancer = build(build_config("a", max_connections=1), queue=queue)
    return balancer, balancer.lease()


def wait_in_line(
    threads: Threads,
    balancer: Balancer,
    affinity: Affinity,
    served: list[str],
    leases: list[Lease] | None = None,
) -> None:
    """Have a thread wait in the queue; it notes the upstream that it is served by."""
    length = balancer.waiting

    def wait() -> Lease:
        lease = balancer.lease(affinity)
        if leases is not None:
            leases.append(lease)
        served.append(f"{affinity.key.decode()}{lease.upstream.name}")
        return lease

    threads.start(wait)
    wait_until(lambda: balancer.waiting == length + 1, "somebody to wait")


# Who waits


def test_the_queue_is_served_in_the_order_of_arrival() -> None:
    balancer, lease = full()
    threads = Threads()
    served: list[str] = []
    leases: list[Lease] = []
    for name in "123456":
        wait_in_line(threads, balancer, Affinity(name.encode()), served, leases)

    for count in range(6):
        assert len(served) == count
        lease.release()
        wait_until(lambda count=count: len(served) == count + 1)  # type: ignore[misc]
        lease = leases[-1]  # the next one's

    assert served == ["1a", "2a", "3a", "4a", "5a", "6a"]
    threads.join()
    lease.release()
    assert balancer.in_flight == 0


def test_nobody_waits_when_nobody_is_available() -> None:
    balancer = build(build_config("a", 0, max_connections=1))

    began = time.monotonic()
    with pytest.raises(NoUpstream):
        balancer.lease()
    assert time.monotonic() - began < 15


def test_nobody_waits_for_those_it_has_tried() -> None:
    balancer, lease = full()

    with pytest.raises(NoUpstream):
        balancer.lease(tried=(lease.upstream,))

    assert not balancer.waiting


def test_waiting_ends_after_a_while() -> None:
    balancer, lease = full(queue=0.2)

    began = time.monotonic()
    with pytest.raises(NoUpstream, match=r"no upstream had room within timeouts\.queue"):
        balancer.lease()

    assert 0.19 < time.monotonic() - began < 15
    assert not balancer.waiting
    lease.release()
    assert balancer.in_flight == 0


def test_waiting_ends_when_the_client_is_gone() -> None:
    balancer, lease = full()
    has_left = threading.Event()
    threads = Threads()

    def wait() -> None:
        with pytest.raises(ClientGone):
            balancer.lease(is_gone=has_left.is_set)

    threads.start(wait)
    wait_until(lambda: balancer.waiting, "somebody to wait")
    has_left.set()
    threads.join()

    assert not balancer.waiting
    lease.release()
    assert balancer.lease().upstream.in_flight == 1


def test_a_sticky_client_waits_for_its_own_and_the_next_is_not_held_up() -> None:
    balancer = build(build_config("a", max_connections=1), build_config("b", max_connections=1))
    a, b = balancer.upstreams
    on_a, on_b = balancer.lease(Affinity(sticky=a)), balancer.lease(Affinity(sticky=b))
    threads = Threads()
    served: list[str] = []
    wait_in_line(threads, balancer, Affinity(b"sticky ", sticky=a), served)
    wait_in_line(threads, balancer, Affinity(b"any "), served)

    on_b.release()
    wait_until(lambda: served == ["any b"])
    on_a.release()
    wait_until(lambda: served == ["any b", "sticky a"])

    threads.join()


def test_when_a_breakers_time_is_up_those_who_wait_come_first() -> None:
    clock = Clock()
    listed = [build_config(name, max_connections=1) for name in "ab"]
    balancer = build(*listed, clock=clock)
    a, b = balancer.upstreams
    balancer.lease(Affinity(sticky=a)).release(Outcome.FAILURE)  # opens the breaker of a
    on_b = balancer.lease()
    assert on_b.upstream is b
    threads = Threads()
    served: list[str] = []
    wait_in_line(threads, balancer, Affinity(b"first "), served)

    clock.now += 10.0
    wait_in_line_behind = threading.Thread(target=lambda: balancer.lease().release(), daemon=True)
    wait_in_line_behind.start()

    wait_until(lambda: served == ["first a"])
    on_b.release()
    wait_in_line_behind.join(20)
    assert not wait_in_line_behind.is_alive()
    for lease in threads.join():
        lease.release()


def test_when_a_breakers_time_is_up_those_who_wait_notice_by_themselves() -> None:
    clock = Clock()
    balancer = build(*(build_config(name, max_connections=1) for name in "ab"), clock=clock)
    balancer.lease(Affinity(sticky=balancer.by_name["a"])).release(Outcome.FAILURE)
    balancer.lease()
    threads = Threads()
    served: list[str] = []
    wait_in_line(threads, balancer, ANYWHERE, served)

    clock.now += 10.0

    wait_until(lambda: served == ["a"])
    threads.join()


def test_the_limit_is_never_exceeded_and_nobody_is_lost() -> None:
    limits = {"a": 3, "b": 1, "c": 2}
    balancer = build(*(build_config(name, max_connections=n) for name, n in limits.items()))
    exceeded: list[str] = []

    def ask() -> int:
        for _ in range(60):
            lease = balancer.lease()
            if lease.upstream.in_flight > limits[lease.upstream.name]:
                exceeded.append(lease.upstream.name)
            lease.release()
        return 60

    threads = Threads()
    for _ in range(64):
        threads.start(ask)

    assert sum(threads.join()) == 64 * 60
    assert exceeded == []
    assert not balancer.waiting
    assert balancer.in_flight == 0


def test_a_long_queue_costs_little() -> None:
    balancer, lease = full()
    threads = Threads()
    served: list[str] = []
    leases: list[Lease] = []
    for _ in range(100):
        wait_in_line(threads, balancer, ANYWHERE, served, leases)

    began = time.process_time()
    with balancer.lock:
        for _ in range(100):
            balancer._queue.serve()
    each = (time.process_time() - began) / 100

    print(f"a look along a queue of 100: {each * 1e6:.0f} µs")
    assert each < 0.02
    for _ in range(100):
        lease.release()
        length = len(served)
        wait_until(lambda length=length: len(served) > length)  # type: ignore[misc]
        lease = leases[-1]
    threads.join()


def test_a_reload_that_brings_room_serves_those_who_wait() -> None:
    balancer, lease = full()
    threads = Threads()
    served: list[str] = []
    wait_in_line(threads, balancer, ANYWHERE, served)

    limited, open_to_all = build_config("a", max_connections=1), build_config("b")
    balancer.apply(build_settings(limited, open_to_all))

    wait_until(lambda: served == ["b"])
    threads.join()
    lease.release()
