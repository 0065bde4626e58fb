"""Numbers as people read them, and text that cannot act on a terminal."""

from __future__ import annotations

import math

import pytest

from holitom_cli.report import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.0 ms"),
        (0.0123, "12.3 ms"),
        (0.99994, "999.9 ms"),
        (0.99996, "1.0 s"),  # not 1000.0 ms
        (1.23, "1.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1:00 min"),  # not 60.0 s
        (83.4, "1:23 min"),
        (3599.6, "1:00:00 h"),
        (math.nan, "unknown"),
        (math.inf, "unknown"),
    ],
)
def test_seconds(value: float, shown: str) -> None:
    assert text.seconds(value) == shown
    assert text.milliseconds(value * 1000) == shown


def test_a_time_that_was_not_measured_is_unknown() -> None:
    assert text.milliseconds(None) == "unknown"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (512, "512 B"),
        (1024, "1.0 KiB"),
        (15_998_753_178, "14.9 GiB"),
        (1024**3 - 1, "1.0 GiB"),
        (5000 * 1024**4, "5,000.0 TiB"),
    ],
)
def test_size(value: int, shown: str) -> None:
    assert text.size(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(3.4e12, "3.4 TFLOP"), (999.96e9, "1.0 TFLOP"), (12.0, "12.0 FLOP")])
def test_flop(value: float, shown: str) -> None:
    assert text.flop(value) == shown


def test_count_and_percent() -> None:
    assert (text.count(1234), text.percent(952 / 6272)) == ("1,234", "15.2%")


def test_times() -> None:
    assert text.times(290.0, 127.2) == "2.28x"
    assert text.times(None, 2.0) == text.times(2.0, None) == text.times(2.0, 0.0) == "n/a"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("\x9b31m", "\\x9b31m"),  # one-byte form of ESC [
        ("gpj.\u202e4pm", "gpj.\\u202e4pm"),
        ("bad\udcff", "bad\\udcff"),
        ("Où est l'œuf ? 卵はどこ 🥚 [b]", "Où est l'œuf ? 卵はどこ 🥚 [b]"),
    ],
)
def test_visible(raw: str, shown: str) -> None:
    assert text.visible(raw) == shown


@pytest.mark.parametrize(("number", "shown"), [(0, "0 tokens"), (1, "1 token"), (1234, "1,234 tokens")])
def test_counted(number: int, shown: str) -> None:
    assert text.counted(number, "token") == shown
