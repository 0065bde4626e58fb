"""Ask questions about video files with a token-compressed LLaVA-OneVision.

    import holitom_cli as holitom

    model = holitom.load_model("llava-hf/llava-onevision-qwen2-7b-ov-hf")
    watched = holitom.watch(model, "clip.mp4", method="holitom", num_frames=32)
    print(holitom.ask(model, watched, "What is the man holding?").text)

Importing this package imports no torch: names are looked up when they are first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers know the name; typing is imported once the decoder of a question has started
if TYPE_CHECKING:
    from holitom_cli import methods, model
    from holitom_cli.conversation import Conversation
    from holitom_cli.model import load_model
    from holitom_cli.pipeline import ask, choose, watch

__version__ = "0.1.0"

__all__ = ["Conversation", "__version__", "ask", "choose", "load_model", "methods", "model", "watch"]

_HOME = {
    "Conversation": "holitom_cli.conversation",
    "ask": "holitom_cli.pipeline",
    "choose": "holitom_cli.pipeline",
    "load_model": "holitom_cli.model",
    "watch": "holitom_cli.pipeline",
}
_ROOMS = ("methods", "model")


def __getattr__(name: str) -> object:
    """Import a public name the first time it is asked for."""
    if name in _ROOMS:
        return import_module(f"holitom_cli.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
