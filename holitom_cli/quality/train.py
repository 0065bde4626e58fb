"""Train the small model on clips of the small world, from scratch, on one GPU.

    python -m holitom_cli.quality.train OUT_DIRECTORY --minutes 20

First the tower alone, on single frames: what is in each cell, named with the language model's own words, and where.
Then the language model, on clips with many questions each, while the tower and the projector rest. Every visual token
is kept throughout: compression stays training-free. State is saved as it goes, and a run that finds some goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from holitom_cli.model.vision import pool
from holitom_cli.quality.batches import Batch, Recipe, Stream, Writer
from holitom_cli.quality.checkpoint import Shape, build_config, write_text_files
from holitom_cli.quality.draw import SIDE, Sketch, coverage, paint
from holitom_cli.quality.targets import CLASSES, IGNORED, events, looks, owners
from holitom_cli.quality.world import COLOURS, FRAMES, SHAPES

_NOISE = 0.015  # of the sensor, in training; a share of full scale
_CLIPS_FROM = 1 << 32  # numbers of the clips that come with questions; those of the tower's stage start at 0
_WARMUP_STEPS, _LOG_STEPS, _TEST_STEPS, _SAVE_SECONDS = 200, 50, 500, 120.0
_EVENTS_AFTER = 3  # layers of the language model, of 7, after which visual tokens know what has happened to them
_HINT_AFTER = 4  # layers after which answers are first looked for: those that the merge inside leaves whole
_SALIENCY, _EVENTS, _HINT = 0.1, 0.3, 0.3  # weights of losses beside the main ones
_SHARED, _SHRINK, _SIZE = 16, 0.3, 0.1  # directions that places differ in, what is left of what is shared, and of all
_SETTLING_CLIPS = 64  # to learn from what tokens share
_LEAST_PACE = 0.04  # of the positions a token takes, when they are stretched


class Views(NamedTuple):
    """What the language model says about clips."""

    answers: Tensor  # (B, T, V) logits behind every text token
    hints: Tensor  # (B, T, V) those that earlier layers would give
    visual: Tensor  # (B, F P, D) states of the visual tokens half-way


def pixels_of(plan: Sketch) -> Tensor:
    """Painted, noisy and normalised frames (B, F, 3, side, side)."""
    pictures = paint(plan)
    pictures = (pictures + _NOISE * torch.randn_like(pictures)).mul(255).round().clamp(0, 255)
    return pictures.div(127.5).sub(1)


def tower_states(network: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """States of all patches (n, grid**2, C) of frames (n, 3, side, side), after the last layer and before it."""
    entering = hidden = network.model.vision_tower.embeddings(pixels)
    for layer in network.model.vision_tower.encoder.layers:
        entering, hidden = hidden, layer(hidden, None)
    return hidden, entering


def tokens_of(network: Any, states: Tensor) -> Tensor:
    """Visual tokens (n, P, D) of frames from their patches' states."""
    tokens: Tensor = pool(network.model.multi_modal_projector(states))
    return tokens


def log_attention(layer: Any, entering: Tensor) -> Tensor:
    """Logarithm of the attention that patches receive in a tower layer, mean over heads and queries: (n, grid**2)."""
    attention = layer.self_attn
    normed = layer.layer_norm1(entering)
    query, key = (
        projection(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj)
    )
    received: Tensor = (query @ key.transpose(-1, -2) * attention.scale).float().softmax(-1).mean((1, 2))
    return received.log()


def views(network: Any, tokens: Tensor, places: Tensor, batch: Batch, before: Tensor) -> Views:
    """What the language model says; questions about a clip do not see each other.

    Args:
        network: the library's model.
        tokens: (B, F P, D) visual tokens.
        places: (B, F P) their positions, counted from the first one's.
        batch: what is asked.
        before: (t,) text tokens before the video.
    """
    language = network.model.language_model
    clips, started = len(tokens), len(before)
    embed = language.embed_tokens
    newline = network.model.image_newline.expand(clips, 1, -1)
    prefix = torch.cat((embed(before).expand(clips, -1, -1), tokens, newline), 1)
    hidden = torch.cat((prefix, embed(batch.ids)), 1)
    length = prefix.shape[1]
    rope = language.rotary_emb(hidden, _positions(places, batch.place, started))
    own = batch.segment[:, :, None] == batch.segment[:, None, :]
    mask = torch.cat((torch.ones_like(own[:, :, :1]).expand(-1, -1, length), own.tril()), 2)[:, None]
    levels = []
    for layer in language.layers:
        hidden = hidden + _attend(layer.self_attn, layer.input_layernorm(hidden), rope, length, mask)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        levels.append(hidden)
    answers, hints = (network.lm_head(language.norm(level[:, length:])) for level in (hidden, levels[:_HINT_AFTER][-1]))
    return Views(answers, hints, levels[:_EVENTS_AFTER][-1][:, started : length - 1])


