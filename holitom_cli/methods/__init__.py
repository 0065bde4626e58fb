"""The contract of a compression method, and the methods there are: one file each, found by its name.

To add one, see docs/adding-a-method.md.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, field, fields, make_dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from holitom_cli.errors import MethodError
from holitom_cli.methods.tools.settings import read_budget

if TYPE_CHECKING:
    from torch import Tensor

    from holitom_cli.types import CacheView, Reduction, VideoFeatures, VisualTokens


class Method:
    """A way to make the visual tokens fewer. Subclasses are frozen dataclasses of their settings."""

    status: ClassVar[str] = "of its own"  # how near it is to what it is named after
    needs_attention: ClassVar[bool] = False
    needs_keys: ClassVar[bool] = False
    prunes_cache: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Choose and merge tokens before the language model."""
        raise NotImplementedError

    def reductions(self, depth: int) -> Mapping[int, Reduction]:  # noqa: ARG002  # the default merges nothing
        """What to merge inside a language model of `depth` layers: {layer: applied just before it}."""
        return {}

    def after_prefill(self, layers: Sequence[CacheView]) -> Sequence[Tensor]:
        """Which visual rows each layer's cache keeps, (m,) int64 ascending; asked where `prunes_cache` says so."""
        raise NotImplementedError

    def most_tokens(self, frames: int, patches: int) -> int:
        """Upper bound of the visual tokens that `compress` returns, known before a frame is decoded."""
        return frames * patches


class Composed(Method):
    """One method before the language model, another one inside it."""

    outer: ClassVar[type[Method]]
    inner: ClassVar[type[Method]]

    def __post_init__(self) -> None:
        self._part(self.outer)
        self._part(self.inner)

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """As the outer one does."""
        return self._part(self.outer).compress(video)

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """As the inner one does."""
        return self._part(self.inner).reductions(depth)

    def after_prefill(self, layers: Sequence[CacheView]) -> Sequence[Tensor]:
        """As the inner one does."""
        return self._part(self.inner).after_prefill(layers)

    def most_tokens(self, frames: int, patches: int) -> int:
        """As of the outer one."""
        return self._part(self.outer).most_tokens(frames, patches)

    def _part(self, cls: type[Method]) -> Method:
        """One of the two with its settings. A share of tokens to keep is the outer one's."""
        mine = {item.name for item in settings_of(cls)}
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass
        if cls is self.inner:
            mine -= {"retain_ratio"}
        return cls(**{name: value for name, value in values.items() if name in mine})


def available() -> tuple[str, ...]:
    """Names of all methods, sorted: their files' names, with hyphens."""
    return tuple(sorted(_name(module.name) for module in pkgutil.iter_modules(__path__) if not module.ispkg))


def find(name: str) -> type[Method]:
    """The class behind a method's name, or behind two of them: outer+inner.

    Raises:
        MethodError: there is no such method.
    """
    outer, plus, inner = name.partition("+")
    if plus:
        return _compose(outer.strip(), inner.strip())
    if name not in available():
        raise MethodError(f"There is no method {name!r}.", f"Choose one of: {', '.join(available())}.")
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    return next(
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Method) and item.__module__ == module.__name__
    )


@cache  # the same two parts are the same class, so that methods compare equal
def _compose(before: str, inside: str) -> type[Method]:
    """A class whose settings are those of both; one that both have goes to both, the default is the outer one's."""
    if before == inside or "+" in inside:
        raise MethodError(
            f"Methods {before}+{inside} cannot be composed: one acts before the language model, another one inside it.",
            "As in: vidcom2+inner",
        )
    outer, inner = find(before), find(inside)
    hints = get_type_hints(inner, include_extras=True) | get_type_hints(outer, include_extras=True)
    own = {item.name: item for item in settings_of(outer)}
    added = [item for item in settings_of(inner) if item.name not in own and item.name != "retain_ratio"]
    members = [(item.name, hints[item.name], field(default=item.default)) for item in (*own.values(), *added)]
    parts = {
        "__module__": __name__,
        "__doc__": f"{before} before the language model, {inside} inside it.\n\n"
        f"Settings that both have go to both; a share of tokens to keep is that of {before}.",
        "outer": outer,
        "inner": inner,
        "status": f"{outer.status}; inside: {inner.status}",
        "needs_attention": outer.needs_attention,
        "needs_keys": outer.needs_keys,
        "prunes_cache": inner.prunes_cache,
        "presets": outer.presets,
    }
    return make_dataclass(
        f"{outer.__name__}And{inner.__name__}", members, bases=(Composed,), namespace=parts, frozen=True
    )


