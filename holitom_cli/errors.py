"""What a user can do wrong: one class per stage, each one sentence and a hint."""

from __future__ import annotations


class HolitomError(Exception):
    """One sentence that says what is wrong, and a hint that says what to try."""

    stage = "run"
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(HolitomError):
    """The command line, a question or a setting cannot be used as given."""

    stage = "usage"
    exit_code = 2


class MethodError(UsageError):
    """An unknown compression method, or a setting outside its range."""

    stage = "method"


class VideoError(HolitomError):
    """A file that no frame can be read from."""

    stage = "video"


class ModelError(HolitomError):
    """A checkpoint that is missing, incomplete or of another architecture."""

    stage = "model"


class DeviceError(HolitomError):
    """A device that is absent, unusable or out of memory."""

    stage = "device"


class BatchError(HolitomError):
    """A batch cannot begin, or its rows cannot be written."""

    stage = "batch"


class GenerationError(HolitomError):
    """The language model's output cannot be used (non-finite logits)."""

    stage = "generate"


def in_a_sentence(error: Exception) -> HolitomError:
    """What a user is told of an error, also of one that no room has put into words."""
    if isinstance(error, HolitomError):
        return error
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return HolitomError(f"{where}{error.strerror}.", "Check the path, its permissions and the free disk space.")
    if isinstance(error, MemoryError):
        return HolitomError("The memory of this machine is not enough.", "Use fewer --num-frames.")
    return HolitomError(
        f"This should not have happened: {type(error).__name__}, {reason(error)}.",
        "Run it again with --debug and report it.",
    )


def reason(error: Exception) -> str:
    """What an exception of another library says, on one line without a full stop."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or "without a word"
