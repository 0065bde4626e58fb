"""Train the small model on clips of the small world, from scratch, on one GPU.

    python -m holitom_cli.quality.train OUT_DIRECTORY --minutes 25

First the tower alone, on single frames: what is in each cell, and which cell is it? Then everything on clips with
several questions each, and the tower's own task goes on beside, for without it the tower forgets shapes before the
language model has learned to look at them. Every visual token is kept throughout: compression stays training-free.
State is saved as it goes, and a run that finds some goes on with it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from holitom_cli.model.vision import pool
from holitom_cli.quality.checkpoint import CHAT_TEMPLATE, Shape, build_config, build_tokenizer, write_text_files
from holitom_cli.quality.draw import RGB, SIDE, Sketch, coverage, paint, sketch
from holitom_cli.quality.questions import WORDINGS, ask_about
from holitom_cli.quality.world import COLOURS, FRAMES, SHAPES, make_clip, test_seed, train_seed

_NOISE = 0.015  # of the sensor, in training; a share of full scale
_QUESTION_TOKENS = 24  # room for a question with its answer and the words of the chat template
_IGNORED = -100
_CLIPS_FROM = 1 << 32  # numbers of the clips that come with questions; those of the tower's stage start at 0
_WARMUP_STEPS, _LOG_STEPS, _TEST_STEPS, _SAVE_SECONDS = 200, 50, 500, 120.0
_GAP = "?question?"  # where a question goes in the chat template


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the run does."""

    minutes: float
    tower_minutes: float
    clips: int = 64  # in a step
    questions: int = 16  # about each clip, at most
    frames: int = 512  # in a step of the tower's own task
    rate: float = 1e-3
    workers: int = 12
    seed: int = 0


class Batch(NamedTuple):
    """Clips and what is asked about them; B clips, T text tokens."""

    sketch: Sketch
    ids: Tensor  # (B, T) questions and answers, one after another
    segment: Tensor  # (B, T) which question a token belongs to, from 1; 0 = padding
    place: Tensor  # (B, T) position behind the video
    target: Tensor  # (B, T) the token to predict here, where it belongs to an answer
    kinds: list[list[str]]  # of the questions of every clip


def words_of_the_world() -> list[str]:
    """Every word that questions and answers use."""
    text = " ".join(wording for wordings in WORDINGS.values() for wording in wordings)
    text += " yes no beginning middle end one two three four left right up down top bottom " + " ".join(
        SHAPES + COLOURS
    )
    for name in ("thing", "shape", "colour", "one", "other"):
        text = text.replace("{" + name + "}", name)
    plain = "".join(letter if letter.isalpha() else " " for letter in text)
    return sorted({word for part in plain.split() for word in (part, part.lower())})


class Writer:
    """Turns clips into batches, with the words that training or testing uses."""

    def __init__(self, recipe: Recipe, *, test: bool = False) -> None:
        self.recipe, self.test = recipe, test
        self.words = build_tokenizer(words_of_the_world())
        self.end = self.words.eos_token_id
        self.room = recipe.questions * _QUESTION_TOKENS  # text tokens of a clip
        content = [{"type": "video"}, {"type": "text", "text": _GAP}]
        text = self.words.apply_chat_template(
            [{"role": "user", "content": content}],  # type: ignore[arg-type]  # typed for plain texts alone
            chat_template=CHAT_TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
        )
        before, _, after = str(text).partition("<video>")
        self.before = self._encode(before)  # text tokens before the video
        self._around = after.split(_GAP)

    def batch(self, numbers: list[int]) -> Batch:
        """The clips with these numbers."""
        seed = test_seed if self.test else train_seed
        clips = [make_clip(seed(number)) for number in numbers]
        rows, kinds = [], []
        for clip in clips:
            asked = ask_about(clip, self.recipe.questions, test=self.test)
            row, kept = self._row([(question.text, question.answer) for question in asked])
            rows.append(row)
            kinds.append([question.kind for question in asked[:kept]])
        ids, segment, place, target = torch.tensor(rows).unbind(1)
        return Batch(sketch(clips), ids, segment, place, target, kinds)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.words(text, add_special_tokens=False)["input_ids"]
        return ids

    def _row(self, pairs: list[tuple[str, str]]) -> tuple[list[list[int]], int]:
        """Ids, segments, places and targets of one clip, and how many questions fit in."""
        ids: list[int] = []
        segment: list[int] = []
        place: list[int] = []
        target: list[int] = []
        for number, (question, answer) in enumerate(pairs, 1):
            after = self._encode(question.join(self._around))
            said = [*self._encode(f" {answer}"), self.end]
            tokens = after + said[:-1]
            if len(ids) + len(tokens) > self.room:
                return self._padded(ids, segment, place, target), number - 1
            ids += tokens
            segment += [number] * len(tokens)
            place += range(len(tokens))
            target += [_IGNORED] * (len(after) - 1) + said
        return self._padded(ids, segment, place, target), len(pairs)

    def _padded(self, *rows: list[int]) -> list[list[int]]:
        fills = (0, 0, 0, _IGNORED)
        return [row + [fill] * (self.room - len(row)) for row, fill in zip(rows, fills, strict=True)]


