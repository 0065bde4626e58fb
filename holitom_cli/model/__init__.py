"""From a checkpoint to a model that can be asked; the only room that knows transformers' attribute paths."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model as Model
    from holitom_cli.model.loading import load_model as load_model

_HOME = {"Model": "loading", "load_model": "loading"}
_ROOMS = ("choices", "decode", "device", "hub", "loading", "prefill", "preprocess", "prompt", "vision")


def __getattr__(name: str) -> Any:
    """Import on first use, so that the command line's help does not wait for torch."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
