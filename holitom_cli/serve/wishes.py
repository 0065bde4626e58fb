"""From the JSON of a chat completion to what is wished for; what would have no effect is refused, never ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from holitom_cli import methods
from holitom_cli.errors import HolitomError, MethodError
from holitom_cli.methods import Method
from holitom_cli.model.prompt import Turn
from holitom_cli.serve.refusals import Refused, refusal
from holitom_cli.types import DEFAULT_FRAMES, Generation, Sampling


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The most that a request may ask for."""

    frames: int = 128
    tokens: int = 1024  # of an answer
    clip_seconds: float = 7200.0
    clip_pixels: int = 36_000_000  # of a picture; 8K has 33 million


@dataclass(frozen=True, slots=True)
class Defaults:
    """What is done where a request does not say."""

    method: Method
    generation: Generation = Generation()  # noqa: RUF009  # it is frozen
    frames: int = DEFAULT_FRAMES


@dataclass(frozen=True, slots=True)
class Wish:
    """One question about one clip."""

    url: str
    text: str
    turns: tuple[Turn, ...]
    system: str  # a message before all of them, empty where there is none
    method: Method
    sampling: Sampling
    generation: Generation
    stream: bool
    include_usage: bool
    stops: tuple[str, ...]  # texts before which the answer ends


_OWN = {"method", "settings", "num_frames", "start", "end"}
_READ = {
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "seed", "stop", "holitom",
}  # fmt: skip
# Parameters of OpenAI's that are not implemented, with the value that asks for nothing.
_NEUTRAL: dict[str, Any] = {
    "n": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logprobs": False,
    "response_format": {"type": "text"},
    "store": False,
}
_MOST_TEMPERATURE = 2.0  # as OpenAI's
_MOST_SEED = 2**63 - 1
_MOST_STOPS, _MOST_STOP_LENGTH = 4, 256  # texts, as OpenAI's; characters
_MOST_LETTERS = 2**18  # of all messages; it takes a third of a second to count their tokens
_ROLE_LETTERS = 16  # that stand for what the template writes around a message
_MOST_TIME = 1e9  # seconds; no clip lasts as long


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        Refused: it is none.
    """
    try:
        found = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_object_of)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The request is not valid JSON.", code="invalid_json") from error
    if not isinstance(found, dict):
        raise Refused(400, "The request is not a JSON object.", code="invalid_json")
    return found


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names can be told in an answer, and all of whose values count."""
    made = dict(pairs)
    "".join(made).encode()  # surrogates have no meaning by themselves
    if len(made) < len(pairs):
        raise ValueError("a name stands twice")
    return made


def _no_constant(name: str) -> None:
    raise ValueError(name)


def wish(request: Mapping[str, Any], model: str, defaults: Defaults, ceilings: Ceilings) -> Wish:
    """Read a request for an answer by the model that is served under this name.

    Raises:
        Refused: a parameter is missing, wrong, not implemented or beyond what this server allows.
    """
    given = {name: value for name, value in request.items() if value is not None}
    _check_names(given)
    if _text(given, "model", required=True) != model:
        raise Refused(
            404, f"There is no model {given['model']!r} here.", f"Use {model!r}.", "model_not_found", param="model"
        )
    own = _object(given, "holitom", "holitom", _OWN)
    system, (url, text, turns) = _system(given.get("messages")), _messages(given.get("messages"))
    _check_length([system, text, *(said for turn in turns for said in turn)])
    stream = _flag(given, "stream")
    options = _object(given, "stream_options", "stream_options", {"include_usage"})
    if options and not stream:
        raise _wrong("stream_options", "has a meaning only with stream")
    return Wish(
        url=url,
        text=text,
        turns=turns,
        system=system,
        method=_method(own, defaults.method),
        sampling=_sampling(own, defaults.frames, ceilings.frames),
        generation=_generation(given, defaults.generation, ceilings.tokens),
        stream=stream,
        include_usage=_flag(options, "include_usage"),
        stops=_stops(given.get("stop", [])),
    )


