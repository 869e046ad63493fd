"""What tests of clients have in common."""

from __future__ import annotations

from tests.serving.client_support import ends

__all__ = ["ends"]
