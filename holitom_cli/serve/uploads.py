"""The routes of /v1/files: clips that are sent once and asked about by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from holitom_cli.serve.answering import CLIENT_LEFT, Limits, Places, check_type, counted
from holitom_cli.serve.refusals import Refused

if TYPE_CHECKING:
    from starlette.datastructures import FormData

    from holitom_cli.serve.files import FileStore, StoredFile


_BLOCK_BYTES = 1024**2
_FORM_BYTES = 65536  # of an upload's other fields and boundaries
_EXAMPLE = "As in: curl -F purpose=user_data -F file=@clip.mp4"


class Uploads:
    """Endpoints that keep, list, describe and remove files."""

    def __init__(self, files: FileStore, places: Places, limits: Limits) -> None:
        """Keep files; uploads take places as questions do."""
        self._files, self._places, self._limits = files, places, limits

    async def create(self, request: Request) -> Response:
        """Keep a file.

        Raises:
            Refused: it is too large, there is no room, or the form is not as it should be.
        """
        check_type(request, "multipart/form-data")
        place = self._places.take()
        try:
            async with asyncio.timeout(self._limits.timeout_seconds), self._form(request) as form:
                return JSONResponse((await self._kept(_file(form))).as_json())
        except TimeoutError:
            raise Refused(408, "The upload took too long.", "Send a smaller clip.", "timeout") from None
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        finally:
            place.free()

    async def list(self, request: Request) -> Response:
        """All files on one page.

        Raises:
            Refused: a part of them is asked for.
        """
        if given := next(iter(request.query_params), None):
            raise Refused(
                400, f"Parameter {given!r} is not implemented.", "Leave it out.", "unsupported_parameter", param=given
            )
        listed = [record.as_json() for record in self._files.list()]
        return JSONResponse({"object": "list", "data": listed, "has_more": False})

    async def get(self, request: Request) -> Response:
        return JSONResponse(self._files.get(request.path_params["name"]).as_json())

    async def delete(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._files.delete(name)
        return JSONResponse({"id": name, "object": "file", "deleted": True})

    async def _kept(self, file: UploadFile) -> StoredFile:
        return await self._files.save(_blocks(file), file.filename or "")

    @asynccontextmanager
    async def _form(self, request: Request) -> AsyncIterator[FormData]:
        body: Any = counted(request, self._limits.upload_bytes + _FORM_BYTES)
        try:
            form = await MultiPartParser(request.headers, body, max_files=1, max_fields=1).parse()
        except (MultiPartException, ValueError, KeyError) as error:
            raise Refused(400, "The upload is not a form with one file.", _EXAMPLE, "invalid_form") from error
        try:
            yield form
        finally:
            await form.close()


def _file(form: FormData) -> UploadFile:
    """The one file of a form that has a purpose beside it, as OpenAI's clients send it."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise Refused(400, "There is no file in the upload.", _EXAMPLE, "missing_file", param="file")
    if unknown := [name for name in form if name not in ("file", "purpose")]:
        raise Refused(
            400, f"Parameter {unknown[0]!r} is not implemented.", "Leave it out.", "unsupported_parameter",
            param=unknown[0],
        )  # fmt: skip
    if form.get("purpose", "user_data") not in ("user_data", "vision"):
        raise Refused(400, "The purpose has to be user_data.", _EXAMPLE, "invalid_value", param="purpose")
    return file


async def _blocks(file: UploadFile) -> AsyncIterator[bytes]:
    while block := await file.read(_BLOCK_BYTES):
        yield block
