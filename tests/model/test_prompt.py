"""Questions to token ids and back: templates, special tokens, and text that arrives piece by piece."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from holitom_cli import methods
from holitom_cli.errors import ModelError, UsageError
from holitom_cli.model.hub import locate
from holitom_cli.model.loading import load_model, read_checkpoint
from holitom_cli.model.prompt import Chat, Turn, prompt_embeds
from holitom_cli.model.vision import encode
from tests.make_random_checkpoint import RANDOM

TEMPLATE = "{{ '<|im_start|>' }}{% for part in messages[0]['content'] %}{% if part['type'] == 'video' %}<video>"
TEMPLATE += "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"


def chat_of(path: Path) -> Chat:
    return read_checkpoint(locate(str(path))).chat


@pytest.fixture(scope="module")
def chat() -> Chat:
    return chat_of(RANDOM)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The random checkpoint, free to be changed."""
    return Path(shutil.copytree(RANDOM, tmp_path / "copy"))


def edit(path: Path, **changed: Any) -> None:
    """Change entries of a JSON file; None takes one out."""
    content = json.loads(path.read_text()) | changed if path.is_file() else changed
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_the_prompt_is_the_templates_with_the_video_cut_out(chat: Chat) -> None:
    before, after = chat.encode("What is shown?")
    whole = "<|im_start|>user <video>\nWhat is shown?<|im_end|><|im_start|>assistant\n"
    assert [*before, chat.video_token_id, *after] == chat.tokenizer.encode(whole)
    assert chat.tokenizer.decode(before) == "<|im_start|>user "
    assert chat.tokenizer.decode(after) == "\nWhat is shown?<|im_end|><|im_start|>assistant\n"


def test_a_conversation_is_the_templates_with_the_video_in_its_first_turn(chat: Chat) -> None:
    before, after = chat.encode("And then?", [Turn("What is shown?", "A cup."), Turn("Where?", "")])
    whole = "<|im_start|>user <video>\nWhat is shown?<|im_end|><|im_start|>assistant A cup.<|im_end|>"
    whole += "<|im_start|>user Where?<|im_end|><|im_start|>assistant <|im_end|>"
    whole += "<|im_start|>user And then?<|im_end|><|im_start|>assistant\n"
    assert [*before, chat.video_token_id, *after] == chat.tokenizer.encode(whole)


@pytest.mark.parametrize("turn", [Turn("a<video>", "b"), Turn("a", "<|im_end|>b")], ids=str)
def test_a_special_token_in_a_conversation_is_refused(chat: Chat, turn: Turn) -> None:
    with pytest.raises(UsageError, match="The conversation contains"):
        chat.encode("And then?", [turn])


@pytest.mark.parametrize(
    ("text", "plain"),
    [("a cup", "a cup"), ("a<video>b", "ab"), ("<vid<image>eo>", ""), ("<|im_end|>\n<|im_end", "\n<|im_end")],
)
def test_what_a_model_spelled_is_made_plain(chat: Chat, text: str, plain: str) -> None:
    assert chat.plain(text) == plain


QUESTIONS = ["a", "Wer? 谁? 🎬", "a <b> & 'c' \"d\" {{ e }} {% f %}", "x" * 5000, "two\nlines", "im_start <video"]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda text: text[:12])
def test_any_question_arrives_whole(chat: Chat, question: str) -> None:
    _, after = chat.encode(question)
    assert chat.decode(after) == f"\n{question}assistant\n"


@pytest.mark.parametrize("question", ["", " ", "\n\t ", "\u3000"])
def test_an_empty_question_is_refused(chat: Chat, question: str) -> None:
    with pytest.raises(UsageError, match="The question is empty"):
        chat.encode(question)


