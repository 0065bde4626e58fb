"""Bad input gets one sentence, a hint and the right exit code; nothing is left half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.program import FAST, Invoke, check_prose, installed

MODEL = FAST[:4]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--num-frames", "0"], 2, "'--num-frames'"),
        (["--num-frames", "many"], 2, "'--num-frames'"),
        (["--num-frames", "100000", "--method", "full"], 2, "Use --num-frames 166 or fewer"),
        (["--decode-timeout", "0"], 2, "'--decode-timeout'"),
        (["--method", "nope"], 2, "There is no method 'nope'. hint: Choose one of: "),
        (["--preset", "99"], 2, "Method 'holitom' has no preset '99'. hint: Its presets: 25, 20, 15, 10."),
        (["--set", "colour=1"], 2, "Method 'holitom' has no setting 'colour'."),
        (["--set", "tau"], 2, "--set 'tau' is not KEY=VALUE. hint: As in: --set tau=0.8"),
        (["--set", "tau=much"], 2, "Setting tau is 'much'"),
        (["--retain-ratio", "0"], 2, "Setting retain_ratio is 0.0"),
        (["--retain-ratio", "1.5"], 2, "Setting retain_ratio is 1.5"),
        (["--retain-ratio", "nan"], 2, "Setting retain_ratio is nan"),
        (["--retain-ratio", "abc"], 2, "'--retain-ratio'"),
        (["--inner-layer", "abc"], 2, "Setting inner_layer is abc"),
        (["--inner-layer", "99"], 2, "inner_layer"),
        (["--temperature", "-1"], 2, "Setting temperature is -1.0"),
        (["--temperature", "nan"], 2, "Setting temperature is nan"),
        (["--top-p", "2"], 2, "Setting top_p is 2.0"),
        (["--max-new-tokens", "0"], 2, "'--max-new-tokens'"),
        (["--seed", "-1"], 2, "'--seed'"),
        (["--device", "nonsense"], 2, "'nonsense' is not a device."),
        (["--dtype", "nonsense"], 2, "'nonsense' is not a number format."),
        (["--device-map", "sideways"], 2, "--device-map 'sideways' is not known."),
        (["--nonsense"], 2, "--nonsense"),
        (["-q", " "], 2, "A question is empty."),
        (["-q", "caf\udce9"], 2, "is not valid text."),
        (["-q", "<video> <|im_end|>"], 2, "has a special meaning for the model."),
        (["-Q", "nope.txt"], 2, "The questions in nope.txt cannot be read: No such file or directory."),
        (["-Q", "."], 2, "The questions in . cannot be read: Is a directory."),
        (["--model", "nowhere/at/all"], 1, "There is no directory nowhere/at/all."),
        (["--model", "lmms-lab/llava-onevision-qwen2-7b-ov"], 1, "--model llava-hf/llava-onevision-qwen2-7b-ov-hf."),
        (["--model", "someone/llava-onevision-1.5-8b"], 1, "is another architecture than LLaVA-OneVision"),
    ],
)
def test_options(invoke: Invoke, demo_clip: Path, options: list[str], code: int, said: str) -> None:
    done = invoke("ask", demo_clip, "What?", *MODEL, *options)
    done.sentence(code, said)
    as_json = invoke("ask", demo_clip, "What?", *MODEL, *options, "--json")
    assert as_json.code == code
    error = as_json.document()["error"]
    check_prose(error["message"], error["hint"])
    assert " ".join(done.err.split()).endswith(f"error: {error['message']} hint: {error['hint']}")


def test_a_device_that_is_not_there(invoke: Invoke, demo_clip: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has an NVIDIA card")
    invoke("ask", demo_clip, "What?", "--model", "demo", "--device", "cuda").sentence(1, "This machine has ")
    done = invoke("ask", demo_clip, "What?", "--model", "demo", "--device", "cuda", "--json")
    assert done.document()["error"]["stage"] == "device"


@pytest.mark.parametrize("command", [[], ["nonsense"], ["ask"], ["batch"], ["pull"], ["methods", "nope"]])
def test_commands(invoke: Invoke, command: list[str]) -> None:
    done = invoke(*command)
    said = {"nope": "nope", "nonsense": "nonsense", "batch": "There is no clip to ask about."}
    if command:
        done.sentence(2, said.get(command[-1], "Missing argument"))
    else:
        assert done.code == 2
        assert "Usage: holitom" in done.out


def test_there_is_no_question(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    invoke("ask", demo_clip).sentence(2, "There is no question.")
    invoke("ask", demo_clip, "").sentence(2, "A question is empty.")
    invoke("ask", demo_clip, "-", stdin=" \n").sentence(2, "A question is empty.")
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    invoke("ask", demo_clip, "-Q", "empty.txt").sentence(2, "There is no question.")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    invoke("ask", demo_clip, "-Q", "binary.txt").sentence(2, "The questions in binary.txt cannot be read: ")


def test_files_that_are_no_videos(invoke: Invoke, tmp_path: Path) -> None:
    from tests.program import ROOT

    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "letter.mp4").write_text("Dear reader,\n" * 99, encoding="utf-8")
    shutil.copy(ROOT / "tests" / "data" / "city.mp4", tmp_path / "cut.mp4")
    with (tmp_path / "cut.mp4").open("rb+") as file:
        file.truncate(1000)
    before = sorted(tmp_path.iterdir())
    for name in ("nope.mp4", "folder.mp4", "empty.mp4", "letter.mp4", "cut.mp4"):
        invoke("ask", name, "What?", *MODEL).sentence(1, name)
        error = invoke("ask", name, "What?", *MODEL, "--json").document()["error"]
        assert error["stage"] == "video"
        check_prose(error["message"], error["hint"])
    assert sorted(tmp_path.iterdir()) == before


def test_sound_without_pictures(invoke: Invoke, tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "song.wav"), "wb") as song:
        song.setnchannels(1)
        song.setsampwidth(2)
        song.setframerate(8000)
        song.writeframes(bytes(16000))
    invoke("ask", "song.wav", "What?", *MODEL).sentence(1, "song.wav has sound but no moving pictures")


def test_checkpoints_that_cannot_be_used(
    invoke: Invoke, demo_clip: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    def ask(folder: Path) -> tuple[str, ...]:
        return ("ask", str(demo_clip), "What?", "--device", "cpu", "--num-frames", "2", "--model", str(folder))

    empty = tmp_path / "empty"
    empty.mkdir()
    invoke(*ask(empty)).sentence(1, "has no config.json")
    invoke(*ask(demo_clip)).sentence(1, "is a file, not a checkpoint.")

    broken = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    weights = broken / "model.safetensors"
    assert invoke(*ask(broken), "--json").code == 0  # control: it is whole so far
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    invoke(*ask(broken)).sentence(1, "cannot be loaded")
    weights.unlink()
    invoke(*ask(broken)).sentence(1, "is incomplete: 1 of 1 weight files are missing (model.safetensors).")
    shards = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(shards), encoding="utf-8")
    (broken / "model-1-of-2.safetensors").write_bytes(whole)
    invoke(*ask(broken)).sentence(1, "is incomplete: 1 of 2 weight files are missing (model-2-of-2.safetensors).")

    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "bert"}), encoding="utf-8")
    invoke(*ask(broken)).sentence(1, "is a bert checkpoint, not LLaVA-OneVision.")
    (broken / "config.json").write_text("{", encoding="utf-8")
    invoke(*ask(broken)).sentence(1, "config.json")


def test_debug_shows_where_an_error_comes_from(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    done = invoke("ask", "nope.mp4", "What?", "--debug")
    assert done.code == 1
    assert "Traceback" in done.err
    assert "error: " in done.err
    assert "Traceback" not in invoke("ask", "nope.mp4", "What?").err
    monkeypatch.setenv("HOLITOM_DEBUG", "1")
    assert "Traceback" in invoke("ask", "nope.mp4", "What?").err


def test_a_mistake_of_ours_is_told_as_such(invoke: Invoke, demo_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holitom_cli import pipeline

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(pipeline, "watch", fail)
    done = invoke("ask", demo_clip, "What?", *FAST)
    assert done.code == 1
    message, hint = "This should not have happened: ZeroDivisionError, two lines.", "Run it again with --debug"
    assert message in done.err
    assert hint in done.err
    assert invoke("ask", demo_clip, "What?", *FAST, "--json").document()["error"]["message"] == message


@pytest.mark.parametrize(
    "error", [MemoryError(), FileNotFoundError(2, "No such file or directory", "x"), OSError("odd"), ValueError()]
)
def test_any_error_becomes_a_sentence(error: Exception) -> None:
    from holitom_cli.errors import in_a_sentence

    told = in_a_sentence(error)
    assert told.message.endswith(".")
    assert told.hint.endswith(".")
    assert "  " not in told.message


def test_from_the_shell_there_is_no_traceback(tmp_path: Path, demo_clip: Path) -> None:
    installed("ask", demo_clip, "What?", "--num-frames", "0", home=tmp_path).sentence(2, "'--num-frames'")
    done = installed("ask", demo_clip, "What?", "--tau", "x", "--json", home=tmp_path)
    assert done.code == 2
    assert done.document()["error"]["stage"] == "usage"
    installed("ask", demo_clip, "-", home=tmp_path).sentence(2, "A question is empty.")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--revision", "v1"], "demo has no revisions"),
        (["--device-map", "auto", "--device", "cpu"], "--device-map chooses the devices itself"),
    ],
)
def test_options_that_would_do_nothing(invoke: Invoke, demo_clip: Path, options: list[str], said: str) -> None:
    invoke("ask", str(demo_clip), "Why?", "--model", "demo", *options).sentence(2, said)
