"""Video in: a path becomes `Frames`. All native work happens in child processes that can be killed."""

from holitom_cli.video.capabilities import capabilities
from holitom_cli.video.client import probe, read
from holitom_cli.video.worker_link import stop_workers

__all__ = ["capabilities", "probe", "read", "stop_workers"]
