"""A client of the admin address, for tests that look at Atlas from outside.

Answers are read by libraries of other makers: `http.client`, and Prometheus's own parser.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.toolkit import DEADLINE, Atlas, wait_until

TOKEN = "an open secret"
ADMIN = {"port": 0, "token": TOKEN}


class AdminClient:
    """Asks the admin address of a running Atlas, on a new connection each time."""

    def __init__(self, atlas: Atlas) -> None:
        self.port = int(atlas.wait_for("admin address").rpartition(":")[2])

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: str | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> tuple[int, str]:
        """Return status and text of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, body, dict(fields or {}))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def steer(self, name: str, body: str, token: str = TOKEN, **fields: str) -> int:
        """Ask for a change and return the status."""
        fields = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/x-www-form-urlencoded",
            **fields,
        }
        return self.ask(f"/-/upstreams/{name}", "POST", body, fields)[0]

    def metrics(self) -> dict[str, float]:
        """Every sample by its name and label values: `atlas_requests_total a 2xx`.

        The group `default` goes without saying.
        """
        status, text = self.ask("/metrics")
        assert status == 200
        return {
            " ".join([sample.name, *_values(sample.labels)]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def stats(self) -> dict[str, Any]:
        status, text = self.ask("/stats.json")
        assert status == 200
        document: dict[str, Any] = json.loads(text)
        return document

    def upstream(self, name: str) -> dict[str, Any]:
        """The row of one upstream."""
        (row,) = (row for row in self.stats()["upstreams"] if row["name"] == name)
        return dict(row)

    def wait_until_ready(self, processes: int = 1) -> None:
        """Wait until all processes say that they are ready."""
        wait_until(lambda: self.ask("/-/ready")[0] == 200, "readiness")
        wait_until(lambda: len(self.stats()["pids"]) == processes, "all processes")


def _values(labels: Mapping[str, str]) -> list[str]:
    return [value for name, value in labels.items() if (name, value) != ("group", "default")]
