"""Answers over HTTP are those of the pipeline, whoever asks beside, reads slowly or leaves."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from holitom_cli import pipeline
from holitom_cli.errors import UsageError
from holitom_cli.model.decode import generate
from holitom_cli.model.loading import Model
from holitom_cli.model.prompt import Turn
from holitom_cli.serve import answering
from holitom_cli.types import Answer, Generation, Sampling
from tests.serve.served import FRAMES, SMALL_BUFFER_BYTES, Served, asked, stream, wait_until

QUESTIONS = [
    "Which corner of the picture has the yellow circle?",
    "Does the circle become another colour?",
    "What is shown?",
    "Wer? 谁? 🎬",
]


def alone(model: Model, clip: Path, question: str, *, turns: list[Turn] | None = None, **more: Any) -> Answer:
    """What the pipeline says when nobody else asks."""
    sampling = more.pop("sampling", Sampling(num_frames=FRAMES))
    method = more.pop("method", "holitom")
    watched = pipeline.watch(model, clip, method=method, sampling=sampling)
    return pipeline.ask(model, watched, question, **{"max_new_tokens": 16, **more}, turns=turns or ())


def test_openais_client_streams_an_answer(served: Served, demo: Model, clips: list[Path]) -> None:
    own = alone(demo, clips[0], QUESTIONS[0])
    heard = stream(served, messages=[asked(clips[0], QUESTIONS[0])], stream_options={"include_usage": True})
    assert own.text
    assert (heard.text, heard.finish_reason) == (own.text, own.finish_reason)
    assert heard.usage
    assert heard.usage["prompt_tokens"] == own.tokens.prompt
    assert heard.usage["completion_tokens"] == own.tokens.generated
    told = heard.usage["holitom"]
    assert told["visual_tokens"]["original"] == own.tokens.original
    assert told["visual_tokens"]["kept"] == own.tokens.visual < own.tokens.original
    assert told["flops_share"] == pytest.approx(own.flops.true / own.flops.true_full)
    assert told["flops_share"] < 1
    assert stream(served, messages=[asked(clips[0], QUESTIONS[0])]).usage is None


def test_openais_client_has_a_whole_answer(served: Served, demo: Model, clips: list[Path]) -> None:
    own = alone(demo, clips[0], QUESTIONS[1])
    with served.client() as client:
        said = client.chat.completions.create(model="demo", messages=[asked(clips[0], QUESTIONS[1])])  # type: ignore[list-item]
        assert [model.id for model in client.models.list()] == ["demo"]
        assert client.models.retrieve("demo").owned_by == "holitom"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt")
    assert said.choices[0].message.content == own.text
    assert said.choices[0].finish_reason == own.finish_reason
    assert said.usage
    assert said.usage.total_tokens == own.tokens.prompt + own.tokens.generated


def test_stream_is_as_openai_writes_it(served: Served, clips: list[Path]) -> None:
    body = served.body(clips[0], QUESTIONS[0], stream=True, stream_options={"include_usage": True})
    response = served.post(body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert set(reasons[:-1]) == {None}
    assert reasons[-1] in ("stop", "length")
    assert chunks[-1]["choices"] == []
    assert [chunk["usage"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]


def test_conversation_goes_on_from_what_is_kept(served: Served, demo: Model, clips: list[Path]) -> None:
    messages: list[Any] = []
    turns: list[Turn] = []
    for question in QUESTIONS[:3]:
        messages.append({"role": "user", "content": question} if turns else asked(clips[0], question))
        own = alone(demo, clips[0], question, turns=turns)
        heard = stream(served, messages=messages, stream_options={"include_usage": True})
        assert heard.text == own.text
        assert heard.usage
        assert heard.usage["prompt_tokens"] == own.tokens.prompt
        assert heard.usage["holitom"]["clip_reused"] or not turns
        assert heard.usage["prompt_tokens_details"]["cached_tokens"] > own.tokens.visual or not turns
        messages.append({"role": "assistant", "content": own.text})
        turns.append(Turn(question, own.text))


@pytest.mark.parametrize(
    ("wish", "own"),
    [
        ({"temperature": 1.0, "seed": 3}, {"temperature": 1.0, "seed": 3}),
        ({"temperature": 0.7, "top_p": 0.6, "seed": 4}, {"temperature": 0.7, "top_p": 0.6, "seed": 4}),
        ({"max_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_completion_tokens": 5}, {"max_new_tokens": 5}),
        ({"holitom": {"method": "full"}}, {"method": "full"}),
        ({"holitom": {"num_frames": 2, "start": 0.2}}, {"sampling": Sampling(num_frames=2, start_seconds=0.2)}),
    ],
)
def test_each_request_has_its_own_manner(
    talkative: Served, random: Model, clips: list[Path], wish: dict[str, Any], own: dict[str, Any]
) -> None:
    """While others are answered in theirs; what is said differs from what is said without the wish."""
    usual = alone(random, clips[1], QUESTIONS[2])
    expected = alone(random, clips[1], QUESTIONS[2], **own)
    bodies = [talkative.body(clips[1], QUESTIONS[2], **more) for more in ({}, wish, {})]
    with ThreadPoolExecutor(3) as pool:
        first, second, third = [response.json() for response in pool.map(talkative.post, bodies)]
    assert second["choices"][0]["message"]["content"] == expected.text
    assert second["choices"][0]["finish_reason"] == expected.finish_reason == "length"
    assert second["usage"]["completion_tokens"] == expected.tokens.generated
    assert {answer["choices"][0]["message"]["content"] for answer in (first, third)} == {usual.text}
    assert expected.text != usual.text  # control


def test_clients_at_once_are_answered_as_if_alone(served: Served, demo: Model, clips: list[Path]) -> None:
    pairs = [(clip, question) for clip in clips for question in QUESTIONS] * 2
    own = {(clip, question): alone(demo, clip, question).text for clip, question in dict.fromkeys(pairs)}
    assert len(set(own.values())) > 1  # control: answers can be mixed up
    with ThreadPoolExecutor(len(pairs)) as pool:
        heard = list(pool.map(lambda pair: stream(served, messages=[asked(*pair)]).text, pairs))
    assert heard == [own[pair] for pair in pairs]
    served.settle()


def test_equal_clips_are_looked_at_once(served: Served, clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    whole = pipeline.watch

    def counted(*args: Any, **more: Any) -> Any:
        seen.append(more)
        return whole(*args, **more)

    monkeypatch.setattr(pipeline, "watch", counted)
    body = served.body(clips[0], QUESTIONS[0], holitom={"num_frames": 3})
    with ThreadPoolExecutor(8) as pool:
        answers = {
            response.json()["choices"][0]["message"]["content"] for response in pool.map(served.post, [body] * 8)
        }
    assert len(answers) == 1
    assert len(seen) == 1
    served.post({**body, "holitom": {"num_frames": 2}})
    assert len(seen) == 2  # control


# --- clients that read slowly, or leave ------------------------------------------------------------


def raw(served: Served, body: dict[str, Any], *, length: str = "") -> socket.socket:
    """A connection that has sent a question, with another header for its length, and reads nothing."""
    content = json.dumps(body).encode()
    there = socket.socket()
    there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
    there.connect(("127.0.0.1", served.port))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    told = length or f"Content-Length: {len(content)}"
    there.sendall(f"{head}{told}\r\n\r\n".encode() + (b"" if length else content))
    return there


def test_slow_reader_holds_nobody_up(talkative: Served, random: Model, clips: list[Path]) -> None:
    body = talkative.body(clips[1], QUESTIONS[0], stream=True, max_tokens=600)
    with raw(talkative, body) as slow:
        wait_until(lambda: talkative.engine.speaking == 1)
        beside = talkative.post(talkative.body(clips[1], QUESTIONS[1])).json()
        assert beside["choices"][0]["message"]["content"] == alone(random, clips[1], QUESTIONS[1]).text
        talkative.settle()  # the model is done with it, though nothing has been read
        got = b""
        while not got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            part = slow.recv(65536)
            assert part
            got += part
    assert len(got) > 10 * SMALL_BUFFER_BYTES  # it could not all wait in the socket
    said = "".join(
        choice["delta"].get("content", "")
        for line in got.decode().splitlines()
        if line.startswith("data: {")
        for choice in json.loads(line.removeprefix("data: "))["choices"]
    )
    assert said == alone(random, clips[1], QUESTIONS[0], max_new_tokens=600).text


@pytest.mark.parametrize("streams", [True, False])
def test_client_that_leaves_gives_row_and_place_back(talkative: Served, clips: list[Path], streams: bool) -> None:
    body = talkative.body(clips[1], QUESTIONS[0], stream=streams, max_tokens=1000)
    with raw(talkative, body):
        wait_until(lambda: talkative.engine.speaking == 1)
        assert talkative.places_taken == 1
    wait_until(talkative.is_idle, 2)  # the whole answer takes longer: see the control
    with raw(talkative, body):
        wait_until(lambda: talkative.engine.speaking == 1)
        with pytest.raises(AssertionError):
            wait_until(talkative.is_idle, 2)
    talkative.settle()


def test_row_is_given_back_by_an_answer_that_begins_too_late(
    talkative: Served, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline may come in the very moment in which the first piece does."""
    in_time = answering.unless_gone

    async def late(receive: Any, work: Any) -> Any:
        outcome = await in_time(receive, work)
        if work.__name__ == "_begin":
            raise TimeoutError
        return outcome

    monkeypatch.setattr(answering, "unless_gone", late)
    body = talkative.body(clips[1], QUESTIONS[0], stream=True, max_tokens=1000)
    assert talkative.post(body).status_code == 504
    wait_until(talkative.is_idle, 1)  # the whole answer takes longer: see the control above
    monkeypatch.undo()
    assert talkative.post({**body, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_stands_before_everything(
    talkative: Served, random: Model, clips: list[Path], role: str
) -> None:
    """As in the prompt that the chat template writes; and what was kept of prompts without it is not taken for it."""
    said = {"role": role, "content": "Name colours, and nothing else."}
    watched = pipeline.watch(random, clips[1], sampling=Sampling(num_frames=FRAMES))
    texts = random.chat.encode_around((0,), QUESTIONS[0], (), said["content"])
    without = random.chat.encode_around((0,), QUESTIONS[0], ())
    assert random.chat.decode(texts[0]).startswith(f"system {said['content']}")
    assert texts[1:] == without[1:]
    begun = pipeline.begin(
        random, watched, QUESTIONS[0], Generation(max_new_tokens=16), system="Name colours, and nothing else."
    )
    plain = pipeline.begin(random, watched, QUESTIONS[0], Generation(max_new_tokens=16))
    assert begun.state.next_position - plain.state.next_position == len(texts[0]) - len(without[0])
    first = int(begun.state.logits.argmax())
    with talkative.client() as client:
        for messages in ([asked(clips[1], QUESTIONS[0])], [said, asked(clips[1], QUESTIONS[0])]):
            heard = client.chat.completions.create(
                model=talkative.model_id,
                messages=messages,  # type: ignore[arg-type]
                max_tokens=1,
            )
    assert heard.usage
    assert heard.choices[0].message.content == random.chat.decode([first])
    assert heard.usage.prompt_tokens == int(begun.state.next_position[0])
    assert (begun.state.logits - plain.state.logits).abs().max() > 1e-3  # control: it matters


FAILING = "{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}"
NO_PLACE = {
    "reads the last message alone": "<video>{{ messages[-1]['content'][-1]['text'] }}",
    "leaves it out": "<video>{% for m in messages if m.role != 'system' %}{{ m['content'][-1]['text'] }}{% endfor %}",
    "fails": f"{FAILING}<video>",
}


def test_the_bundled_model_answers_under_a_system_message(served: Served, demo: Model, clips: list[Path]) -> None:
    """With what the same prompt leads to in the engine's own steps."""
    watched = pipeline.watch(demo, clips[0], sampling=Sampling(num_frames=FRAMES))
    begun = pipeline.begin(demo, watched, QUESTIONS[0], Generation(max_new_tokens=16), system="Be brief.")
    with torch.inference_mode():
        ids = list(generate(demo.language_model, demo.lm_head, begun.state, begun.generation, demo.chat.end_ids))
    messages = [{"role": "system", "content": "Be brief."}, asked(clips[0], QUESTIONS[0])]
    heard = stream(served, messages=messages, stream_options={"include_usage": True})
    assert heard.text == demo.chat.decode(ids) != ""
    assert heard.usage
    assert heard.usage["prompt_tokens"] == int(begun.state.next_position[0])
    assert heard.usage["prompt_tokens"] > alone(demo, clips[0], QUESTIONS[0]).tokens.prompt  # control


@pytest.mark.parametrize("template", NO_PLACE.values(), ids=NO_PLACE)
def test_a_template_without_a_place_for_the_system_is_told(random: Model, template: str) -> None:
    """Also where the question has the same words by chance."""
    chat = replace(random.chat, template=template)
    assert chat.encode_around((0,), "Who is brief?", ())
    for said in ("Be brief.", "brief"):
        with pytest.raises(UsageError, match="no place for a system message"):
            chat.encode_around((0,), "Who is brief?", (), said)
    assert random.chat.encode_around((0,), "Who is brief?", (), "brief")  # control
    with pytest.raises(UsageError, match="The system message contains '<video>'"):
        random.chat.encode_around((0,), "Who?", (), "<video>")