def get(name: str, *, preset: str | None = None, **settings: Any) -> Method:
    """Make a method; settings may be text, as on the command line, and override the preset.

    Raises:
        MethodError: an unknown method, preset or setting, or a value outside its range.
    """
    return _make(find(name), name, preset, settings)


def change(method: Method, *, preset: str | None = None, **settings: Any) -> Method:
    """The method with some settings changed.

    Raises:
        MethodError: as of `get`.
    """
    if preset is None and not settings:
        return method
    present = {field.name: getattr(method, field.name) for field in settings_of(type(method))}
    return _make(type(method), name_of(method), preset, settings, present)


def _make(
    cls: type[Method],
    name: str,
    preset: str | None,
    settings: Mapping[str, Any],
    present: Mapping[str, Any] | None = None,
) -> Method:
    values = {**(present or {}), **_preset(cls, name, preset), **settings}
    known = {field.name: field for field in settings_of(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise MethodError(f"Method {name!r} has no setting {unknown[0]!r}.", _choices("settings", known))
    types = get_type_hints(cls)
    return cls(**{key: _parse(key, value, types[key]) for key, value in values.items()})


def settings_of(cls: type[Method]) -> tuple[Field[Any], ...]:
    """The settings of a method: the fields of its dataclass."""
    return fields(cls)  # type: ignore[arg-type]  # every subclass is a dataclass; the base is not


def name_of(method: Method) -> str:
    """The name that `get` knows a method by."""
    return _class_name(type(method))


def _class_name(cls: type[Method]) -> str:
    if issubclass(cls, Composed):
        return f"{_class_name(cls.outer)}+{_class_name(cls.inner)}"
    return _name(cls.__module__)


def _name(module: str) -> str:
    return module.rpartition(".")[2].replace("_", "-")


def at_budget(name: str, budget: str, **settings: Any) -> Method:
    """Make a method that keeps a given part of the visual tokens.

    What `retain_ratio` means is the method's: the tokens that enter the language model, or, where a method acts
    only inside, the mean over its layers. A method with presets for its paper's budgets takes the settings of the
    nearest lower one, or of its lowest: so `holitom` has the paper's tau.

    Args:
        name: as of `get`.
        budget: percent of the visual tokens, as 15, or a number of them, as 940t.
        settings: of the method, beside it.

    Raises:
        MethodError: the method has no such setting, cannot keep so few, or as of `get`.
    """
    cls = find(name)
    share = read_budget(budget)
    if "retain_ratio" not in {item.name for item in settings_of(cls)}:
        raise MethodError(f"Method {name!r} keeps what it keeps, so a budget has no effect.", "Leave the budget out.")
    known = sorted((preset for preset in cls.presets if preset.isdigit()), key=int)
    lower = [preset for preset in known if not isinstance(share, str) and int(preset) <= round(100 * share, 9)]
    preset = lower[-1] if lower else next(iter(known), None)
    return get(name, preset=preset, **{"retain_ratio": share, **settings})


def by_words(name: str, preset: str | None, budget: str | None, settings: Mapping[str, Any]) -> Method:
    """Make a method at a budget, where there is one, or with a preset.

    Raises:
        MethodError: as of `get` and `at_budget`.
    """
    return get(name, preset=preset, **settings) if budget is None else at_budget(name, budget, **settings)


def _preset(cls: type[Method], name: str, preset: str | None) -> Mapping[str, Any]:
    if preset is None:
        return {}
    if preset not in cls.presets:
        raise MethodError(f"Method {name!r} has no preset {preset!r}.", _choices("presets", cls.presets))
    return cls.presets[preset]


def _choices(what: str, names: Mapping[str, Any]) -> str:
    return f"Its {what}: {', '.join(names)}." if names else f"It has no {what}."


def _parse(key: str, value: Any, kind: Any) -> Any:
    """Turn command-line text into the field's type, and refuse values of another type."""
    kinds = getattr(kind, "__args__", (kind,))
    if not isinstance(value, str) and _has_type(value, kinds):
        return value
    for convert in (int, float):
        if isinstance(value, str) and convert in kinds:
            try:
                return convert(value)
            except ValueError:
                continue
    if isinstance(value, str) and str in kinds:
        return value
    wanted, example = ("a whole number", 7) if int in kinds else ("a number", 0.5)
    raise MethodError(f"Setting {key} is {value!r}, which is not {wanted}.", f"Give {wanted}: {key}={example}, say.")


def _has_type(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value is of one of these types; a whole number will do for a float, True for neither."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