def _check_names(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _READ:
            continue
        neutral = _NEUTRAL.get(name)
        if neutral is None or value != neutral or isinstance(value, bool) != isinstance(neutral, bool):
            raise Refused(
                400,
                f"Parameter {name!r} is not implemented{'' if neutral is None else f' but as {json.dumps(neutral)}'}.",
                "Leave it out.",
                "unsupported_parameter",
                param=name,
            )


# --- what is said ----------------------------------------------------------------------------------


def _system(messages: Any) -> str:
    """What the first message says, where it is the system's; empty where it is not."""
    if not _begins_with_system(messages):
        return ""
    urls: list[str] = []
    text = _said({**messages[0], "role": "system"}, "messages[0]", "system", urls)
    if urls:
        raise _wrong("messages[0].content", "has a video; it belongs into the first message of role user", "videos")
    return text


def _begins_with_system(messages: Any) -> bool:
    """Whether it does; newer clients of OpenAI's call that role developer."""
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, dict) and first.get("role") in ("system", "developer")


def _messages(messages: Any) -> tuple[str, str, tuple[Turn, ...]]:
    """The clip's URL, the question, and the turns before it."""
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "has to be a list of messages")
    first = int(_begins_with_system(messages))
    if (len(messages) - first) % 2 == 0:
        raise _wrong("messages", "has to end with a question: a message of role user")
    urls: list[str] = []
    texts = [_message(message, place, first, urls) for place, message in enumerate(messages[first:])]
    if not urls:
        raise Refused(
            400,
            "There is no video to look at.",
            'Give the first question a part {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,..."}}.',
            "missing_video",
            param=f"messages[{first}].content",
        )
    turns = tuple(Turn(*texts[place : place + 2]) for place in range(0, len(texts) - 1, 2))
    return urls[0], texts[-1], turns


def _check_length(texts: Sequence[str]) -> None:
    """Refuse what is longer than models read: the thread that they run in would be busy with its tokens for minutes."""
    if sum(len(text) + _ROLE_LETTERS for text in texts) > _MOST_LETTERS:
        raise _wrong("messages", f"have more than {_MOST_LETTERS:,} characters", "too_long")


def _message(message: Any, place: int, first: int, urls: list[str]) -> str:
    """What a message of a turn says; the URL of its clip is added to `urls`."""
    where, known = f"messages[{first + place}]", len(urls)
    text = _said(message, where, "assistant" if place % 2 else "user", urls)
    if len(urls) > known and (place or len(urls) > 1):
        raise _wrong(f"{where}.content", "has a video; a conversation is about one, in its first message", "videos")
    return text


def _said(message: Any, where: str, role: str, urls: list[str]) -> str:
    """What a message of this role says; the URLs of its clips are added to `urls`."""
    if not isinstance(message, dict):
        raise _wrong(where, "has to be an object")
    if message.get("role") != role:
        raise _wrong(f"{where}.role", f"has to be {role!r}: messages of user and assistant follow one another", "role")
    if unknown := sorted(name for name in set(message) - {"role", "content"} if message[name] is not None):
        raise _wrong(f"{where}.{unknown[0]}", "is not implemented", "unsupported_parameter")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts:
        raise _wrong(f"{where}.content", "has to be text or a list of parts")
    texts = [text for number, part in enumerate(parts) if (text := _part(part, f"{where}.content[{number}]", urls))]
    if not "".join(texts).strip():
        raise _wrong(f"{where}.content", "has no text", "missing_text")
    return "\n".join(texts)


def _part(part: Any, where: str, urls: list[str]) -> str | None:
    """A part's text; of a clip the URL goes to `urls`."""
    if not isinstance(part, dict):
        raise _wrong(where, "has to be an object")
    kind = part.get("type")
    if kind == "text":
        _only(part, {"type", "text"}, where)
        return _text(part, "text", where=where, required=True)
    if kind != "video_url":
        raise _wrong(f"{where}.type", "has to be text or video_url", "unsupported_part")
    _only(part, {"type", "video_url"}, where)
    clip = part.get("video_url")
    if not isinstance(clip, dict):
        raise _wrong(f"{where}.video_url", 'has to be an object as {"url": "..."}')
    _only(clip, {"url"}, f"{where}.video_url")
    urls.append(_text(clip, "url", where=f"{where}.video_url", required=True))
    return None


# --- how it is answered ----------------------------------------------------------------------------


