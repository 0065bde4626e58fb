"""Checkpoints in every layout that is published, and the sentences for those that cannot be used."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from holitom_cli import methods
from holitom_cli.errors import DeviceError, HolitomError, ModelError, UsageError
from holitom_cli.model import loading, vision
from holitom_cli.model.hub import locate
from holitom_cli.model.loading import Model, load_model, read_checkpoint
from holitom_cli.model.prefill import prefill
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.model.vision import encode
from tests.make_random_checkpoint import make_checkpoint

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that loads in no time."""
    return make_checkpoint(
        tmp_path_factory.mktemp("small"), layers=3, dtype=torch.float32, image_size=112, patch_size=16
    )


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """The same, free to be damaged."""
    return Path(shutil.copytree(small, tmp_path / "copy"))


def load(path: Path, **options: Any) -> Model:
    return load_model(path, device="cpu", **options)


@torch.inference_mode()
def logits(model: Model) -> Tensor:
    side = model.checkpoint.config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    method = methods.get("holitom", inner_layer=1)
    embeds, span = prompt_embeds(model, [5, 6], method.compress(encode(model, pixels)), [7, 8, 9])
    return prefill(model.language_model, model.lm_head, embeds, span, method.reductions(3)).logits


def rewrite(path: Path, change: Callable[[Weights], Weights]) -> None:
    file = path / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def edit(path: Path, name: str, **changed: Any) -> None:
    """Change entries of a JSON file; None takes one out."""
    content = json.loads((path / name).read_text()) | changed
    (path / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# --- layouts ---------------------------------------------------------------------------------


def published(name: str) -> str:
    """The names of the first published checkpoints."""
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def nested(name: str) -> str:
    """The names of later transformers 4 releases."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + published(name).replace("language_model.model.", "language_model.", 1)


def current(name: str) -> str:
    """The names that modules have in transformers 5."""
    return nested(name).replace("vision_model.", "", 1)


@pytest.mark.parametrize("rename", [str, published, nested, current])
def test_every_layout_of_names_loads(small: Path, copy: Path, rename: Callable[[str], str]) -> None:
    expected = logits(load(small))
    rewrite(copy, lambda weights: {rename(name): tensor for name, tensor in weights.items()})
    assert torch.equal(logits(load(copy)), expected)
    in_memory = ("embed_tokens", "norm", "rotary_emb", "layers.0", "layers.2")
    spread = {"model.language_model.layers.1": "disk", "model.multi_modal_projector": "disk"}
    spread |= dict.fromkeys(("model.vision_tower", "model.image_newline", "lm_head"), "cpu")
    spread |= {f"model.language_model.{name}": "cpu" for name in in_memory}
    assert torch.equal(logits(load(copy, device_map=spread)), expected)


def test_control_the_layouts_differ_and_a_changed_tensor_is_seen(small: Path, copy: Path) -> None:
    names = list(load_file(small / "model.safetensors"))
    assert len({tuple(map(rename, names)) for rename in (str, published, nested, current)}) == 4
    rewrite(copy, lambda weights: {n: t * (1 + 0.01 * ("fc1" in n)) for n, t in weights.items()})
    assert not torch.allclose(logits(load(copy)), logits(load(small)))


def shard(path: Path) -> list[Path]:
    """Cut the weights into two files with an index."""
    weights = load_file(path / "model.safetensors")
    names = sorted(weights)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: files[index % 2] for index, name in enumerate(names)}
    for file in files:
        save_file({name: weights[name] for name in names if where[name] == file}, path / file, {"format": "pt"})
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return [path / file for file in files]


def test_shards_load(small: Path, copy: Path) -> None:
    shard(copy)
    assert torch.equal(logits(load(copy)), logits(load(small)))


def test_stored_numbers_become_the_format_that_is_asked_for(small: Path, copy: Path) -> None:
    rewrite(copy, lambda weights: {name: tensor.bfloat16() for name, tensor in weights.items()})
    model = load(copy, dtype="auto")
    assert (model.dtype, model.info.dtype) == (torch.float32, "float32")  # on a CPU
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}
    assert load(small, dtype="bfloat16").dtype == torch.bfloat16
    assert load(small, dtype=torch.float16).info.dtype == "float16"
    with pytest.raises(UsageError, match="int8"):
        load(small, dtype="int8")


def test_what_is_said_of_a_checkpoint(small: Path) -> None:
    model = load(small)
    info, text = model.info, model.checkpoint.config.text_config
    assert (info.id, info.kind, info.revision, info.path) == (str(small), "random", None, str(small))
    assert (info.device, info.device_name) == ("cpu", "CPU")
    assert info.parameters == sum(tensor.numel() for tensor in load_file(small / "model.safetensors").values())
    shape = info.shape
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads) == (3, 64, 4, 2)
    assert shape.head_dim * shape.heads == text.hidden_size
    assert (shape.vision_layers, shape.vision_patches, shape.patch_pixels) == (2, 49, 3 * 16**2)
    assert (model.checkpoint.visual_grid, model.checkpoint.max_positions, model.checkpoint.depth) == (4, 32768, 3)
    assert not any(module.training for module in model.network.modules())


# --- checkpoints that cannot be used ---------------------------------------------------------


def refused(path: Path | str, sentence: str, hint: str = "") -> HolitomError:
    with pytest.raises(HolitomError, match=sentence) as caught:
        load_model(path, device="cpu")
    error = caught.value
    assert isinstance(error, ModelError)
    assert error.hint
    assert hint in error.hint
    assert "\n" not in error.message
    assert error.message.endswith(".")
    return error


def test_a_file_is_not_a_checkpoint(small: Path) -> None:
    refused(small / "config.json", "is a file, not a checkpoint", "directory")


def test_no_such_directory(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "There is no directory")
    refused("no such thing", "There is no directory no such thing")


def test_an_empty_directory(tmp_path: Path) -> None:
    refused(tmp_path, r"has no config\.json")


@pytest.mark.parametrize("kind", ["llava", "llava_onevision1_5", "llava_next_video", "qwen2", None, ["llava"]])
def test_another_architecture(copy: Path, kind: object) -> None:
    edit(copy, "config.json", model_type=kind)
    refused(copy, "not LLaVA-OneVision")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"', b"\xff\xfe\x00", "NaN"])
def test_a_damaged_config(copy: Path, content: str | bytes) -> None:
    (copy / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(copy, r"config\.json (cannot be read|is not a JSON object)")


@pytest.mark.parametrize(
    ("part", "changed", "sentence"),
    [
        ("text_config", {"model_type": "llama"}, "not SigLIP and Qwen2"),
        ("vision_config", {"model_type": "clip_vision_model"}, "not SigLIP and Qwen2"),
        ("text_config", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "sliding"),
        ("text_config", {"hidden_size": "many"}, "cannot be loaded"),
        ("", {"vision_feature_layer": 5}, "vision_feature_layer 5 is outside the tower's 2 layers"),
        ("", {"vision_feature_layer": 0}, "vision_feature_layer 0 is outside"),
        ("", {"vision_feature_layer": [-1, -2]}, "are not supported"),
        ("", {"vision_feature_select_strategy": "default"}, "are not supported"),
    ],
)
def test_a_configuration_that_is_not_supported(copy: Path, part: str, changed: dict[str, Any], sentence: str) -> None:
    if part:
        content = json.loads((copy / "config.json").read_text())[part]
        content.pop("layer_types", None)
        changed = {part: content | changed}
    edit(copy, "config.json", **changed)
    refused(copy, sentence)


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    refused(copy, r"is incomplete: 1 of 1 weight files are missing \(model\.safetensors\)", "Copy the missing")
    torch.save({}, copy / "pytorch_model.bin")
    refused(copy, "is incomplete", "Only safetensors are loaded")


def test_a_missing_shard_is_named(copy: Path) -> None:
    shard(copy)[1].unlink()
    refused(copy, r"1 of 2 weight files are missing \(model-00002-of-00002\.safetensors\)")


def test_a_damaged_index(copy: Path) -> None:
    shard(copy)
    index = copy / "model.safetensors.index.json"
    for content in ("{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        index.write_text(content)
        refused(copy, "(cannot be read|is not a JSON object|names no weight files)")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_weight_file(copy: Path, share: float) -> None:
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    refused(copy, "cannot be loaded")


def test_a_page_instead_of_weights(copy: Path) -> None:
    (copy / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 15\n")
    refused(copy, "cannot be loaded")


@pytest.mark.parametrize("pattern", ["q_proj", "image_newline", "lm_head", "multi_modal", "patch_embedding"])
def test_missing_tensors_are_named(copy: Path, pattern: str) -> None:
    rewrite(copy, lambda weights: {name: tensor for name, tensor in weights.items() if pattern not in name})
    refused(copy, rf"lacks \d+ tensors?, .*{pattern}")


def test_tensors_of_another_shape(copy: Path) -> None:
    rewrite(
        copy, lambda weights: {n: (t[:-1] if "linear_2.weight" in n else t).contiguous() for n, t in weights.items()}
    )
    refused(copy, r"linear_2\.weight of shape \(63, 64\), but its config\.json asks for \(64, 64\)")


def test_tensors_that_are_not_needed_do_no_harm(small: Path, copy: Path) -> None:
    rewrite(copy, lambda weights: weights | {"something.else": torch.zeros(3)})
    assert torch.equal(logits(load(copy)), logits(load(small)))


def test_code_in_a_checkpoint_is_not_run(copy: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    edit(copy, "config.json", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})
    edit(copy, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    model = load(copy)
    assert model.chat.encode("What is it?")
    assert not (copy / "ran").exists()


# --- the hub's cache -------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_ID = "somebody/llava-onevision-small-hf"


@pytest.fixture
def hub_cache(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as the hub's client lays it out, with one checkpoint, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    repo = cache / f"models--{HUB_ID.replace('/', '--')}"
    shutil.copytree(small, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v1").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repo


@pytest.mark.parametrize("revision", [None, "main", "v1", COMMIT])
def test_a_hub_checkpoint_is_found_and_its_commit_named(hub_cache: Path, revision: str | None) -> None:
    model = load_model(HUB_ID, device="cpu", revision=revision)
    assert (model.info.id, model.info.revision) == (HUB_ID, COMMIT)
    assert model.info.path == str(hub_cache / "snapshots" / COMMIT)
    assert model.info.kind == "random"  # its configuration says so


def test_a_published_checkpoint_is_called_so(hub_cache: Path) -> None:
    edit(hub_cache / "snapshots" / COMMIT, "config.json", holitom_checkpoint=None)
    assert load_model(HUB_ID, device="cpu").info.kind == "published"


def test_a_revision_that_is_not_here(hub_cache: Path) -> None:
    with pytest.raises(ModelError, match=f"{HUB_ID} at v2 has not been downloaded") as caught:
        load_model(HUB_ID, device="cpu", revision="v2")
    assert f"holitom pull {HUB_ID}" in caught.value.hint


def test_a_checkpoint_that_is_not_here(hub_cache: Path) -> None:
    refused("somebody/else", "somebody/else has not been downloaded", "holitom pull somebody/else")


def test_a_half_downloaded_checkpoint(hub_cache: Path) -> None:
    (hub_cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    refused(HUB_ID, "is incomplete", f"holitom pull {HUB_ID}")


@pytest.mark.parametrize("name", ["0.5b-ov", "7b-si", "7B-ov", "72b-ov-chat"])
def test_the_originals_are_answered_with_their_conversions(hub_cache: Path, name: str) -> None:
    same = f"llava-hf/llava-onevision-qwen2-{name.lower()}-hf"
    refused(f"lmms-lab/llava-onevision-qwen2-{name}", "not in the transformers layout", f"--model {same}.")


@pytest.mark.parametrize("name", ["lmms-lab/LLaVA-OneVision-1.5-8B-Instruct", "lmms-lab/llava-onevision-2-7b"])
def test_later_architectures_are_refused(hub_cache: Path, name: str) -> None:
    refused(name, f"^{re.escape(name)} is another architecture")


def test_nothing_is_read_before_it_is_needed(copy: Path) -> None:
    """The weights may be nonsense as long as only the small files are asked for."""
    (copy / "model.safetensors").write_bytes(b"nonsense")
    checkpoint = read_checkpoint(locate(str(copy)))
    assert checkpoint.chat.encode("What is it?")
    assert checkpoint.preprocessor.height == 112


def test_an_original_without_a_conversion_is_answered_with_the_nearest(hub_cache: Path) -> None:
    nearest = "llava-hf/llava-onevision-qwen2-72b-ov-hf"
    refused("lmms-lab/llava-onevision-qwen2-72b-ov-sft", "not in the transformers layout", f"--model {nearest}.")


def test_only_hub_ids_have_revisions(small: Path) -> None:
    for name in ("demo", str(small)):
        with pytest.raises(UsageError, match="has no revisions"):
            locate(name, "v1")


def test_a_card_that_is_too_small_while_loading(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holitom_cli.model import weights

    def full_card(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(weights, "_read", full_card)
    with pytest.raises(DeviceError, match="is not enough to load") as caught:
        load(small)
    assert "--device-map auto" in caught.value.hint


def test_a_rehearsal_asks_for_the_kernels_of_the_first_frames(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU chooses them by the shapes of what is multiplied, and by how many frames come together."""
    multiplied: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    plain = torch.nn.functional.linear

    def heard(states: torch.Tensor, weight: torch.Tensor, *more: Any) -> torch.Tensor:
        multiplied.append((tuple(states.shape), tuple(weight.shape)))
        return plain(states, weight, *more)

    model = load_model(small, device="cpu")
    side = model.checkpoint.preprocessor.height
    monkeypatch.setattr(torch.nn.functional, "linear", heard)
    vision.encode(model, torch.randn(vision.CHUNK_FRAMES, 3, side, side))
    first = set(multiplied)
    multiplied.clear()
    loading._rehearse(model.checkpoint, torch.device("cpu"), torch.float32)
    assert set(multiplied) == first
    multiplied.clear()
    vision.encode(model, torch.zeros(vision.CHUNK_FRAMES, 3, side, side))
    assert set(multiplied) != first  # control: frames that are equal are one
