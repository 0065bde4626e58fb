"""Downloads: said, asked for, and refused in words. The hub is faked; nothing here touches a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from tests.program import Done, Invoke

ID = "someone/llava-onevision-tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZES = {"config.json": 2048, "model.safetensors": 3 * 1024**2}


@dataclass
class Hub:
    """Stands for huggingface_hub: a dry run, a look into the cache, the configuration, or the download."""

    checkpoint: Path
    here: tuple[str, ...] = ()
    scale: int = 1
    downloads: int = 0

    def snapshot_download(self, model: str, **options: Any) -> Any:
        assert model == ID
        assert options["allow_patterns"]
        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("not here")
        if options.get("dry_run"):
            return [
                SimpleNamespace(
                    filename=name,
                    commit_hash=COMMIT,
                    file_size=size * self.scale,
                    will_download=name not in self.here,
                )
                for name, size in SIZES.items()
            ]
        assert options["revision"] == COMMIT  # what was looked at is what is fetched
        self.downloads += 1
        return str(self.checkpoint)

    def hf_hub_download(self, model: str, name: str, **options: Any) -> str:
        assert (model, options["revision"]) == (ID, COMMIT)
        return str(self.checkpoint / name)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> Hub:
    fake = Hub(tiny_checkpoint)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    return fake


@pytest.fixture
def at_terminal(monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> Callable[..., Done]:
    """Run a command whose question somebody sees and answers."""
    from holitom_cli.cli import session

    def call(*arguments: str, answer: str) -> Done:
        monkeypatch.setattr(session, "_somebody_is_there", lambda: True)
        return invoke(*arguments, stdin=answer)

    return call


def test_the_plan_is_told_before_the_download(invoke: Invoke, hub: Hub) -> None:
    done = invoke("pull", ID, "--yes")
    assert (done.code, hub.downloads) == (0, 1)
    assert done.out == f"{hub.checkpoint}\n"
    assert f"{ID} at {COMMIT[:12]}: 3.0 MiB into " in done.err
    assert " are free." in done.err


def test_finished_files_are_kept(invoke: Invoke, hub: Hub) -> None:
    hub.here = ("model.safetensors",)
    assert "(3.0 MiB of it is here already)" in invoke("pull", ID, "--yes").err
    hub.here = tuple(SIZES)
    assert "are free" not in invoke("pull", ID).err  # nothing to ask
    assert hub.downloads == 2


def test_off_a_terminal_it_needs_yes(invoke: Invoke, hub: Hub) -> None:
    done = invoke("pull", ID)
    assert done.code == 2
    assert f"error: {ID} has to be downloaded first." in done.err
    assert f"hint: Run: holitom pull {ID} --yes" in done.err
    assert hub.downloads == 0


@pytest.mark.parametrize(("answer", "code", "downloads"), [("y\n", 0, 1), ("n\n", 2, 0), ("\n", 2, 0), ("", 130, 0)])
def test_on_a_terminal_it_asks(
    at_terminal: Callable[..., Done], hub: Hub, answer: str, code: int, downloads: int
) -> None:
    done = at_terminal("pull", ID, answer=answer)
    assert (done.code, hub.downloads) == (code, downloads)
    assert "Download it?" in done.err
    assert ("was not downloaded." in done.err) is (code == 2)


def test_a_disk_that_is_too_small_is_refused_before_asking(invoke: Invoke, hub: Hub) -> None:
    hub.scale = 10**9
    done = invoke("pull", ID)
    assert (done.code, hub.downloads) == (1, 0)
    assert "GiB more, but " in done.err
    assert "Download it?" not in done.err
    assert "HF_HOME" in done.err


def test_ask_downloads_what_it_needs(invoke: Invoke, hub: Hub, demo_clip: Path) -> None:
    options = ["--model", ID, "--device", "cpu", "--num-frames", "2", "--max-new-tokens", "2"]
    refused = invoke("ask", demo_clip, "What?", *options)
    assert (refused.code, hub.downloads, refused.out) == (2, 0, "")
    done = invoke("ask", demo_clip, "What?", *options, "--yes", "--json")
    assert (done.code, hub.downloads) == (0, 1)
    assert done.document()["model"]["id"] == ID


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.DryRunError("Dry run cannot be performed. Check."), f"{ID} cannot be downloaded: Dry run cannot be"),
        (errors.OfflineModeIsEnabled("Cannot reach it: offline mode is enabled. Do x."), "offline mode is enabled."),
        (TimeoutError(), f"{ID} cannot be downloaded: TimeoutError."),
    ],
)
def test_a_hub_that_cannot_be_reached(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str, demo_clip: Path
) -> None:
    def fail(*_: object, **options: object) -> None:
        raise errors.LocalEntryNotFoundError("not here") if options.get("local_files_only") else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    invoke("pull", ID).sentence(1, said)
    done = invoke("ask", demo_clip, "What?", "--model", ID, "--device", "cpu")
    done.sentence(1, said)
    assert "--model demo" in done.err


def test_names_that_are_no_hub_ids(invoke: Invoke) -> None:
    invoke("pull", "nonsense").sentence(1, "'nonsense' is not a hub id.")
    invoke("pull", "lmms-lab/llava-onevision-qwen2-0.5b-si").sentence(1, "llava-hf/llava-onevision-qwen2-0.5b-si-hf.")


def test_another_architecture_is_refused_before_its_weights(invoke: Invoke, hub: Hub, tmp_path: Path) -> None:
    hub.checkpoint = tmp_path
    (tmp_path / "config.json").write_text('{"model_type": "llava"}', encoding="utf-8")
    invoke("pull", ID, "--yes").sentence(1, "is a llava checkpoint, not LLaVA-OneVision")
    assert hub.downloads == 0


def test_without_safetensors_there_is_nothing_to_load(
    invoke: Invoke, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(SIZES, "model.safetensors")
    invoke("pull", ID, "--yes").sentence(1, "has no safetensors checkpoint")