def _method(own: Mapping[str, Any], default: Method) -> Method:
    settings = _object(own, "settings", "holitom.settings", None)
    if wrong := [name for name, value in settings.items() if not isinstance(value, str | int | float)]:
        raise _wrong(f"holitom.settings.{wrong[0]}", "has to be a number or text")
    name = _text(own, "method", where="holitom")
    try:
        return methods.get(name, **settings) if name else methods.change(default, **settings)
    except MethodError as error:
        param = "holitom.settings" if settings and error.message.startswith(("Setting", "Method")) else "holitom.method"
        raise Refused(400, error.message, refusal(error).hint, "invalid_value", param=param) from error


def _sampling(own: Mapping[str, Any], default: int, most: int) -> Sampling:
    frames = _number(own, "num_frames", "holitom.num_frames", 1, most, whole=True)
    start, end = (_number(own, name, f"holitom.{name}", -_MOST_TIME, _MOST_TIME) for name in ("start", "end"))
    try:
        return Sampling(num_frames=default if frames is None else int(frames), start_seconds=start, end_seconds=end)
    except HolitomError as error:
        raise Refused(400, error.message, refusal(error).hint, "invalid_value", param="holitom.start") from error


def _generation(given: Mapping[str, Any], default: Generation, most: int) -> Generation:
    limits = [_number(given, name, name, 1, most, whole=True) for name in ("max_tokens", "max_completion_tokens")]
    if None not in limits and limits[0] != limits[1]:
        raise _wrong("max_tokens", "and max_completion_tokens say different things")
    read = {
        "max_new_tokens": next((limit for limit in limits if limit is not None), None),
        "temperature": _number(given, "temperature", "temperature", 0, _MOST_TEMPERATURE),
        "top_p": _number(given, "top_p", "top_p", 0, 1, above=True),
        "seed": _number(given, "seed", "seed", 0, _MOST_SEED, whole=True),
    }
    return replace(default, **{name: value for name, value in read.items() if value is not None})


def _stops(given: Any) -> tuple[str, ...]:
    """Texts to stop at, from one or a list of them."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or len(texts) > _MOST_STOPS:
        raise _wrong("stop", f"has to be text, or a list of at most {_MOST_STOPS} texts")
    for text in texts:
        if not isinstance(text, str) or not 1 <= len(text) <= _MOST_STOP_LENGTH:
            raise _wrong("stop", f"has to be made of 1 to {_MOST_STOP_LENGTH} characters")
        _text({"stop": text}, "stop")
    return tuple(texts)


# --- types of values -------------------------------------------------------------------------------


def _number(
    given: Mapping[str, Any],
    name: str,
    param: str,
    least: float,
    most: float,
    *,
    whole: bool = False,
    above: bool = False,
) -> Any:
    """A number within a range, without its lower end if `above`; None where there is none."""
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise _wrong(param, f"has to be {'a whole number' if whole else 'a number'}")
    if not least <= value <= most or (above and value == least):
        start = "above" if above else "at least"
        raise _wrong(param, f"has to be {start} {least:,} and at most {most:,}", "out_of_range")
    return value


def _text(given: Mapping[str, Any], name: str, *, where: str = "", required: bool = False) -> str:
    """A text; empty where there is none and none is required."""
    param, value = f"{where}.{name}" if where else name, given.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise _wrong(param, "is missing" if value is None else "has to be text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _wrong(param, "is not valid text") from error
    return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise _wrong(name, "has to be true or false")
    return value


def _object(given: Mapping[str, Any], name: str, param: str, known: set[str] | None) -> dict[str, Any]:
    """An object, empty where there is none, with no other names than `known`."""
    value = given.get(name, {})
    if not isinstance(value, dict):
        raise _wrong(param, "has to be an object")
    if known is not None:
        _only(value, known, param)
    return {key: inner for key, inner in value.items() if inner is not None}


def _only(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in given:
        if name not in known and given[name] is not None:
            raise _wrong(f"{where}.{name}", "is not implemented", "unsupported_parameter")


def _wrong(param: str, what: str, code: str = "invalid_value") -> Refused:
    return Refused(400, f"{param} {what}.", code=code, param=param)
