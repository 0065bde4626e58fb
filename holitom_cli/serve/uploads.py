"""The routes of /v1/files: clips that are sent once and asked about by name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from holitom_cli.serve.answering import CLIENT_LEFT, Limits, Places, check_type, counted
from holitom_cli.serve.forms import Form
from holitom_cli.serve.refusals import Refused

if TYPE_CHECKING:
    from holitom_cli.serve.files import FileStore, StoredFile

_FORM_BYTES = 65536  # of an upload's other fields and boundaries


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
            async with asyncio.timeout(self._limits.timeout_seconds):
                return JSONResponse((await self._keep(request)).as_json())
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

    async def _keep(self, request: Request) -> StoredFile:
        form = Form(request.headers["content-type"], counted(request, self._limits.upload_bytes + _FORM_BYTES))
        blocks = await form.file()
        return await self._files.save(blocks, form.label or "")
