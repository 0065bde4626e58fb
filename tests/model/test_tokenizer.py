"""Ids, texts and prompts are those of transformers' own tokenizers, whose import we do without."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from holitom_cli.model.tokenizer import Tokenizer, read_tokenizer
from tests.make_random_checkpoint import RANDOM, WORDS

DEMO = Path(__file__).parents[2] / "holitom_cli" / "assets" / "demo"
TEXTS = ["a dog", " Grüße 🎬\n\n日本", "<|im_start|>user <video>\nWho?<|im_end|>", "12345 don't  x", "e\u0301é", ""]
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MESSAGES = [
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": 'Wer? 谁 <b> & "c"'}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cup."}]},
]
EACH = "{% for m in messages %}"
TEMPLATES = {
    "blocks on lines": EACH
    + "\n  {% if loop.first %}{{ m.role }}{% endif %}\n  {{ m.content | tojson }}\n{% endfor %}\nx",
    "named tokens, break": "{{ eos_token }}"
    + EACH
    + "{{ m.role }}{% if loop.first %}{% break %}{% endif %}{% endfor %}",
    "what is trained": EACH + "{% generation %}{{ m.content[0] }}{% endgeneration %}{% endfor %}",
    "no tools": "{% if tools %}tools{% endif %}{{ messages[0] | tojson(indent=2) }}{{ strftime_now('%Y') }}",
    "minus": "{%- for m in messages -%}  {{- m.role }} {%- endfor %}\n{% if add_generation_prompt %}go{% endif %}",
}


@pytest.fixture(scope="module")
def like_published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with the parts and settings of Qwen2's, its words learnt from a few."""
    path = tmp_path_factory.mktemp("qwen2")
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(f"{_WORDS}|{_OTHERS}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    backend.enable_truncation(4)
    backend.enable_padding(length=30)
    backend.save(str(path / "tokenizer.json"))
    added = {number: vars_of(token) for number, token in backend.get_added_tokens_decoder().items()}
    settings: dict[str, Any] = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    settings |= {"added_tokens_decoder": added, "clean_up_tokenization_spaces": False, "model_max_length": 32768}
    settings["additional_special_tokens"] = ["<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def vars_of(token: Any) -> dict[str, Any]:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}


@pytest.fixture(params=["random", "demo", "like published"])
def place(request: pytest.FixtureRequest, like_published: Path) -> Path:
    return {"random": RANDOM, "demo": DEMO, "like published": like_published}[request.param]


def both(place: Path) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    return read_tokenizer(place)[0], AutoTokenizer.from_pretrained(place, local_files_only=True)


def test_ids_and_texts_are_the_librarys(place: Path) -> None:
    ours, librarys = both(place)
    for text in TEXTS:
        ids = librarys(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == librarys.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == librarys.decode(ids, skip_special_tokens=True)
    assert len(ours.encode("a dog and a cat and a cup")) > 4  # what a file says of truncation is for training
    assert ours.encode("a dog") != ours.encode("a cat")  # control


def test_special_tokens_are_the_librarys(place: Path) -> None:
    ours, librarys = both(place)
    special = {number: str(token) for number, token in librarys.added_tokens_decoder.items() if token.special}
    assert ours.special == special
    assert "<video>" in special.values()
    assert ours.named.items() <= librarys.special_tokens_map.items()  # its classes have more of their own
    assert ours.named
    assert ours.id_of(ours.named["eos_token"]) == librarys.eos_token_id
    assert ours.id_of("no such token") is None
    assert ours.id_of(None) is None


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_the_librarys(name: str) -> None:
    template = TEMPLATES[name]
    ours, librarys = both(DEMO)
    expected = librarys.apply_chat_template(
        MESSAGES, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    assert ours.render(template, MESSAGES) == expected
    assert ours.render(template, MESSAGES[1:]) != expected  # control


def test_the_year_is_this_one() -> None:
    assert read_tokenizer(DEMO)[0].render("{{ strftime_now('%Y') }}", []) == f"{datetime.now():%Y}"  # noqa: DTZ005


def test_special_tokens_that_only_the_settings_name_are_added(tmp_path: Path) -> None:
    shutil.copytree(RANDOM, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["sep_token"] = {"__type": "AddedToken", "content": "<new>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, librarys = both(tmp_path)
    assert ours.encode("a<new>b") == librarys("a<new>b", add_special_tokens=False)["input_ids"]
    assert len(read_tokenizer(RANDOM)[0].encode("<new>")) > 1 == len(ours.encode("<new>"))
    assert "<new>" in ours.special.values()


def test_tokens_that_the_settings_declare_have_their_ids(tmp_path: Path) -> None:
    """Named ones would come first if they were added as they are found."""
    shutil.copytree(RANDOM, tmp_path, dirs_exist_ok=True)
    first = read_tokenizer(RANDOM)[0].backend.get_vocab_size()
    entries = [("<b>", True), ("<a>", False), ("<c>", True)]
    flags = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    declared = {first + n: flags | {"content": text, "special": special} for n, (text, special) in enumerate(entries)}
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"added_tokens_decoder": declared, "sep_token": "<c>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, librarys = both(tmp_path)
    assert [ours.id_of(text) for text, _ in entries] == [first, first + 1, first + 2]
    for text in ("a <b> dog", "x<a>y<c>", " <c>"):
        assert ours.encode(text) == librarys(text, add_special_tokens=False)["input_ids"]
    assert ours.special == {n: str(token) for n, token in librarys.added_tokens_decoder.items() if token.special}


def test_special_tokens_with_names_of_their_own_reach_templates(tmp_path: Path) -> None:
    shutil.copytree(RANDOM, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["extra_special_tokens"] = {"video_token": "<video>", "image_token": "<image>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, librarys = both(tmp_path)
    template = "{{ video_token }}{{ image_token }}{{ sound_token }}"
    assert ours.render(template, MESSAGES) == "<video><image>"
    assert librarys.apply_chat_template(MESSAGES, chat_template=template, tokenize=False) == "<video><image>"


def test_older_checkpoints_name_special_tokens_in_a_file_of_their_own(tmp_path: Path) -> None:
    shutil.copytree(RANDOM, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings = {name: value for name, value in settings.items() if name not in ("eos_token", "added_tokens_decoder")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    ours, librarys = both(tmp_path)
    assert ours.named["eos_token"] == librarys.eos_token == "<|im_end|>"


def test_templates_cannot_reach_the_machine() -> None:
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError):
        read_tokenizer(DEMO)[0].render("{{ ''.__class__.__mro__[1].__subclasses__() }}", [])