def _positions(places: Tensor, text: Tensor, started: int) -> Tensor:
    """Positions of the words before the video, of its tokens, of the newline, and of the text: (B, S) float32."""
    first = torch.arange(started, device=places.device).expand(len(places), -1)
    video = places.float() + started
    newline = video[:, -1:] + 1
    return torch.cat((first.float(), video, newline, newline + 1 + text), 1)


def _attend(attention: Any, states: Tensor, rope: tuple[Tensor, Tensor], length: int, mask: Tensor) -> Tensor:
    """Causal attention in the prefix; text attends to the whole prefix and to its own question."""
    cos, sin = (part[:, None] for part in rope)
    query, key, value = (
        projection(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    # Turned in float32, under autocast too; cast back, they take half the memory until the backward pass.
    query, key = ((part * cos + _half_turned(part) * sin).to(value.dtype) for part in (query, key))
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    before, after = query.split((length, query.shape[2] - length), 2)
    prefix = F.scaled_dot_product_attention(before, key[:, :, :length], value[:, :, :length], is_causal=True)
    text = F.scaled_dot_product_attention(after, key, value, attn_mask=mask)
    joined = torch.cat((prefix, text), 2).transpose(1, 2).flatten(2)
    return attention.o_proj(joined)  # type: ignore[no-any-return]


def _half_turned(states: Tensor) -> Tensor:
    """The second half of the features, negated, before the first, as rotary positions want it."""
    one, other = states.chunk(2, -1)
    return torch.cat((-other, one), -1)


def places_of(clips: int, frames: int, cells: int, device: torch.device) -> Tensor:
    """Positions of visual tokens, (clips, frames * cells): in a quarter of the clips as they are, else stretched.

    Videos of other lengths, and compressed ones, put tokens at other distances from each other; a model that has only
    seen one distance between frames would count on it. Stretched positions rise at a random pace for the clip, with
    random variation for each frame and token.
    """
    pace = torch.empty(clips, 1, 1, device=device).uniform_(math.log(_LEAST_PACE), 0).exp()
    frame = torch.randn(clips, frames, 1, device=device).mul(0.8).exp()
    rises = (pace * frame * 2 * torch.rand(clips, frames, cells, device=device)).flatten(1)
    stretched = torch.rand(clips, 1, device=device) < 0.75
    return torch.where(stretched, rises, 1.0).cumsum(1) - 1


def waves(side: int, width: int) -> Tensor:
    """Where position embeddings start from: sines and cosines of row and column, (side**2, width).

    From random ones a tower needs thousands of steps before it knows which patches are neighbours.
    """
    cycles = torch.logspace(math.log2(1 / 4), math.log2(side / 4), width // 4, base=2)  # across the picture
    angles = torch.arange(side)[:, None] / side * cycles * 2 * math.pi
    line = torch.cat((angles.sin(), angles.cos()), 1)  # (side, width / 2)
    return torch.cat((line.repeat_interleave(side, 0), line.repeat(side, 1)), 1)


def settle(projector: Any, background: Tensor, things: Tensor) -> None:
    """Make what visual tokens share small beside what tells them apart, and all of them as small as words.

    The tower learns places so well that most of a token says where it is, and much of a thing's that there is one: a
    cell would resemble itself whether or not a thing is there, and a thing itself after its colour has changed. Linear
    and done once, this takes nothing away that the language model could not find again.

    Args:
        projector: its last layer is changed.
        background: (n, D) visual tokens of cells without things.
        things: (m, D) those with.
    """
    middle = background.mean(0)
    places = torch.pca_lowrank(background, _SHARED)[2]  # (D, _SHARED), about the mean
    shared = torch.cat((places, (things.mean(0) - middle)[:, None]), 1)
    directions = torch.linalg.qr(shared).Q
    shrink = torch.eye(len(middle), device=middle.device) - (1 - _SHRINK) * directions @ directions.T
    last = projector.linear_2
    last.weight.data = _SIZE * shrink @ last.weight
    last.bias.data = _SIZE * (shrink @ (last.bias - middle) + _SHRINK * middle)


def masked_mean(losses: Tensor, mask: Tensor) -> Tensor:
    """Mean of the losses that count."""
    return (losses * mask).sum() / mask.sum().clamp_min(1)


class Trainer:
    """The network, its optimiser, and what has been done so far."""

    def __init__(self, recipe: Recipe, out: Path, device: torch.device, shape: Shape | None = None) -> None:
        from transformers import LlavaOnevisionForConditionalGeneration

        torch.manual_seed(recipe.seed)
        self.recipe, self.out, self.device = recipe, out, device
        self.shape = shape or Shape()
        self.writer, self.examiner = Writer(recipe), Writer(recipe, test=True)
        config = build_config(self.shape, self.writer.words)
        network: Any = LlavaOnevisionForConditionalGeneration(config)
        self.patches = self.shape.image // self.shape.patch
        table = network.model.vision_tower.embeddings.position_embedding.weight
        table.data.copy_(waves(self.patches, self.shape.tower_width))
        self.network = network.to(device)
        self.grid = math.ceil(self.patches / 2)
        self.heads = self._heads().to(device)
        self.before = torch.tensor(self.writer.before, device=device)
        self.names = {
            kind: torch.tensor([self.writer.word(name) for name in names], device=device)
            for kind, names in (("shape", SHAPES), ("colour", COLOURS))
        }
        self.seconds = {"tower": 0.0, "clips": 0.0}
        self.steps = {"tower": 0, "clips": 0}
        self.settled = False
        self.optimiser = self._optimiser()
        # On a GPU small layers wait for memory, not for arithmetic: compiled, they read and write far less.
        slow = device.type != "cuda"
        self.tower_states: Any = torch.compile(tower_states, dynamic=False, disable=slow)
        self.views: Any = torch.compile(views, dynamic=False, disable=slow)
        out.mkdir(parents=True, exist_ok=True)

    def _heads(self) -> nn.ModuleDict:
        """What reads labels from visual tokens; no part of the checkpoint."""
        looks_at = {"there": 2, "row": self.grid, "column": self.grid, "offset": 2, "late": 1}
        return nn.ModuleDict({name: nn.Linear(self.shape.width, size) for name, size in (looks_at | CLASSES).items()})

    def _optimiser(self) -> torch.optim.Optimizer:
        parameters = [*self.network.parameters(), *self.heads.parameters()]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.recipe.rate, betas=(0.9, 0.98), fused=self.device.type == "cuda")

    def run(self) -> None:
        """Both stages, as far as they are not done yet; then write the checkpoint."""
        self._resume()
        self._stage("tower", self.recipe.tower_minutes, self._tower_loss)
        self._settle()
        self._stage("clips", self.recipe.minutes - self.recipe.tower_minutes, self._clip_loss)
        self.save()
        self.log(stage="test", **self.test(64))
        self.export(self.out / "checkpoint")

    def _stage(self, name: str, minutes: float, loss_of: Any) -> None:
        """Train for some minutes in all, counting those of earlier runs."""
        limit = minutes * 60
        if self.seconds[name] >= limit:
            return
        losses: list[dict[str, Tensor]] = []
        saved = last = monotonic()
        for batch in self._loader(name):
            self._set_rate(self.seconds[name] / limit, self.steps[name])
            losses.append(self._step(loss_of(batch)))
            self.steps[name] += 1
            done = self.seconds[name] >= limit
            if done or self.steps[name] % _LOG_STEPS == 0:
                means = {part: float(torch.stack([loss[part] for loss in losses]).mean()) for part in losses[0]}
                self.log(stage=name, **means, memory_gb=self._peak_gb())
                losses.clear()
            if name == "clips" and self.steps[name] % _TEST_STEPS == 0:
                self.log(stage="test", **self.test(4))
            now = monotonic()
            self.seconds[name] += now - last
            last = now
            if now - saved > _SAVE_SECONDS:
                self.save()
                saved = now
            if done:
                break

    def _loader(self, stage: str) -> Any:
        """Batches from the first clip on that no earlier step of either stage has used."""
        used = self.steps[stage] * self.recipe.clips
        if stage == "tower":
            stream = Stream(replace(self.recipe, questions=0), used)  # its labels come from the sketch
        else:
            stream = Stream(self.recipe, _CLIPS_FROM + used)
        workers = self.recipe.workers
        return DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)

    def _peak_gb(self) -> float:
        """Most device memory in use since the start, in 1e9 bytes; 0 on a CPU, which does not count it."""
        return round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2) if self.device.type == "cuda" else 0.0

    def _set_rate(self, progress: float, step: int) -> None:
        """Warm up, then follow a cosine down to a hundredth."""
        warmup = min(1.0, (step + 1) / _WARMUP_STEPS)
        cosine = 0.505 + 0.495 * math.cos(math.pi * min(1.0, progress))
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate * warmup * cosine

    def _step(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Follow the gradient of the sum of some losses."""
        self.optimiser.zero_grad(set_to_none=True)
        sum(losses.values(), torch.zeros((), device=self.device)).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _tower_loss(self, batch: Batch) -> dict[str, Tensor]:
        """What the visual tokens of some frames of each clip say, and where the tower's last layer looks."""
        plan = batch.sketch.to(self.device)
        plan = plan.only(self._some_frames(plan))
        with self._autocast():
            states, entering = self.tower_states(self.network, pixels_of(plan).flatten(0, 1))
            tokens = tokens_of(self.network, states)
            received = log_attention(self.network.model.vision_tower.encoder.layers[-1], entering)
        return {**self._look_losses(tokens, plan), "saliency": _SALIENCY * self._saliency_loss(received, plan)}

    @torch.no_grad()
    def _settle(self) -> None:
        """Once between the stages."""
        if self.settled:
            return
        plan = self.writer.batch(list(range(_CLIPS_FROM - _SETTLING_CLIPS, _CLIPS_FROM))).sketch.to(self.device)
        plan = plan.only(self._some_frames(plan))
        tokens = tokens_of(self.network, tower_states(self.network, pixels_of(plan).flatten(0, 1))[0])
        there = owners(plan, self.grid).flatten(0, 1) >= 0
        settle(self.network.model.multi_modal_projector, tokens[~there], tokens[there])
        self.settled = True

    def _some_frames(self, plan: Sketch) -> Tensor:
        """Random frames (B, f) of each clip, as many in all as the recipe says."""
        clips = len(plan.time)
        return torch.randint(FRAMES, (clips, max(1, self.recipe.frames // clips)), device=self.device)

    def _look_losses(self, tokens: Tensor, plan: Sketch) -> dict[str, Tensor]:
        """What is where in each cell, how far from its centre, and how late? For tokens (n, P, D) of n frames.

        Shapes and colours are read with the word embeddings, so that a thing's tokens come to resemble its name.
        Nothing in a frame by itself asks for the place, yet without it no direction can be told afterwards.
        """
        truth = looks(plan, self.grid)
        tokens = tokens.flatten(0, 1)
        cell = torch.arange(self.grid**2, device=self.device).repeat(len(tokens) // self.grid**2)
        embeddings = self.network.model.language_model.embed_tokens.weight
        with self._autocast():
            read = {name: self.heads[name](tokens).float() for name in self.heads if name not in CLASSES}
            named = {kind: (tokens @ embeddings[ids].T).float() for kind, ids in self.names.items()}
        off = F.smooth_l1_loss(read["offset"], truth.offset.flatten(0, 2), reduction="none").sum(-1)
        return {
            "there": F.cross_entropy(read["there"], truth.there.flatten()),
            "shape": F.cross_entropy(named["shape"], truth.shape.flatten(), ignore_index=IGNORED),
            "colour": F.cross_entropy(named["colour"], truth.colour.flatten(), ignore_index=IGNORED),
            "row": 0.3 * F.cross_entropy(read["row"], cell // self.grid),
            "column": 0.3 * F.cross_entropy(read["column"], cell % self.grid),
            "offset": masked_mean(off, truth.there.flatten()),
            "late": 10 * F.mse_loss(read["late"][:, 0], truth.late.flatten()),
        }

    def _saliency_loss(self, received: Tensor, plan: Sketch) -> Tensor:
        """How far the attention received, log (n, grid**2), is from resting evenly on the patches with things.

        Captions teach that to published towers: attention falls on what a picture shows. A tower that only learns
        labels of patches has no such reason, and choosing tokens by attention would be choosing blindly.
        """
        covered = torch.stack([coverage(where, SIDE // 2) for where in plan.where]).amax(0)[:, :, 0]
        wanted = (F.adaptive_avg_pool2d(covered, self.patches).flatten(0, 1).flatten(1) > 0.2).float()
        return masked_mean(-received, wanted) - math.log(self.patches**2)

    def _clip_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The answers, the same from earlier layers, and what has happened to each visual token's thing."""
        batch = self._there(batch)
        happened = events(batch.sketch, self.grid)
        clips = len(batch.ids)
        with torch.no_grad(), self._autocast():
            states, _ = self.tower_states(self.network, pixels_of(batch.sketch).flatten(0, 1))
            tokens = tokens_of(self.network, states).view(clips, FRAMES * self.grid**2, -1)
        places = places_of(clips, FRAMES, self.grid**2, self.device)
        with self._autocast():
            said = self.views(self.network, tokens, places, batch, self.before)
            read = {name: self.heads[name](said.visual).float() for name in happened}
        target = batch.target.flatten()
        losses = {
            "answers": F.cross_entropy(said.answers.float().flatten(0, 1), target, ignore_index=IGNORED),
            "hints": _HINT * F.cross_entropy(said.hints.float().flatten(0, 1), target, ignore_index=IGNORED),
        }
        for name, truth in happened.items():
            loss = F.cross_entropy(read[name].flatten(0, 1), truth.flatten(), ignore_index=IGNORED)
            losses[name] = _EVENTS * loss
        return losses

    def _there(self, batch: Batch) -> Batch:
        ids, segment, place, target = (part.to(self.device) for part in batch[1:5])
        return Batch(batch.sketch.to(self.device), ids, segment, place, target, batch.kinds)

    @torch.no_grad()
    def test(self, batches: int) -> dict[str, Any]:
        """Share of right answers by kind, on test clips in test wordings: every token of the answer has to be right."""
        right: dict[str, list[bool]] = defaultdict(list)
        for index in range(batches):
            batch = self._there(self.examiner.batch(list(range(index * 16, index * 16 + 16))))
            with self._autocast():
                states, _ = tower_states(self.network, pixels_of(batch.sketch).flatten(0, 1))
                tokens = tokens_of(self.network, states).view(16, FRAMES * self.grid**2, -1)
                places = torch.arange(tokens.shape[1], device=self.device).expand(16, -1)
                scores = views(self.network, tokens, places, batch, self.before).answers
            wrong = (scores.argmax(-1) != batch.target) & (batch.target != IGNORED)
            for kinds, failed in zip(batch.kinds, (wrong * batch.segment).tolist(), strict=True):
                for number, kind in enumerate(kinds, 1):
                    right[kind].append(number not in failed)
        return accuracy_of(right)

    def log(self, **values: Any) -> None:
        """Add a line to the log, which is also the program's output."""
        row = {"seconds": round(sum(self.seconds.values()), 1), "steps": dict(self.steps), **values}
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)  # noqa: T201  # a maintainer's program, with no other way to speak

    def save(self) -> None:
        """Everything that a later run needs to go on; the old state stays until the new one is whole."""
        state = {
            "network": self.network.state_dict(),
            "heads": self.heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "seconds": self.seconds,
            "steps": self.steps,
            "settled": self.settled,
        }
        torch.save(state, self.out / "state.new")
        (self.out / "state.new").replace(self.out / "state.pt")

    def _resume(self) -> None:
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.seconds, self.steps, self.settled = state["seconds"], state["steps"], state["settled"]

    def export(self, directory: Path) -> None:
        """The checkpoint in bfloat16, as a published one is laid out."""
        self.network.to(torch.bfloat16).save_pretrained(directory)
        (directory / "model.safetensors").chmod(0o644)  # saved readable by its owner alone
        write_text_files(directory, self.writer.words, self.shape.image)


def accuracy_of(right: Mapping[str, list[bool]]) -> dict[str, Any]:
    """Share of right answers in all and by kind."""
    everything = [value for values in right.values() for value in values]
    share = {kind: round(sum(values) / len(values), 3) for kind, values in sorted(right.items())}
    return {"questions": len(everything), "accuracy": sum(everything) / len(everything), "by_kind": share}


def main() -> None:
    """Train with the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0, help="of training in all")
    parser.add_argument("--tower-minutes", type=float, default=3.0, help="of these on single frames")
    parser.add_argument("--clips", type=int, default=64, help="in a step")
    parser.add_argument("--frames", type=int, default=1024, help="in a step of the tower's own task")
    parser.add_argument("--questions", type=int, default=16, help="about each clip, at most")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--workers", type=int, default=12, help="processes that draw up clips; 0 = none beside")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the noise")
    options = parser.parse_args()
    settings = vars(options)
    out = settings.pop("out")
    recipe = Recipe(**settings)
    Trainer(recipe, out, torch.device("cuda" if torch.cuda.is_available() else "cpu")).run()


if __name__ == "__main__":
    main()
