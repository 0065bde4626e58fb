"""Video in: a path becomes `Frames`. All native work happens in child processes that can be killed.

A child imports this package before anything can be asked of it, so what only its parent needs is imported when it is
asked for.
"""

from importlib import import_module

from holitom_cli.video.capabilities import capabilities  # named as its module, so at once

TYPE_CHECKING = False  # see holitom_cli/__init__.py
if TYPE_CHECKING:
    from holitom_cli.video.client import probe, read, subtitles
    from holitom_cli.video.files import no_subtitles, readable, subtitle_file
    from holitom_cli.video.sampling import most_frames
    from holitom_cli.video.worker_link import limit_memory, stop_workers, unless, warm_up

__all__ = [
    "capabilities",
    "limit_memory",
    "most_frames",
    "no_subtitles",
    "probe",
    "read",
    "readable",
    "stop_workers",
    "subtitle_file",
    "subtitles",
    "unless",
    "warm_up",
]

_HOME = {
    "limit_memory": "worker_link",
    "most_frames": "sampling",
    "no_subtitles": "files",
    "probe": "client",
    "read": "client",
    "readable": "files",
    "stop_workers": "worker_link",
    "subtitle_file": "files",
    "subtitles": "client",
    "unless": "worker_link",
    "warm_up": "worker_link",
}


def __getattr__(name: str) -> object:
    """Import a public name the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # found without this function from now on
    return value
