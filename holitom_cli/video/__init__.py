"""Video in: a path becomes `Frames`. All native work happens in child processes that can be killed."""

from holitom_cli.video.capabilities import capabilities
from holitom_cli.video.client import probe, read, subtitles
from holitom_cli.video.files import no_subtitles, subtitle_file
from holitom_cli.video.sampling import most_frames
from holitom_cli.video.worker_link import stop_workers, warm_up

__all__ = [
    "capabilities",
    "most_frames",
    "no_subtitles",
    "probe",
    "read",
    "stop_workers",
    "subtitle_file",
    "subtitles",
    "warm_up",
]