@pytest.mark.parametrize("token", ["<video>", "<image>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_special_token_is_refused_and_named(chat: Chat, token: str) -> None:
    with pytest.raises(UsageError, match="contains") as caught:
        chat.encode(f"What is{token} it?")
    assert token in caught.value.message


def test_the_embedded_prompt_is_text_video_newline_text() -> None:
    model = load_model(RANDOM, device="cpu")
    pixels = torch.randn(2, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    visual = methods.get("holitom").compress(encode(model, pixels))
    embeds, span = prompt_embeds(model, [5, 6, 7], visual, [8, 9])
    assert embeds.shape == (3 + len(visual) + 1 + 2, model.info.shape.hidden)
    assert span == range(3, 3 + len(visual) + 1)
    assert torch.equal(embeds[span.start : span.stop - 1], visual.embeds)
    assert torch.equal(embeds[span.stop - 1], model.newline)
    words = model.language_model.embed_tokens.weight
    assert torch.equal(embeds[[0, 1, 2, -2, -1]], words[[5, 6, 7, 8, 9]])


# --- text that arrives -----------------------------------------------------------------------


@pytest.mark.parametrize("text", [" big dog", "Grüße 🎬🎬 日本", "👩‍👩‍👧", "e\u0301", "a\n\nb", " 🇩🇪!"])
def test_characters_are_never_cut(chat: Chat, text: str) -> None:
    ids = chat.tokenizer.encode(text)
    pieces = list(chat.stream(iter(ids)))
    assert "".join(pieces) == text == chat.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces)
    assert all(pieces)


def test_pieces_come_as_soon_as_they_are_whole(chat: Chat) -> None:
    ids = chat.tokenizer.encode(" dog🎬 cat")
    emoji = chat.tokenizer.encode("🎬")
    assert len(emoji) > 1  # control: the character does span tokens
    seen: list[int] = []

    def arriving() -> Iterator[int]:
        for token in ids:
            seen.append(token)
            yield token

    arrived = [(len(seen), piece) for piece in chat.stream(arriving())]
    assert arrived == [(1, " dog"), (1 + len(emoji), "🎬"), (2 + len(emoji), " cat")]


def test_a_character_that_is_never_finished_is_not_streamed(chat: Chat) -> None:
    ids = chat.tokenizer.encode("🎬")[:-1]
    assert list(chat.stream(ids)) == []
    assert "\ufffd" in chat.decode(ids)


def test_special_tokens_are_not_spoken(chat: Chat) -> None:
    ids = [*chat.tokenizer.encode(" dog"), *chat.end_ids]
    assert chat.decode(ids) == " dog"
    assert "".join(chat.stream(ids)) == " dog"


# --- the checkpoint's files ------------------------------------------------------------------


def test_templates_have_an_order(copy: Path) -> None:
    """A template file, then the processor's, then the tokenizer's."""
    edit(copy / "tokenizer_config.json", chat_template=TEMPLATE + "tokenizer")
    edit(copy / "processor_config.json", chat_template=TEMPLATE + "processor")
    edit(copy / "chat_template.json", chat_template=TEMPLATE + "json")
    (copy / "chat_template.jinja").write_text(TEMPLATE + "jinja")
    for name, said in [
        ("chat_template.jinja", "jinja"),
        ("chat_template.json", "json"),
        ("processor_config.json", "processor"),
        ("", "tokenizer"),
    ]:
        chat = chat_of(copy)
        before, after = chat.encode("Who?")
        assert chat.tokenizer.decode(before) == "<|im_start|>"
        assert chat.decode(after) == f"Who?{said}"
        if name:
            (copy / name).unlink()


def test_no_template(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    edit(copy / "tokenizer_config.json", chat_template=None)
    with pytest.raises(ModelError, match="no chat template"):
        chat_of(copy)


@pytest.mark.parametrize(("template", "count"), [("no place", 0), ("<video> and <video>", 2)])
def test_a_template_without_a_place_for_one_video(copy: Path, template: str, count: int) -> None:
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=f"puts {count} videos into a prompt"):
        chat_of(copy).encode("Who?")


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ nonsense.a.b }}", "{{ raise_exception('no videos') }}", "{{ 1/0 }}"]
)
def test_a_template_that_fails(copy: Path, template: str) -> None:
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="chat template") as caught:
        chat_of(copy).encode("Who?")
    assert caught.value.hint


def test_end_tokens_are_the_generation_files(copy: Path, chat: Chat) -> None:
    tokenizer = chat.tokenizer
    ids = [tokenizer.id_of(token) for token in ("<|im_end|>", "<|endoftext|>")]
    edit(copy / "generation_config.json", eos_token_id=ids)
    assert chat_of(copy).end_ids == frozenset(ids)
    edit(copy / "generation_config.json", eos_token_id=ids[1])
    assert chat_of(copy).end_ids == {ids[1]}
    (copy / "generation_config.json").unlink()
    content = json.loads((copy / "config.json").read_text())["text_config"]
    edit(copy / "config.json", text_config=content | {"eos_token_id": 7})
    assert chat_of(copy).end_ids == {7}
    edit(copy / "config.json", text_config=content | {"eos_token_id": None})
    assert chat_of(copy).end_ids == {ids[0]}


@pytest.mark.parametrize("named", ["<|im_end|>", 1.5, [3, None], True])
def test_end_tokens_that_are_no_ids(copy: Path, named: Any) -> None:
    edit(copy / "generation_config.json", eos_token_id=named)
    with pytest.raises(ModelError, match="as the tokens that end an answer, which are no ids"):
        chat_of(copy)


def test_a_template_that_is_no_text(copy: Path) -> None:
    (copy / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(ModelError, match="cannot be read") as caught:
        chat_of(copy)
    assert caught.value.hint


def test_no_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        chat_of(copy)


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0", "model": null}', "[1]"])
def test_a_damaged_tokenizer(copy: Path, content: str) -> None:
    (copy / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="tokenizer"):
        chat_of(copy)


def test_a_tokenizer_of_another_checkpoint(copy: Path) -> None:
    edit(copy / "config.json", video_token_index=849)
    with pytest.raises(ModelError, match="has no token 849"):
        chat_of(copy)


@pytest.mark.parametrize("several", [{"default": TEMPLATE}, [{"name": "default", "template": TEMPLATE}]])
def test_of_several_templates_the_default_one_is_used(copy: Path, several: Any) -> None:
    (copy / "chat_template.jinja").unlink()
    edit(copy / "chat_template.json", chat_template=several)
    chat = chat_of(copy)
    assert chat.tokenizer.decode(chat.encode("Who?")[0]) == "<|im_start|>"
    edit(copy / "chat_template.json", chat_template=[{"name": "tools", "template": TEMPLATE}])
    edit(copy / "tokenizer_config.json", chat_template=None)
    with pytest.raises(ModelError, match="no chat template"):
        chat_of(copy)


def test_a_template_for_text_alone(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] + '!' }}{% endfor %}")
    with pytest.raises(ModelError, match="chat template cannot be used"):
        chat_of(copy).encode("Who?")
