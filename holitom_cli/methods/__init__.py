"""The contract of a compression method, and the methods there are: one file each, found by its name.

To add one, see docs/adding-a-method.md.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import Field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from holitom_cli.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

    from holitom_cli.types import Reduction, VideoFeatures, VisualTokens


class Method:
    """A way to make the visual tokens fewer. Subclasses are frozen dataclasses of their settings."""

    needs_attention: ClassVar[bool] = False
    needs_keys: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Choose and merge tokens before the language model."""
        raise NotImplementedError

    def reductions(self, depth: int) -> Mapping[int, Reduction]:  # noqa: ARG002  # the default merges nothing
        """What to merge inside a language model of `depth` layers: {layer: applied just before it}."""
        return {}

    def most_tokens(self, frames: int, patches: int) -> int:
        """Upper bound of the visual tokens that `compress` returns, known before a frame is decoded."""
        return frames * patches


def available() -> tuple[str, ...]:
    """Names of all methods, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find(name: str) -> type[Method]:
    """The class behind a method's name.

    Raises:
        MethodError: there is no such method.
    """
    if name not in available():
        raise MethodError(f"There is no method {name!r}.", f"Choose one of: {', '.join(available())}.")
    module = import_module(f"{__name__}.{name}")
    return next(
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Method) and item.__module__ == module.__name__
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
    return type(method).__module__.rpartition(".")[2]


def check_ratio(retain_ratio: float) -> None:
    """Refuse a share of tokens outside (0, 1].

    Raises:
        MethodError: it is.
    """
    if not 0 < retain_ratio <= 1:
        raise MethodError(
            f"Setting retain_ratio is {retain_ratio}, but has to be above 0 and at most 1.", "Change --retain-ratio."
        )


def budget(retain_ratio: float, frames: int, patches: int) -> int:
    """How many of the clip's tokens a share comes to, at least one."""
    return max(1, round(retain_ratio * frames * patches))


def keep(video: VideoFeatures, places: Tensor, stage: str) -> VisualTokens:
    """Some of a clip's tokens as they are; the others are dropped.

    Args:
        video: the clip.
        places: (N,) int64, ascending, among the F * P tokens in reading order.
        stage: what the funnel calls this.
    """
    import torch

    from holitom_cli.types import VisualTokens

    frames, patches, _ = video.tokens.shape
    source = torch.full((frames * patches,), -1, device=places.device)
    source[places] = torch.arange(len(places), device=places.device)
    return VisualTokens(
        embeds=video.tokens.flatten(0, 1)[places],
        frame=places // patches,
        cell=places % patches,
        size=torch.ones_like(places),
        source=source.view(frames, patches),
        segments=tuple(range(frame, frame + 1) for frame in range(frames)),
        stages=((stage, len(places)),),
    )


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
