"""The examples of the page about the server run against one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from holitom_cli.model.loading import Model
from holitom_cli.serve.wishes import _OWN, _READ
from tests.serve.conftest import DEMO_CLIP
from tests.serve.served import Served
from tests.serve.test_answers import alone
from tests.test_docs import SERVE, blocks


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a clip.mp4."""
    shutil.copy(DEMO_CLIP, tmp_path / "clip.mp4")
    return tmp_path


def test_python_example_streams_the_answer(
    served: Served, demo: Model, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = blocks(SERVE, "python")
    assert "http://127.0.0.1:8000" in example
    monkeypatch.chdir(here)
    tidy = example.replace('open("clip.mp4", "rb").read()', '__import__("pathlib").Path("clip.mp4").read_bytes()')
    exec(f"{tidy.replace('http://127.0.0.1:8000', served.url)}\nclient.close()", {})
    assert capsys.readouterr().out == alone(demo, DEMO_CLIP, "What happens?").text


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("curl"), reason="needs curl and a shell")
def test_curl_example_has_the_answer(served: Served, demo: Model, here: Path) -> None:
    (example,) = [block for block in blocks(SERVE, "sh") if "curl" in block]
    script = example.replace("http://127.0.0.1:8000", served.url)
    done = subprocess.run(["sh", "-c", script], check=True, cwd=here, capture_output=True, text=True, timeout=60)
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"] == alone(demo, DEMO_CLIP, "What happens?").text
    assert answer["usage"]["holitom"]["visual_tokens"]["kept"]


def test_every_parameter_is_told() -> None:
    text = SERVE.read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)[`.]", text))
    assert named >= (_OWN | _READ) - {"messages"}
