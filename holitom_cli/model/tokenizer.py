"""A checkpoint's tokenizer and chat template, by the libraries that do the work for transformers.

Its own import takes longer than a small checkpoint to load.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from holitom_cli.errors import ModelError
from holitom_cli.model.preprocess import read_json

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Tokenizer:
    """Words to ids and back."""

    backend: Any  # tokenizers.Tokenizer
    named: Mapping[str, str]  # special tokens as templates call them: eos_token and its like

    def encode(self, text: str) -> list[int]:
        """Ids of a text, special tokens in it among them; nothing is added."""
        return self.backend.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)  # type: ignore[no-any-return]

    def id_of(self, token: str | None) -> int | None:
        """The id of one token, None where there is no such token."""
        return None if token is None else self.backend.token_to_id(token)

    @cached_property
    def special(self) -> Mapping[int, str]:
        """Tokens that no text may contain, by id."""
        added = self.backend.get_added_tokens_decoder()
        return {number: token.content for number, token in added.items() if token.special}

    def render(self, template: str, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that a chat template makes of messages, up to where the answer begins.

        Raises:
            Exception: the template, which is a program, fails in whatever way.
        """
        made = _environment().from_string(template)
        return made.render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **self.named)  # type: ignore[no-any-return]


def read_tokenizer(directory: Path) -> tuple[Tokenizer, Any]:
    """The tokenizer of a checkpoint, and what its settings say of chat templates.

    Raises:
        ModelError: a file is missing or damaged.
    """
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{directory} has no tokenizer.json, so it cannot be asked in words.",
            "Copy the tokenizer's files from the original checkpoint.",
        )
    settings = read_json(other) if (other := directory / "tokenizer_config.json").is_file() else {}
    if "added_tokens_decoder" not in settings and (older := directory / "special_tokens_map.json").is_file():
        settings |= read_json(older)
    try:
        backend = Backend.from_file(str(path))
        extra = settings.get("extra_special_tokens")
        named = {name: _content(settings[name]) for name in _NAMED if settings.get(name)}
        named |= {name: _content(entry) for name, entry in extra.items()} if isinstance(extra, dict) else {}
        held = {repr(token) for token in backend.get_added_tokens_decoder().values()}
        by_id = sorted((settings.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0]))
        declared = [AddedToken(**entry) for _, entry in by_id]
        backend.add_tokens([token for token in declared if repr(token) not in held])
        known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        new = [token for token in (*named.values(), *map(_content, _extra(settings))) if token not in known]
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in new])
    except Exception as error:  # the library raises nothing more special for a damaged file
        raise ModelError(f"The tokenizer in {directory} cannot be read.", "Download it again.") from error
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(backend, named), settings.get("chat_template")


def _content(entry: Any) -> str:
    return str(entry["content"] if isinstance(entry, dict) else entry)


def _extra(settings: Mapping[str, Any]) -> list[Any]:
    """Special tokens without a use of their own: in a list, or by name."""
    found: list[Any] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        entries = settings.get(key) or []
        found += entries.values() if isinstance(entries, dict) else entries
    return found


def _environment() -> Any:
    """What chat templates are written for: jinja2 in a sandbox, with what transformers offers them besides."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`generation` blocks mark what a model is trained to say: they stand for their content."""

        tags = {"generation"}  # noqa: RUF012  # as the library declares it

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)  # type: ignore[no-any-return]

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False} | options)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda layout: datetime.now().astimezone().strftime(layout)
    return environment
