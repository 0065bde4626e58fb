"""Budgets of visual tokens, and the settings that many methods have."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from holitom_cli.errors import MethodError

Share = float | str  # of the clip's tokens: a number above 0 and at most 1, or a number of tokens: "940t"


def read_budget(text: str) -> Share:
    """A budget as it is written on the command line: 15 is a share of 0.15, 940t is that many tokens.

    Raises:
        MethodError: it is neither.
    """
    stripped = text.strip()
    try:
        return stripped if tokens_in(stripped) else _percent(stripped)
    except ValueError:
        raise MethodError(
            f"The budget {text!r} is not a percentage above 0 and at most 100, nor a number of tokens.",
            "As in: 15 for 15 percent, or 940t for 940 tokens.",
        ) from None


def _percent(text: str) -> float:
    value = float(text)
    if not 0 < value <= 100:
        raise ValueError(text)
    return value / 100


def tokens_in(share: Share | None) -> int | None:
    """The number of tokens that a share names, None where it is a part of them."""
    named = isinstance(share, str) and re.fullmatch(r"0*([1-9]\d*)t", share)
    return int(named[1]) if named else None


def check_ratio(retain_ratio: Share) -> None:
    """Refuse a share of tokens outside (0, 1], and text that is no number of tokens.

    Raises:
        MethodError: it is.
    """
    if tokens_in(retain_ratio):
        return
    if isinstance(retain_ratio, str):
        raise MethodError(
            f"Setting retain_ratio is {retain_ratio!r}, which is not a share or a number of tokens.",
            "Give a share or a number of tokens: retain_ratio=0.15 or retain_ratio=940t, say.",
        )
    if not 0 < retain_ratio <= 1:
        raise MethodError(
            f"Setting retain_ratio is {retain_ratio}, but has to be above 0 and at most 1.", "Change --retain-ratio."
        )


def share_of(retain_ratio: Share, frames: int, patches: int) -> float:
    """A share as a number, at most 1."""
    tokens = tokens_in(retain_ratio)
    return float(retain_ratio) if tokens is None else min(1.0, tokens / (frames * patches))


def budget(retain_ratio: Share, frames: int, patches: int, rounding: Callable[[float], int] = round) -> int:
    """How many of the clip's tokens a share comes to, at least one; a number of tokens is what it says."""
    tokens = tokens_in(retain_ratio)
    wanted = rounding(float(retain_ratio) * frames * patches) if tokens is None else tokens
    return min(max(1, wanted), frames * patches)


def by_frame(retain_ratio: Share, frames: int, patches: int) -> list[int]:
    """How many tokens each frame keeps where all keep alike: together exactly the budget, one apart at most.

    Papers round in every frame. With few patches a frame that would give methods quite different numbers of tokens
    at the same budget.
    """
    return spread(budget(retain_ratio, frames, patches), frames)


def spread(total: int, parts: int) -> list[int]:
    """A total in parts that differ by one at most."""
    return [total * (part + 1) // parts - total * part // parts for part in range(parts)]


def apportion(total: int, weights: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to the weights, each within its limit.

    What is beyond a limit goes to the others. Shares are rounded down, and the largest remainders up.
    """
    total = min(total, sum(limits))
    ideal = [float(limit) for limit in limits]
    free = list(range(len(limits)))
    while free:
        left = total - sum(limits[i] for i in range(len(limits)) if i not in free)
        mass = sum(weights[i] for i in free)
        shares = {i: left * weights[i] / mass if mass > 0 else left / len(free) for i in free}
        inside = [i for i in free if shares[i] <= limits[i]]
        if inside == free:
            for i in free:
                ideal[i] = shares[i]
            break
        free = inside
    counts = [min(math.floor(value), limit) for value, limit in zip(ideal, limits, strict=True)]
    rising = sorted((i for i in free if counts[i] < limits[i]), key=lambda i: (counts[i] - ideal[i], i))
    for i in rising[: total - sum(counts)]:
        counts[i] += 1
    return counts


def inner_layer(layer: int | str, depth: int, auto: float) -> int | None:
    """The layer to act before: a number, a share `auto` of the depth, or None where it is off.

    Raises:
        MethodError: the language model has no such layer.
    """
    if layer == "off":
        return None
    number = round(depth * auto) if layer == "auto" else int(layer)
    check_depth("inner_layer", number, depth, ", auto or off")
    return number


def check_depth(name: str, layer: int, depth: int, others: str = "") -> None:
    """Refuse a layer that a language model of `depth` layers has not, or its very first; `others` may be given instead.

    Raises:
        MethodError: it is one.
    """
    if not 1 <= layer < depth:
        raise MethodError(
            f"Setting {name} is {layer}, but this language model has {depth} layers.", f"Use 1 to {depth - 1}{others}."
        )


def check(holds: bool, name: str, value: object, wanted: str) -> None:
    """Refuse a setting.

    Raises:
        MethodError: it does not hold.
    """
    if not holds:
        raise MethodError(f"Setting {name} is {value}, but has to be {wanted}.", f"Change {name}.")


def check_instead(name: str, value: float, default: float, retain_ratio: Share | None) -> None:
    """Refuse a setting that would do nothing, because a share of the tokens to keep stands in its place.

    Raises:
        MethodError: there is such a share and the setting is not its default, or the share is none.
    """
    if retain_ratio is None:
        return
    check_ratio(retain_ratio)
    if value != default:
        raise MethodError(
            f"Setting {name} is {value}, but has no effect beside a share of the tokens to keep.",
            f"Leave out {name}, or retain_ratio and the budget.",
        )


def check_layer(name: str, value: int | str) -> None:
    """Refuse a layer that is neither auto, off nor a number from 1 on.

    Raises:
        MethodError: it is.
    """
    literal = isinstance(value, int) and value >= 1
    check(literal or value in ("auto", "off"), name, value, "auto, off or a layer from 1 on")
