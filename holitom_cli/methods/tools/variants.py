"""Methods at budgets, as the command line names them to be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from holitom_cli import methods
from holitom_cli.errors import MethodError, UsageError
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import read_budget

_EXAMPLE = "As in: --methods full,holitom,holitom:inner_layer=off --budgets 25,15"


@dataclass(frozen=True, slots=True)
class Variant:
    """A method at a budget: one row of the result."""

    label: str  # as it was asked for: the method's name and its settings
    budget: float | str  # percent of the visual tokens, or a number of them: "940t"
    method: Method
    optional: bool = False  # asked for with all others: it may be left out where it cannot keep so few


def variants(names: str, budgets: str, seed: int) -> list[Variant]:
    """Methods at budgets, from text as on the command line.

    A method without `retain_ratio`, or with its own, is one row. At any other budget it is what `methods.at_budget`
    makes.

    Args:
        names: separated by commas, each a name, name:setting=value:setting=value, outer+inner, or all.
        budgets: percentages or numbers of tokens (940t), separated by commas.
        seed: for methods that draw lots.

    Raises:
        UsageError: a method, setting or budget that there is not, or the same one twice.
    """
    asked = [_budget(text) for text in budgets.split(",")]
    found = [variant for name in names.split(",") for variant in _asked(name.strip(), asked, seed)]
    if len({(variant.label, variant.budget) for variant in found}) < len(found):
        raise UsageError("The same method and budget is asked for twice.", _EXAMPLE)
    return found


def _budget(text: str) -> float | str:
    share = read_budget(text)
    if isinstance(share, str):
        return share
    percent = float(text)
    return int(percent) if percent.is_integer() else percent


def _asked(label: str, budgets: Sequence[float | str], seed: int) -> Iterator[Variant]:
    if label != "all":
        return _variants(label, budgets, seed)
    return (replace(item, optional=True) for name in methods.available() for item in _variants(name, budgets, seed))


def _variants(label: str, budgets: Sequence[float | str], seed: int) -> Iterator[Variant]:
    name, *pairs = label.split(":")
    settings = dict(map(_pair, pairs))
    fields = {field.name for field in methods.settings_of(methods.find(name))}
    if "seed" in fields:
        settings.setdefault("seed", str(seed))
    if "retain_ratio" in fields and "retain_ratio" not in settings:
        for budget in budgets:
            yield Variant(label, budget, methods.at_budget(name, str(budget), **settings))
    else:
        made = methods.get(name, **settings)
        share = getattr(made, "retain_ratio", 1)
        yield Variant(label, share if isinstance(share, str) else 100 * share, made)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise MethodError(f"The setting {text!r} is not key=value.", _EXAMPLE)
    return key.strip().replace("-", "_"), value.strip()


def reachable(variants: Sequence[Variant], depth: int) -> tuple[list[Variant], list[Variant]]:
    """Variants that a language model of `depth` layers can run, and optional ones that keep too few for it.

    Raises:
        MethodError: one that was asked for by name does not fit.
    """
    fitting, left_out = [], []
    for variant in variants:
        try:
            variant.method.reductions(depth)
        except MethodError:
            if not variant.optional:
                raise
            left_out.append(variant)
        else:
            fitting.append(variant)
    return fitting, left_out
