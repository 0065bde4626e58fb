"""What a client is told that cannot be served: a status, and OpenAI's error object."""

from __future__ import annotations

from typing import Any

from holitom_cli.errors import DeviceError, HolitomError, UsageError, VideoError


class Refused(Exception):  # noqa: N818  # it is no failure of ours
    """A request that is not served: one sentence, a hint, the HTTP status and a word that programs can compare.

    `param` names the field of the request that is to blame, as OpenAI's error object does; `retry_after_s` (seconds)
    says when another try may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        hint: str = "",
        code: str = "invalid_request",
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.hint = hint
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def type(self) -> str:
        """OpenAI's name of the kind of error, which its clients show."""
        if self.status in KINDS:
            return KINDS[self.status]
        return "invalid_request_error" if self.status < 500 else "server_error"

    def as_json(self) -> dict[str, Any]:
        """The body of the response: `{"error": {message, type, param, code}}`, the hint behind the sentence."""
        message = f"{self.message} {self.hint}".rstrip()
        return {"error": {"message": message, "type": self.type, "param": self.param, "code": self.code}}


KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

# What users of the command line are told to change, as clients know it.
_OPTIONS = {
    "--num-frames": "holitom.num_frames",
    "--retain-ratio": "holitom.settings.retain_ratio",
    "--start": "holitom.start",
    "--end": "holitom.end",
}


def refusal(error: HolitomError) -> Refused:
    """What a client is told of an error of another room; hints about the server's own options are not for them."""
    hint = error.hint
    for option, field in _OPTIONS.items():
        hint = hint.replace(option, field)
    if "--" in hint or "holitom ask" in hint:
        hint = ""
    if isinstance(error, VideoError):
        return Refused(400, error.message, hint, "unreadable_video", param="messages")
    if isinstance(error, UsageError):
        return Refused(400, error.message, hint, "invalid_value")
    if isinstance(error, DeviceError):
        return Refused(503, error.message, hint, "out_of_memory", retry_after_s=_MEMORY_SECONDS)
    if error.stage == "serve":
        return Refused(503, error.message, hint, "shutting_down", retry_after_s=_RESTART_SECONDS)
    return Refused(500, error.message, hint, "internal_error")


_MEMORY_SECONDS = 5  # other answers have ended by then
_RESTART_SECONDS = 30  # a server that is begun anew has loaded its model by then