class Stream(IterableDataset[Batch]):
    """Endless training batches, drawn up by the loader's workers; every clip is seen once."""

    def __init__(self, recipe: Recipe, first: int) -> None:
        self.recipe, self.first = recipe, first

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        writer = Writer(self.recipe)
        number = self.first + worker * self.recipe.clips
        while True:
            yield writer.batch(list(range(number, number + self.recipe.clips)))
            number += workers * self.recipe.clips


def pixels_of(plan: Sketch) -> Tensor:
    """Painted, noisy and normalised frames (B, F, 3, side, side)."""
    pictures = paint(plan)
    pictures = (pictures + _NOISE * torch.randn_like(pictures)).mul(255).round().clamp(0, 255)
    return pictures.div(127.5).sub(1)


def cell_labels(plan: Sketch, grid: int) -> Tensor:
    """What covers most of each cell: (B, F, grid**2) int64, 0 = background, else 1 + shape * colours + colour."""
    table = torch.tensor([RGB[name] for name in COLOURS], device=plan.where.device)
    labels = torch.zeros(*plan.scene.shape, grid**2, dtype=torch.int64, device=plan.where.device)
    for where, colour in zip(plan.where, plan.colour, strict=True):
        share = F.adaptive_avg_pool2d(coverage(where, SIDE)[:, :, 0], grid).flatten(2)
        which = (colour[..., None, :] - table).abs().sum(-1).argmin(-1)
        label = 1 + where[..., 0].long() * len(COLOURS) + which
        labels = torch.where(share > 0.3, label[..., None], labels)
    return labels


def tower_states(network: Any, pixels: Tensor) -> Tensor:
    """States of all patches (n, grid**2, C) of frames (n, 3, side, side)."""
    hidden: Tensor = network.model.vision_tower.embeddings(pixels)
    for layer in network.model.vision_tower.encoder.layers:
        hidden = layer(hidden, None)
    return hidden


