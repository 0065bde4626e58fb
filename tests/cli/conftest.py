"""Fixtures of the command line's tests."""

from __future__ import annotations

from tests.program import invoke

__all__ = ["invoke"]
