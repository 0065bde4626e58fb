"""Files are sent once, and asked about by their ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from holitom_cli.model.loading import Model
from tests.serve.served import Served
from tests.serve.test_answers import QUESTIONS, alone
from tests.serve.test_refusals import refused


def test_openais_client_sends_a_file_and_asks_about_it(served: Served, demo: Model, clips: list[Path]) -> None:
    with served.client() as client:
        file = client.files.create(file=clips[0], purpose="user_data")
        assert file.id.startswith("file-")
        assert (file.bytes, file.filename) == (clips[0].stat().st_size, clips[0].name)
        assert [one.id for one in client.files.list()] == [file.id]
        assert client.files.retrieve(file.id) == file
        answer = served.post(served.body(file.id, QUESTIONS[0])).json()
        assert answer["choices"][0]["message"]["content"] == alone(demo, clips[0], QUESTIONS[0]).text
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)
    refused(served.get("/v1/files?after=x"), 400, "unsupported_parameter", "after")
    refused(served.post(served.body(file.id, QUESTIONS[0])), 404, "file_not_found")
    served.settle()


CLIP = ("clip.mp4", b"some bytes", "video/mp4")


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        ({"files": {"other": CLIP}}, 400, "missing_file"),
        ({"files": {"file": CLIP, "second": CLIP}}, 400, "invalid_form"),
        ({"files": {"file": CLIP}, "data": {"purpose": "assistants"}}, 400, "invalid_value"),
        ({"files": {"file": CLIP}, "data": {"expires_after": "1"}}, 400, "unsupported_parameter"),
        ({"files": {"file": ("empty.mp4", b"", "video/mp4")}}, 400, "empty_file"),
        ({"files": {"file": ("large.mp4", b" " * (2**22 + 1), "video/mp4")}}, 413, "clip_too_large"),
        ({"content": b"{}", "headers": {"content-type": "application/json"}}, 415, "unsupported_type"),
        ({"content": b"junk", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "invalid_form"),
        ({"content": b"junk", "headers": {"content-type": "multipart/form-data"}}, 400, "invalid_form"),
    ],
)
def test_wrong_upload_is_refused(served: Served, form: dict[str, Any], status: int, code: str) -> None:
    response = httpx2.post(f"{served.url}/v1/files", **form)
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code
    served.settle()
    assert served.get("/v1/files").json()["data"] == []
    kept = httpx2.post(f"{served.url}/v1/files", files={"file": CLIP}, data={"purpose": "user_data"})  # control
    assert httpx2.delete(f"{served.url}/v1/files/{kept.json()['id']}").json()["deleted"]
