"""Which of some given answers a model finds likeliest, without generating one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from holitom_cli.errors import UsageError
from holitom_cli.model.decode import decode_one_token, not_a_number

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model
    from holitom_cli.model.prefill import Prefill
    from holitom_cli.model.prompt import Chat


@dataclass(frozen=True, slots=True)
class Choices:
    """Given answers as the model would write them."""

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]

    @property
    def told_by_first_token(self) -> bool:
        """Whether the first token alone says which one it will be."""
        return len({ids[0] for ids in self.ids}) == len(self.ids)

    @property
    def room(self) -> int:
        """How many tokens the cache has to have space for."""
        return 0 if self.told_by_first_token else max(map(len, self.ids))


def encode_choices(chat: Chat, choices: Sequence[str]) -> Choices:
    """Token ids of given answers.

    Raises:
        UsageError: fewer than two, an empty one, one with a special token, or two that the tokenizer cannot tell apart.
    """
    texts = tuple(choice.strip() for choice in choices)
    if len(texts) < 2 or not all(texts):
        raise UsageError("There have to be two choices or more, none of them empty.", "As in: --choices yes,no")
    for text in texts:
        chat.check_plain(text, "choice")
    ids = tuple(tuple(chat.tokenizer.encode(text)) for text in texts)
    known: dict[tuple[int, ...], str] = {}
    for text, tokens in zip(texts, ids, strict=True):
        if not tokens or tokens in known:
            other = known.get(tokens, "")
            raise UsageError(
                f"The model's tokenizer cannot tell the choice {text!r} from {other!r}.", "Word one of them otherwise."
            )
        known[tokens] = text
    return Choices(texts, ids)


def choice_probabilities(model: Model, state: Prefill, choices: Choices) -> list[float]:
    """Probability of each choice among the choices: softmax over their log-probabilities.

    Where the choices differ in their first token, that token's log-probability is taken. Elsewhere it is the sum over
    all of a choice's tokens and the end of the answer: without the end, "1" could not lose to "10".

    Raises:
        GenerationError: the logits are not finite.
    """
    ids, end_ids = [list(tokens) for tokens in choices.ids], model.chat.end_ids
    if choices.told_by_first_token:
        ids, end_ids = [tokens[:1] for tokens in ids], frozenset()
    scores = log_probabilities(model.language_model, model.lm_head, state, ids, end_ids)
    if not bool(scores.isfinite().all()):
        raise not_a_number()
    shares: list[float] = scores.double().softmax(0).tolist()
    return shares


@torch.inference_mode()
def log_probabilities(
    language_model: Any,
    lm_head: Any,
    state: Prefill,
    continuations: Sequence[Sequence[int]],
    end_ids: Collection[int] = (),
) -> Tensor:
    """Log-probability of each continuation of a prompt, token by token (teacher forcing).

    Args:
        language_model: a Qwen2 decoder.
        lm_head: makes logits of hidden states.
        state: the prompt, one row; its cache is as before when this returns.
        continuations: K lists of token ids, none empty.
        end_ids: if there are any, that one of them follows counts too.

    Returns:
        (K,) float32.

    Raises:
        ValueError: the cache has no space for the longest one.
    """
    scores = []
    for tokens in continuations:
        wanted = [[token] for token in tokens] + ([list(end_ids)] if end_ids else [])
        if len(wanted) - 1 > state.cache.room:
            raise ValueError(f"{len(wanted) - 1} tokens do not fit into a cache with room for {state.cache.room}")
        logits, score = state.logits, state.logits.new_zeros((), dtype=torch.float32)
        for step, ids in enumerate(wanted):
            if step:
                token = torch.tensor([tokens[step - 1]], device=logits.device)
                position = state.next_position + step - 1
                logits = decode_one_token(language_model, lm_head, state.cache, token, position)
            score = score + logits[0].float().log_softmax(-1)[ids].logsumexp(0)
        state.cache.rewind(len(wanted) - 1)
        scores.append(score)
    return torch.stack(scores)