def answer_logits(network: Any, states: Tensor, batch: Batch, before: Tensor) -> Tensor:
    """Logits behind every text token; questions about a clip do not see each other.

    Args:
        network: the library's model.
        states: (B F, grid**2, C) of all frames, from the tower.
        batch: what is asked.
        before: (t,) text tokens before the video.

    Returns:
        (B, T, V).
    """
    language = network.model.language_model
    clips = len(batch.ids)
    tokens = pool(network.model.multi_modal_projector(states))
    video = tokens.view(clips, -1, tokens.shape[-1])
    newline = network.model.image_newline.expand(clips, 1, -1)
    embed = language.embed_tokens
    prefix = torch.cat((embed(before).expand(clips, -1, -1), video, newline), 1)
    hidden = torch.cat((prefix, embed(batch.ids)), 1)
    length = prefix.shape[1]
    positions = torch.arange(length, device=hidden.device).expand(clips, -1)
    rope = language.rotary_emb(hidden, torch.cat((positions, length + batch.place), 1))
    own = batch.segment[:, :, None] == batch.segment[:, None, :]
    mask = torch.cat((torch.ones_like(own[:, :, :1]).expand(-1, -1, length), own.tril()), 2)[:, None]
    for layer in language.layers:
        hidden = hidden + _attend(layer.self_attn, layer.input_layernorm(hidden), rope, length, mask)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return network.lm_head(language.norm(hidden[:, length:]))  # type: ignore[no-any-return]


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
        self.network = network.to(device)
        self.grid = self.shape.image // self.shape.patch
        self.heads = nn.ModuleDict(
            {
                "what": nn.Linear(self.shape.tower_width, 1 + len(SHAPES) * len(COLOURS)),
                "row": nn.Linear(self.shape.tower_width, self.grid),
                "column": nn.Linear(self.shape.tower_width, self.grid),
            }
        ).to(device)
        self.before = torch.tensor(self.writer.before, device=device)
        self.seconds = {"tower": 0.0, "clips": 0.0}
        self.steps = {"tower": 0, "clips": 0}
        self.optimiser = self._optimiser()
        out.mkdir(parents=True, exist_ok=True)

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
        """The tower's own task on some frames of each clip."""
        plan = batch.sketch.to(self.device)
        plan = plan.only(self._some_frames(plan))
        with self._autocast():
            states = tower_states(self.network, pixels_of(plan).flatten(0, 1))
        return self._cell_losses(states, plan)

    def _clip_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The answers, and the tower's own task on some of the frames, which are encoded anyway."""
        batch = self._there(batch)
        some = self._some_frames(batch.sketch)
        rows = torch.arange(len(some), device=self.device)[:, None]
        with self._autocast():
            states = tower_states(self.network, pixels_of(batch.sketch).flatten(0, 1))
            scores = answer_logits(self.network, states, batch, self.before)
        answers = F.cross_entropy(scores.float().flatten(0, 1), batch.target.flatten(), ignore_index=_IGNORED)
        chosen = states.unflatten(0, batch.sketch.time.shape)[rows, some].flatten(0, 1)
        return {"answers": answers, **self._cell_losses(chosen, batch.sketch.only(some))}

    def _some_frames(self, plan: Sketch) -> Tensor:
        """Random frames (B, f) of each clip, as many in all as the recipe says."""
        clips = len(plan.time)
        return torch.randint(FRAMES, (clips, max(1, self.recipe.frames // clips)), device=self.device)

    def _cell_losses(self, states: Tensor, plan: Sketch) -> dict[str, Tensor]:
        """What covers each cell, and where the cell is: tower states (n, grid**2, C) of the plan's n frames.

        Nothing in a frame by itself asks for the place, yet without it no direction can be told afterwards.
        """
        with self._autocast():
            scores = {name: head(states).flatten(0, 1).float() for name, head in self.heads.items()}
        cells = torch.arange(self.grid**2, device=self.device).repeat(len(states))
        weights = torch.ones(scores["what"].shape[-1], device=self.device)
        weights[0] = 0.1  # nine of ten cells are background
        return {
            "what": F.cross_entropy(scores["what"], cell_labels(plan, self.grid).flatten(), weights),
            "row": F.cross_entropy(scores["row"], cells // self.grid),
            "column": F.cross_entropy(scores["column"], cells % self.grid),
        }

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
                states = tower_states(self.network, pixels_of(batch.sketch).flatten(0, 1))
                scores = answer_logits(self.network, states, batch, self.before)
            wrong = (scores.argmax(-1) != batch.target) & (batch.target != _IGNORED)
            for kinds, failed in zip(batch.kinds, (wrong * batch.segment).tolist(), strict=True):
                for number, kind in enumerate(kinds, 1):
                    right[kind].append(number not in failed)
        everything = [value for values in right.values() for value in values]
        share = {kind: round(sum(values) / len(values), 3) for kind, values in sorted(right.items())}
        return {"questions": len(everything), "accuracy": sum(everything) / len(everything), "by_kind": share}

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
        self.seconds, self.steps = state["seconds"], state["steps"]

    def export(self, directory: Path) -> None:
        """The checkpoint in bfloat16, as a published one is laid out."""
        self.network.to(torch.bfloat16).save_pretrained(directory)
        (directory / "model.safetensors").chmod(0o644)  # saved readable by its owner alone
        write_text_files(directory, self.writer.words, self.shape.image)


def main() -> None:
    """Train with the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=25.0, help="of training in all")
    parser.add_argument("--tower-minutes", type=float, default=2.0, help="of these on single frames")
    parser.add_argument("--clips", type=int, default=64, help="in a step")
    parser.add_argument("--frames", type=int, default=512, help="in a step of the tower's own task")
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
