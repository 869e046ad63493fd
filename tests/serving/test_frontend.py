"""Whether a frontend serves, for those who replace one that does not."""

from __future__ import annotations

from atlas_pkg.serving.frontend import STUCK
from tests.serving.lane_support import Scene


def test_a_lane_that_does_not_come_round_is_noticed() -> None:
    scene = Scene()
    try:
        assert scene._frontend.is_serving()

        scene.lane.swept_at -= STUCK

        assert not scene._frontend.is_serving()
    finally:
        scene.close()
