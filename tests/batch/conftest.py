"""Fixtures of the batch tests."""

from __future__ import annotations

from tests.program import invoke

__all__ = ["invoke"]
