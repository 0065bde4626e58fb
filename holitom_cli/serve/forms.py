"""The form that an upload is (RFC 7578), read as it arrives: no part of its file is held in memory or written twice."""

from __future__ import annotations

from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from holitom_cli.serve.refusals import Refused

_EXAMPLE = "As in: curl -F purpose=user_data -F file=@clip.mp4"
_PURPOSES = ("user_data", "vision")  # of OpenAI's, those that questions are asked about
_FIELD_BYTES = 256  # of a part that is no file


class Form:
    """One file, with a purpose before or behind it, as OpenAI's clients send them."""

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        """Read a body of this type.

        Raises:
            Refused: the type names no boundary.
        """
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not 0 < len(boundary) <= 70:  # as RFC 2046 has it
            raise _no_form()
        self._body = body
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )
        self.label: str | None = None  # the file's name, once it has begun
        self._arrived: list[bytes] = []  # of the file
        self._ended = False

    async def file(self) -> AsyncIterator[bytes]:
        """The blocks of the file, whose label is known from now on.

        Raises:
            Refused: the form is not as it should be, which may turn out behind the file.
        """
        while self.label is None:
            if not await self._more():
                raise _no_file()
        return self._blocks()

    async def _blocks(self) -> AsyncIterator[bytes]:
        going_on = True
        while going_on:
            arrived, self._arrived = self._arrived, []
            for block in arrived:
                yield block
            going_on = await self._more()

    async def _more(self) -> bool:
        """Read on; returns whether there may be more."""
        block = await anext(self._body, None)
        if block is None:
            if not self._ended:
                raise _no_form()
            return False
        try:
            self._parser.write(block)
        except FormParserError as error:
            raise _no_form() from error
        return True

    def _begin_part(self) -> None:
        self._name, self._is_file, self._value = "", False, bytearray()
        self._header_name, self._header, self._disposition = bytearray(), bytearray(), b""

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header)
        self._header_name, self._header = bytearray(), bytearray()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        if b"filename" in options and self.label is not None:
            raise _no_form()  # a second file
        self._is_file = self._name == "file" and b"filename" in options
        if self._is_file:
            self.label = options[b"filename"].decode(errors="replace")
        elif self._name == "file" or b"filename" in options:
            raise _no_file()
        elif self._name != "purpose":
            raise Refused(
                400, f"Parameter {self._name!r} is not implemented.", _EXAMPLE, "unsupported_parameter",
                param=self._name,
            )  # fmt: skip

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._arrived.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _FIELD_BYTES:
            raise _no_form()

    def _end_part(self) -> None:
        if not self._is_file and self._value.decode(errors="replace") not in _PURPOSES:
            raise Refused(400, "The purpose has to be user_data.", _EXAMPLE, "invalid_value", param="purpose")

    def _end(self) -> None:
        self._ended = True


def _no_file() -> Refused:
    return Refused(400, "There is no file in the upload.", _EXAMPLE, "missing_file", param="file")


def _no_form() -> Refused:
    return Refused(400, "The upload is not a form with one file.", _EXAMPLE, "invalid_form")
