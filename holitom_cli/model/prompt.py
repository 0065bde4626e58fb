"""Questions to token ids and ids to text, by the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from holitom_cli.errors import ModelError, UsageError, reason
from holitom_cli.model.config import Config
from holitom_cli.model.preprocess import read_json
from holitom_cli.model.tokenizer import Tokenizer, read_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from holitom_cli.model.loading import Model
    from holitom_cli.types import VisualTokens


class Turn(NamedTuple):
    """What has been asked and answered in a conversation."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A checkpoint's tokenizer, chat template and end tokens."""

    tokenizer: Tokenizer
    template: str
    video_token_id: int
    end_ids: frozenset[int]

    def encode(self, question: str, turns: Sequence[Turn] = ()) -> tuple[list[int], list[int]]:
        """Token ids before and after the video of a prompt that asks `question`, after `turns` of a conversation.

        Raises:
            HolitomError: as `encode_around`.
        """
        before, after = self.encode_around((0,), question, turns)
        return before, after

    def encode_around(
        self, clips: Sequence[int], question: str, turns: Sequence[Turn], system: str = ""
    ) -> list[list[int]]:
        """Token ids before, between and after the clips of such a prompt.

        Args:
            clips: in which user turn each stands, ascending; 0 is the first.
            question: the last user turn.
            turns: those before it.
            system: what stands before all of them, nothing where it is empty.

        Raises:
            UsageError: an empty question, a text that contains one of the tokenizer's special tokens, or words of the
                system for which the template has no place.
            ModelError: a template that fails or has no place for a video.
        """
        if not question.strip():
            raise UsageError("The question is empty.", "Ask something, as in: holitom ask clip.mp4 'What happens?'")
        self.check_plain(question, "question")
        self.check_plain(system, "system message")
        for text in (text for turn in turns for text in turn):
            self.check_plain(text, "conversation")
        prompt = self._prompt(question, turns, clips)
        ids = self.tokenizer.encode(self._under(system, prompt, question, turns, clips) if system else prompt)
        places = [place for place, token in enumerate(ids) if token == self.video_token_id]
        if len(places) != len(clips):
            wanted = "one" if len(clips) == 1 else str(len(clips))
            raise ModelError(
                f"The checkpoint's chat template puts {len(places)} videos into a prompt, not {wanted}.",
                "Use the chat template of the published checkpoint.",
            )
        starts, stops = [0, *(place + 1 for place in places)], [*places, len(ids)]
        return [ids[start:stop] for start, stop in zip(starts, stops, strict=True)]

    def check_plain(self, text: str, what: str) -> None:
        """Refuse text that the tokenizer would not take as text.

        Raises:
            UsageError: it contains a special token.
        """
        for token in self.tokenizer.special.values():
            if token in text:
                raise UsageError(
                    f"The {what} contains {token!r}, which has a special meaning for the model.", "Leave it out."
                )

    def plain(self, text: str) -> str:
        """A text that the model made up letter by letter, without what would be special tokens when it is read."""
        while found := [token for token in self.tokenizer.special.values() if token in text]:
            for token in found:
                text = text.replace(token, "")
        return text

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Pieces of text as ids arrive; characters that span several tokens are never cut."""
        piece_of = self.pieces()
        for token in ids:
            if piece := piece_of(token):
                yield piece

    def pieces(self) -> Callable[[int], str]:
        """What `stream` is made of: to be given the ids of one answer, it returns the text that each completes."""
        from tokenizers.decoders import DecodeStream

        pieces = DecodeStream(skip_special_tokens=True)
        return lambda token: pieces.step(self.tokenizer.backend, token) or ""

    def _under(self, system: str, prompt: str, question: str, turns: Sequence[Turn], clips: Sequence[int]) -> str:
        """A prompt under a system message; templates that have no place for one fail, or leave it out."""
        try:
            under = self._prompt(question, turns, clips, system)
        except ModelError:
            under = prompt
        if under == prompt:
            raise UsageError("The checkpoint's chat template has no place for a system message.", "Leave it out.")
        return under

    def _prompt(self, question: str, turns: Sequence[Turn], clips: Sequence[int], system: str = "") -> str:
        texts = [*(text for turn in turns for text in turn), question]
        messages: list[dict[str, Any]] = [
            {"role": "assistant" if place % 2 else "user", "content": [{"type": "text", "text": text}]}
            for place, text in enumerate(texts)
        ]
        for clip in clips:
            messages[2 * clip]["content"].insert(0, {"type": "video"})
        if system:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        try:
            return self.tokenizer.render(self.template, messages)
        except Exception as error:  # a template is a program of somebody else's
            raise ModelError(
                f"The checkpoint's chat template cannot be used: {reason(error)}.",
                "Use the chat template of the published checkpoint.",
            ) from error


def read_chat(directory: Path, config: Config) -> Chat:
    """Read tokenizer, template and end tokens.

    Raises:
        ModelError: a file is missing or does not fit the configuration.
    """
    tokenizer, templates = read_tokenizer(directory)
    video = config.video_token_index
    if video not in tokenizer.backend.get_added_tokens_decoder():
        raise ModelError(
            f"The tokenizer in {directory} has no token {video}, which config.json names for videos.",
            "Copy the tokenizer's files from the original checkpoint.",
        )
    return Chat(tokenizer, _template(directory, templates), video, _end_ids(directory, config, tokenizer))


def prompt_embeds(model: Model, before: list[int], visual: VisualTokens, after: list[int]) -> tuple[Tensor, range]:
    """The prompt (L, D): text, visual tokens, one newline token, text; and the span of the visual part."""
    embeds, (span,) = embeds_around([visual], model, [before, after])
    return embeds, span


def embeds_around(
    clips: Sequence[VisualTokens], model: Model, texts: Sequence[list[int]]
) -> tuple[Tensor, list[range]]:
    """The same of several clips, each with a newline token, between one text more; and the span of each clip."""
    import torch

    parts, spans, length = [model.embed(torch.tensor(texts[0]))], [], len(texts[0])
    for visual, text in zip(clips, texts[1:], strict=True):
        parts += (visual.embeds, model.newline[None], model.embed(torch.tensor(text)))
        spans.append(range(length, length + len(visual) + 1))
        length = spans[-1].stop + len(text)
    return torch.cat(parts), spans


def _template(directory: Path, templates: Any) -> str:
    """The chat template, from where transformers looks for it, the processor's own before the tokenizer's."""
    if (plain := directory / "chat_template.jinja").is_file():
        try:
            return plain.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{plain} cannot be read: {reason(error)}.", "Download it again.") from error
    for name in ("chat_template.json", "processor_config.json"):
        if (path := directory / name).is_file() and (template := _default(read_json(path).get("chat_template"))):
            return template
    if template := _default(templates):
        return template
    raise ModelError(f"{directory} has no chat template.", "Copy chat_template.jinja from the original checkpoint.")


def _default(templates: Any) -> str | None:
    """The template; of several, by name or in a list of named ones, the one called default."""
    if isinstance(templates, list):
        templates = {entry.get("name"): entry.get("template") for entry in templates if isinstance(entry, dict)}
    if isinstance(templates, dict):
        templates = templates.get("default")
    return templates if isinstance(templates, str) else None


def _end_ids(directory: Path, config: Config, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end an answer: as generation_config.json says, else the text model's, else the tokenizer's."""
    path = directory / "generation_config.json"
    named = read_json(path).get("eos_token_id") if path.is_file() else None
    if named is None:
        named = config.end_token_ids
    if named is None:
        named = tokenizer.id_of(tokenizer.named.get("eos_token"))
    ids = [] if named is None else named if isinstance(named, list) else [named]
    if not all(type(number) is int for number in ids):
        raise ModelError(
            f"{directory} names {named!r} as the tokens that end an answer, which are no ids.",
            "Copy generation_config.json from the original checkpoint.",
        )
    return frozenset(ids)
