"""The merge inside the language model and decoding after it, against arrays of the published implementation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from holitom_cli.methods.holitom import HoliTom
from holitom_cli.model.decode import decode_one_token, generate
from holitom_cli.model.prefill import Prefill, prefill
from holitom_cli.types import Generation, LayerView
from tests.model.golden import Golden, differs, golden_paths, read_golden

HIDDEN, LOGITS = 2e-5, 5e-5  # what the reference was computed again to within


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        paths = golden_paths(metafunc.config, "stage2/*/golden.npz")
        metafunc.parametrize("case", paths, ids=lambda path: path.parent.name, indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Golden:
    path: Path = request.param
    return read_golden(path)


@lru_cache
def language_model(path: Path) -> Any:
    from transformers import Qwen2ForCausalLM

    return Qwen2ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


class Run(NamedTuple):
    """What our engine did with a case."""

    state: Prefill
    view: LayerView
    leaving: Tensor  # (L, H) of the layer before the merge
    entering: Tensor  # (L', H) the layer behind it
    logits: Tensor  # (8, V), the prompt's first
    tokens: list[int]
    lengths: list[list[int]]  # by step and layer


@contextmanager
def watched(layers: Any, merge_before: int) -> Iterator[dict[str, Tensor]]:
    """Record what leaves the layer before the merge and what enters the one behind it, in the prefill."""
    seen: dict[str, Tensor] = {}
    hooks = [
        layers[merge_before - 1].register_forward_hook(lambda _module, _args, out: seen.update(leaving=out[0])),
        layers[merge_before].register_forward_pre_hook(lambda _module, args: seen.update(entering=args[0][0])),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def run(case: Golden, root: Path, **changed: Any) -> Run:
    model = language_model(root / "stage2" / "models" / case.meta["model"])
    layer, embeds = case.meta["k"], case.tensor("inputs_embeds")
    span = range(case.meta["span_start"], case.meta["span_start"] + case.meta["span_length"])
    settings = {"inner_layer": layer, "inner_ratio": case.meta["r"]} | changed
    reductions = HoliTom(**settings).reductions(len(model.model.layers))
    views: list[LayerView] = []
    merge = reductions[layer]

    def apply(view: LayerView) -> tuple[Tensor, Tensor]:
        views.append(view)
        return merge.apply(view)

    with watched(model.model.layers, layer) as seen:
        state = prefill(model.model, model.lm_head, embeds, span, {layer: replace(merge, apply=apply)}, room=8)
    rows, tokens = [state.logits[0]], [int(state.logits[0].argmax())]
    lengths = [[int(length[0]) for length in state.cache.lengths]]
    position = state.next_position
    for _ in range(7):
        logits = decode_one_token(model.model, model.lm_head, state.cache, torch.tensor(tokens[-1:]), position)
        rows.append(logits[0])
        tokens.append(int(logits[0].argmax()))
        lengths.append([int(length[0]) for length in state.cache.lengths])
        position = position + 1
    return Run(state, views[0], seen["leaving"], seen["entering"], torch.stack(rows), tokens, lengths)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def test_the_merge_is_the_reference(case: Golden, golden_root: Path) -> None:
    done = run(case, golden_root)
    assert done.state.positions[0].tolist() == case.arrays["causal_kept_indices"].tolist()
    assert_near(done.view.attention[-1], case.tensor("causal_span_attention"), 1e-7)
    start, length = case.meta["span_start"], case.meta["span_length"]
    assert_near(done.view.hidden, case.tensor("causal_hidden_before_merge")[start : start + length], HIDDEN)
    assert_near(done.leaving, case.tensor("causal_hidden_before_merge"), HIDDEN)
    assert_near(done.entering, case.tensor("causal_hidden_after_merge"), HIDDEN)
    assert_near(done.state.hidden[0], case.tensor("causal_last_layer_hidden"), HIDDEN)
    assert done.state.inside == ((case.meta["k"], case.meta["num_kept_in_span"]),)


def test_decoding_is_the_reference(case: Golden, golden_root: Path) -> None:
    done = run(case, golden_root)
    assert_near(done.state.logits[0], case.tensor("causal_prefill_logits_last"), LOGITS)
    assert_near(done.logits, case.tensor("causal_step_logits"), LOGITS)
    assert done.tokens == case.arrays["causal_greedy_tokens"].tolist()
    assert int(done.state.next_position[0]) == case.meta["seq_len"] == case.arrays["causal_step_position_ids"][1]
    assert done.lengths == case.arrays["causal_kv_lengths"].tolist()


def test_generating_gives_the_same_tokens(case: Golden, golden_root: Path) -> None:
    model = language_model(golden_root / "stage2" / "models" / case.meta["model"])
    span = range(case.meta["span_start"], case.meta["span_start"] + case.meta["span_length"])
    method = HoliTom(inner_layer=case.meta["k"], inner_ratio=case.meta["r"])
    reductions = method.reductions(len(model.model.layers))
    state = prefill(model.model, model.lm_head, case.tensor("inputs_embeds"), span, reductions, room=8)
    ids = list(generate(model.model, model.lm_head, state, Generation(max_new_tokens=8), frozenset()))
    assert ids == case.arrays["causal_greedy_tokens"].tolist()


def test_control_a_layer_without_its_mask_does_not_match(case: Golden, golden_root: Path) -> None:
    done = run(case, golden_root)
    assert differs(done.leaving, case.tensor("hidden_before_merge"), 100 * HIDDEN)
    assert differs(done.entering, case.tensor("hidden_after_merge"), 100 * HIDDEN)
    assert differs(done.logits, case.tensor("step_logits"), 100 * LOGITS)


def test_control_another_ratio_does_not_match(case: Golden, golden_root: Path) -> None:
    done = run(case, golden_root, inner_ratio=case.meta["r"] * 0.9)
    assert differs(done.entering, case.tensor("causal_hidden_after_merge"), HIDDEN)
    assert differs(done.logits, case.tensor("causal_step_logits"), 100 * LOGITS)
