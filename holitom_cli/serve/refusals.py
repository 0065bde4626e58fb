"""What a client is told that cannot be served: a status, and OpenAI's error object."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
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
