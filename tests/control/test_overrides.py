"""What an administrator has said: of upstreams, and what is to be explained."""

from __future__ import annotations

from atlas_pkg.balancing.upstream import AdminState
from atlas_pkg.control.overrides import (
    NO_OVERRIDES,
    Change,
    Explain,
    Override,
    Overrides,
    OverridesHolder,
    decode,
    encode,
)
from atlas_pkg.observing.tracer import Asking

A = ("a", "192.0.2.1", 80, "default")
B = ("b", "192.0.2.2", 80, "default")


def test_at_first_nothing_is_said() -> None:
    assert OverridesHolder().current() == NO_OVERRIDES == (0, {}, Explain())


def test_upstreams_and_explanations_do_not_disturb_each_other() -> None:
    holder = OverridesHolder()

    holder.change(A, Change(AdminState.DRAIN, 5))
    holder.ask(Asking(one_in=10))
    holder.change(A, Change(resets_weight=True))

    assert holder.current() == Overrides(
        3, {A: Override(AdminState.DRAIN, None)}, Explain(10, "", 0)
    )


def test_an_upstream_that_is_again_as_configured_is_forgotten() -> None:
    holder = OverridesHolder()
    holder.change(A, Change(AdminState.DRAIN, 5))

    holder.change(A, Change(AdminState.READY, resets_weight=True))

    assert holder.current().upstreams == {}


def test_each_order_for_a_client_counts_once_more() -> None:
    holder = OverridesHolder()
    holder.ask(Asking(next_from="192.0.2.7"))
    holder.ask(Asking(one_in=5))
    first = holder.current()
    holder.ask(Asking(next_from="192.0.2.7"))

    assert first.explain == Explain(5, "192.0.2.7", 1)
    assert holder.current().explain == Explain(5, "192.0.2.7", 2)


def test_what_was_handed_out_does_not_change() -> None:
    holder = OverridesHolder()
    holder.change(A, Change(AdminState.DRAIN))
    before = holder.current()

    holder.change(B, Change(weight=3))

    assert list(before.upstreams) == [A]


def test_another_process_reads_what_was_said() -> None:
    holder = OverridesHolder()
    holder.change(A, Change(AdminState.MAINTENANCE, 0))
    holder.ask(Asking(1, "192.0.2.7"))

    assert decode(encode(holder.current())) == holder.current()
