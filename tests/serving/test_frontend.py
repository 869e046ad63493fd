"""Whether a frontend serves, for those who replace one that does not, and whatever happens."""

from __future__ import annotations

import pytest

from atlas_pkg.serving.client import Client
from atlas_pkg.serving.frontend import STUCK
from tests.serving.lane_support import GET, Scene


def test_a_lane_that_does_not_come_round_is_noticed() -> None:
    scene = Scene()
    try:
        assert scene._frontend.is_serving()

        scene.lane.swept_at -= STUCK

        assert not scene._frontend.is_serving()
    finally:
        scene.close()


def test_an_error_of_ours_costs_the_client_that_it_met_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    other = scene.connect()
    try:
        read = scene.lane._http.read

        def fail_once(client: Client) -> object:
            monkeypatch.setattr(scene.lane._http, "read", read)
            raise RuntimeError(client)

        monkeypatch.setattr(scene.lane._http, "read", fail_once)
        scene.client.sendall(GET)
        other.sendall(GET)
        scene.step()

        with pytest.raises(ConnectionResetError):
            scene.client.recv(9)
        assert scene.upstream.recv(65_536).startswith(b"GET /1k HTTP/1.1\r\n")
        assert "serving failed" in caplog.text
    finally:
        other.close()
        scene.close()
