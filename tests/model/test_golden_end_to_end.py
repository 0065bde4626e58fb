"""From frames to answers, against arrays of the published implementation on one random checkpoint."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from holitom_cli.errors import ModelError
from holitom_cli.methods import Method
from holitom_cli.methods.full import Full
from holitom_cli.methods.holitom import HoliTom
from holitom_cli.model.decode import decode_one_token
from holitom_cli.model.loading import Model, load_model
from holitom_cli.model.prefill import Prefill, prefill
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.model.vision import attention_received, encode
from holitom_cli.types import VideoFeatures, VisualTokens
from tests.model.golden import Golden, differs, golden_paths, read_golden

LOGITS = 1e-4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        paths = golden_paths(metafunc.config, "stage3/*/golden.npz")
        metafunc.parametrize("case", paths, ids=lambda path: path.parent.name, indirect=True, scope="module")


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Golden:
    path: Path = request.param
    return read_golden(path)


@lru_cache
def loaded(path: Path) -> Model:
    return load_model(path, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def model(golden_root: Path) -> Model:
    return loaded(golden_root / "stage3" / "model")


def pixels_of(case: Golden) -> Tensor:
    return (case.tensor("frames_uint8").float() / 255 - 0.5) / 0.5


@pytest.fixture(scope="module")
def features(case: Golden, model: Model) -> VideoFeatures:
    return encode(model, pixels_of(case))


def holitom(case: Golden, **changed: Any) -> HoliTom:
    meta = case.meta
    settings = {
        "retain_ratio": meta["retain_ratio"],
        "tau": meta["tau"],
        "beta": meta["beta"],
        "neighbours": meta["K"],
        "inner_layer": meta["k"],
        "inner_ratio": meta["r"],
    }
    return HoliTom(**(settings | changed))


def method_of(case: Golden, variant: str) -> Method:
    if variant == "a":
        return Full()
    return holitom(case, inner_layer="off") if variant == "b" else holitom(case)


@torch.inference_mode()
def answer(model: Model, case: Golden, visual: VisualTokens, method: Method) -> tuple[Prefill, Tensor, list[int]]:
    """The prefilled prompt, the logits (8, V) of eight greedy steps, and their tokens."""
    ids, before = case.arrays["input_ids_placeholder"].tolist(), case.meta["n_ids_before"]
    embeds, span = prompt_embeds(model, ids[:before], visual, ids[before + 1 :])
    reductions = method.reductions(model.checkpoint.depth)
    state = prefill(model.language_model, model.lm_head, embeds, span, reductions, room=8)
    rows, tokens, position = [state.logits[0]], [int(state.logits[0].argmax())], state.next_position
    for _ in range(7):
        token = torch.tensor(tokens[-1:])
        rows.append(decode_one_token(model.language_model, model.lm_head, state.cache, token, position)[0])
        tokens.append(int(rows[-1].argmax()))
        position = position + 1
    return state, torch.stack(rows), tokens


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def test_the_tower_is_the_reference(case: Golden, model: Model, features: VideoFeatures) -> None:
    assert features.attention is not None
    assert_near(features.tokens, case.tensor("pooled_features"), 5e-6)
    assert_near(features.attention, case.tensor("pooled_attention"), 1e-7)


@torch.inference_mode()
def test_attention_received_is_the_reference(case: Golden, model: Model) -> None:
    last = model.vision_tower.encoder.layers[model.info.shape.vision_layers - 1]
    entering: list[Tensor] = []
    hook = last.layer_norm1.register_forward_pre_hook(lambda _module, args: entering.append(args[0]))
    encode(model, pixels_of(case), attention=False)
    hook.remove()
    assert_near(attention_received(last, torch.cat(entering)), case.tensor("vision_attention_received"), 1e-7)


def test_merging_is_the_reference(case: Golden, features: VideoFeatures) -> None:
    visual = holitom(case).compress(features)
    segments = [[part.start, part.stop - 1] for part in visual.segments]
    assert segments == case.arrays["segments"].tolist()
    assert visual.stages[0][1] == visual.source.numel() - int(case.arrays["total_reduced"])
    for index, (start, cut, stop) in enumerate(case.arrays["segment_rows"].tolist()):
        assert visual.cell[start:cut].tolist() == case.arrays[f"seg{index:02}_static_pos"].tolist()
        assert visual.cell[cut:stop].tolist() == case.arrays[f"seg{index:02}_dynamic_pos"].flatten().tolist()
    assert_near(visual.embeds, case.tensor("merged_video_tokens")[:-1], 1e-5)


@pytest.mark.parametrize("variant", ["a", "b", "c_causal"])
def test_the_answer_is_the_reference(case: Golden, model: Model, features: VideoFeatures, variant: str) -> None:
    method = method_of(case, variant)
    state, logits, tokens = answer(model, case, method.compress(features), method)
    assert_near(logits, case.tensor(f"{variant}_step_logits"), LOGITS)
    assert tokens == case.arrays[f"{variant}_greedy_tokens"].tolist()
    tail = model.lm_head(model.language_model.norm(state.hidden[0, -case.meta["n_ids_after"] :]))
    assert_near(tail, case.tensor(f"{variant}_prefill_tail_logits"), LOGITS)
    lengths = [int(length[0]) for length in state.cache.lengths]
    assert lengths == case.arrays[f"{variant}_kv_lengths"][-1].tolist()
    assert int(state.next_position[0]) == case.arrays[f"{variant}_step_position_ids"][1]


def test_the_prompt_is_the_reference(case: Golden, model: Model, features: VideoFeatures) -> None:
    ids, before = case.arrays["input_ids_placeholder"].tolist(), case.meta["n_ids_before"]
    embeds, span = prompt_embeds(model, ids[:before], Full().compress(features), ids[before + 1 :])
    expected = case.tensor("a_inputs_embeds_first_frame")
    assert_near(embeds[: len(expected)], expected, 5e-6)
    assert torch.equal(embeds[span.stop - 1], model.newline)
    assert len(embeds) == case.meta["a"]["seq_len"]


def test_the_merge_inside_is_the_reference(case: Golden, model: Model, features: VideoFeatures) -> None:
    method = holitom(case)
    state, _, _ = answer(model, case, method.compress(features), method)
    assert state.positions[0].tolist() == case.arrays["c_causal_kept_indices"].tolist()
    assert state.inside == ((case.meta["k"], case.meta["c_causal"]["n_kept_in_span"]),)


def test_control_a_layer_without_its_mask_does_not_match(case: Golden, model: Model, features: VideoFeatures) -> None:
    method = holitom(case)
    state, logits, _ = answer(model, case, method.compress(features), method)
    assert state.positions[0].tolist() == case.arrays["c_kept_indices"].tolist()  # the choice is the same
    assert differs(logits, case.tensor("c_step_logits"), 100 * LOGITS)


@pytest.mark.parametrize("changed", [{"retain_ratio": 0.23}, {"inner_ratio": 0.6}, {"inner_layer": 4}])
def test_control_a_wrong_setting_does_not_match(
    case: Golden, model: Model, features: VideoFeatures, changed: dict[str, float]
) -> None:
    method = holitom(case, **changed)
    _, logits, _ = answer(model, case, method.compress(features), method)
    assert differs(logits, case.tensor("c_causal_step_logits"), 100 * LOGITS)


def test_a_checkpoint_without_text_files_loads_and_says_so_when_asked(model: Model) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        _ = model.chat
    with pytest.raises(ModelError, match="no preprocessor file"):
        _ = model.preprocessor
