"""Numbers as people read them, and foreign text that cannot act on the terminal."""

from __future__ import annotations

import math
import re

UNKNOWN = "unknown"

# Control characters move the cursor or start escape sequences, bidirectional marks reorder what
# stands beside them, and lone surrogates (undecodable file names) cannot be written at all.
_ACTIVE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return `text` on one line with every character that would act on a terminal escaped."""
    return _ACTIVE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def count(number: int) -> str:
    """1234 -> 1,234."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """(1, "token") -> 1 token, (1234, "token") -> 1,234 tokens."""
    return f"{count(number)} {noun}" + ("" if number == 1 else "s")


def percent(share: float) -> str:
    """0.152 -> 15.2%."""
    return f"{share:.1%}"


def budget(value: float | str) -> str:
    """15 -> 15%, "940t" -> 940 tokens."""
    return counted(int(value[:-1]), "token") if isinstance(value, str) else f"{value:g}%"


def milliseconds(value: float | None) -> str:
    """12.34 -> 12.3 ms, 1234 -> 1.2 s."""
    return UNKNOWN if value is None else seconds(value / 1000)


def seconds(value: float) -> str:
    """0.798 -> 798.0 ms, 1.23 -> 1.2 s, 83 -> 1:23 min, 3725 -> 1:02:05 h."""
    if not math.isfinite(value):
        return UNKNOWN
    if round(value, 1) < 60:
        return f"{value:.1f} s" if round(value, 4) >= 1 else f"{1000 * value:.1f} ms"
    return f"{clock(value)} {'min' if round(value) < 3600 else 'h'}"


def clock(value: float) -> str:
    """Seconds as minutes or hours: 83 -> 1:23, 3725 -> 1:02:05."""
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def moment(value: float) -> str:
    """A time in a clip: 4.08 -> 4.1 s, 83 -> 1:23."""
    return f"{value:.1f} s" if round(value, 1) < 60 else clock(value)


def size(value: int) -> str:
    """Bytes: 15998753178 -> 14.9 GiB."""
    return f"{value} B" if value < 1024 else _scaled(value / 1024, 1024, ("KiB", "MiB", "GiB", "TiB"))


def flop(value: float) -> str:
    """Floating-point operations: 3.4e12 -> 3.4 TFLOP."""
    return _scaled(value, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    """Return `value` in the first unit that leaves fewer than `base` of it, the last one at most."""
    for unit in units[:-1]:
        if round(value, 1) < base:
            return f"{value:.1f} {unit}"
        value /= base
    return f"{value:,.1f} {units[-1]}"


def times(more: float | None, less: float | None) -> str:
    """How many times `less` goes into `more`: (290, 127) -> 2.28x; n/a where one is not known."""
    return f"{more / less:.2f}x" if more and less else "n/a"
