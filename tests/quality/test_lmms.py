"""The model for lmms-eval: its arguments, its answers, what it encodes, what it refuses.

lmms-eval lives in an environment of its own. Where it is not installed, the few classes that the adapter uses are
stand-ins of the same shape; `python -m pytest tests/quality/test_lmms.py -W ignore` passes with the real ones too.
"""

from __future__ import annotations

import abc
import importlib.util
import inspect
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from holitom_cli import pipeline
from holitom_cli.errors import DeviceError, HolitomError, MethodError, ModelError, UsageError, VideoError
from holitom_cli.model import vision
from tests.lmms.compare import Run, differences

ROOT = Path(__file__).parent.parent.parent
ADAPTER = "holitom_cli.quality.lmms"

# --- lmms-eval, or what is used of it --------------------------------------------------------


class StandInModel(abc.ABC):
    """As lmms_eval.api.model.lmms of 0.7.3."""

    is_simple = True

    def __init__(self) -> None:
        self._rank = 0
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank

    @classmethod
    def create_from_arg_string(cls, text: str, more: Mapping[str, Any]) -> Any:
        given = dict(pair.split("=", 1) for pair in text.split(","))
        return cls(**{key: self_typed(value) for key, value in given.items()}, **{k: v for k, v in more.items() if v})

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...


def self_typed(text: str) -> Any:
    """As lmms-eval reads the values of --model_args."""
    if text.isnumeric():
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


@dataclass
class StandInCounts:
    """As lmms_eval.api.instance.TokenCounts."""

    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class StandInResult:
    """As lmms_eval.api.instance.GenerationResult."""

    text: str
    token_counts: StandInCounts | None = None


@dataclass(frozen=True)
class StandInManifest:
    """As lmms_eval.models.registry_v2.ModelManifest."""

    model_id: str
    simple_class_path: str | None = None


class StandInMetrics(list[Mapping[str, Any]]):
    """As lmms_eval.models.model_utils.gen_metrics."""

    def log_metrics(self, seconds: float, tokens: int, speed: float, additional_metrics: Mapping[str, Any]) -> None:
        head = {"total_elapsed_time": seconds, "total_gen_tokens": tokens, "avg_speed": speed}
        self.append({**head, **additional_metrics})

    def get_logged_metrics_history(self) -> list[Mapping[str, Any]]:
        return list(self)

    def reset_logged_metrics(self) -> None:
        self.clear()


def stand_ins() -> dict[str, Any]:
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.models", "lmms_eval.models.model_utils")
    return {
        **{name: ModuleType(name) for name in names},
        "lmms_eval.api.model": SimpleNamespace(lmms=StandInModel),
        "lmms_eval.api.instance": SimpleNamespace(GenerationResult=StandInResult, TokenCounts=StandInCounts),
        "lmms_eval.models.registry_v2": SimpleNamespace(ModelManifest=StandInManifest),
        "lmms_eval.models.model_utils.gen_metrics": StandInMetrics(),
        "loguru": SimpleNamespace(logger=SimpleNamespace(log=lambda *_: None)),
    }


@pytest.fixture(scope="module")
def adapter() -> Iterator[Any]:
    """The module, with lmms-eval if it is here."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("lmms_eval") is None:
            for name, module in stand_ins().items():
                patch.setitem(sys.modules, name, module)
        yield import_module(ADAPTER)
        sys.modules.pop(ADAPTER, None)


@pytest.fixture(scope="module")
def weights(tiny_checkpoint: Path) -> str:
    return f"pretrained={tiny_checkpoint},device=cpu,num_frames=2"


@pytest.fixture(scope="module")
def model(adapter: Any, weights: str) -> Any:
    return made(adapter, weights + ",preset=25,max_new_tokens=6")


def made(adapter: Any, text: str) -> Any:
    """The model as lmms-eval makes it from --model_args."""
    more = {"batch_size": 1, "max_batch_size": None, "device": None}
    return adapter.HolitomForLmms.create_from_arg_string(text, more)


# --- requests --------------------------------------------------------------------------------


def ask(model: Any, documents: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Any]:
    """Put documents to the model as a task does."""
    model.task_dict = {"shapes": {"test": documents}}
    settings = {"do_sample": False, "until": ["\n\n"], **wanted}
    return model.generate_until([request(one, number, settings) for number, one in enumerate(documents)])  # type: ignore[no-any-return]


def request(document: Mapping[str, Any], number: int, settings: Mapping[str, Any]) -> Any:
    arguments = (document["question"], settings, lambda it: it["visuals"], number, "shapes", "test")
    return SimpleNamespace(args=arguments, task_name="shapes")


def about(clip: Path, question: str = "What is shown?") -> dict[str, Any]:
    return {"question": question, "visuals": [str(clip)]}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts clips that go through the tower."""
    calls: list[int] = []
    real = vision.encode

    def counted(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        return real(*arguments, **more)

    monkeypatch.setattr(vision, "encode", counted)
    return calls


@pytest.fixture
def broken_clip(tmp_path: Path) -> Path:
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video at all" * 50)
    return path


# --- how lmms-eval finds it ------------------------------------------------------------------


def test_entry_point_leads_to_the_class(adapter: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["entry-points"]["lmms_eval.models"]["holitom"].partition(":")
    found = getattr(import_module(module), function)()
    assert found.model_id == "holitom"
    home, _, name = found.simple_class_path.rpartition(".")
    cls = getattr(import_module(home), name)
    assert issubclass(cls, sys.modules["lmms_eval.api.model"].lmms)
    assert cls.is_simple


def test_lmms_eval_is_no_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not [one for one in [*project["dependencies"], *project["optional-dependencies"]["dev"]] if "lmms" in one]


# --- answers ---------------------------------------------------------------------------------


def test_answers_are_those_of_the_pipeline(model: Any, demo_clip: Path) -> None:
    questions = ["What is shown?", "Is it night?", "How many people are there in this city?"]
    given = ask(model, [about(demo_clip, question) for question in questions])
    watched = pipeline.watch(model._model, demo_clip, method="holitom", preset="25", num_frames=2)
    expected = [pipeline.ask(model._model, watched, question, max_new_tokens=6) for question in questions]
    assert [one.text for one in given] == [one.text for one in expected]
    assert len({one.text for one in given}) > 1  # control: a constant would pass otherwise
    counts = [(one.token_counts.input_tokens, one.token_counts.output_tokens) for one in given]
    assert counts == [(one.tokens.prompt, one.tokens.generated) for one in expected]


def test_a_clip_asked_in_a_row_is_encoded_once(model: Any, demo_clip: Path, tmp_path: Path, encoded: list[int]) -> None:
    other = tmp_path / "other.mp4"
    shutil.copy(demo_clip, other)
    model._last = None
    ask(model, [about(demo_clip, "What?"), about(demo_clip, "Where?"), about(demo_clip, "When?")])
    assert len(encoded) == 1
    ask(model, [about(demo_clip), about(other), about(other, "Where?"), about(demo_clip)])
    assert len(encoded) == 3  # the first is still there from before, the last was replaced


def test_figures_reach_lmms_evals_results(model: Any, demo_clip: Path) -> None:
    metrics = sys.modules["lmms_eval.models.model_utils.gen_metrics"]
    metrics.reset_logged_metrics()
    given = ask(model, [about(demo_clip, "What?"), about(demo_clip, "Where?")])
    (logged,) = metrics.get_logged_metrics_history()
    watched = pipeline.watch(model._model, demo_clip, method="holitom", preset="25", num_frames=2)
    assert logged["visual_tokens"] == len(watched.visual)
    assert logged["total_gen_tokens"] == sum(one.token_counts.output_tokens for one in given)
    assert logged["ttft_ms"] > 0
    assert logged["paper_tflops"] > 0


def test_nothing_asked_is_nothing_answered(model: Any) -> None:
    assert ask(model, []) == []


# --- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("preset=10", {"retain_ratio": 0.10, "tau": 0.65, "inner_layer": "auto"}),
        ("retain_ratio=0.2,tau=0.7,inner_layer=off", {"retain_ratio": 0.2, "tau": 0.7, "inner_layer": "off"}),
        ("preset=10,tau=1,inner_layer=2,neighbours=5", {"tau": 1, "inner_layer": 2, "neighbours": 5}),
        ("method=random,retain_ratio=0.5,seed=3", {"retain_ratio": 0.5, "seed": 3}),
        ("method=full", {}),
    ],
)
def test_settings_of_the_method_are_arguments(
    adapter: Any, weights: str, text: str, expected: Mapping[str, Any]
) -> None:
    settings = asdict(made(adapter, f"{weights},{text}")._method)
    assert {key: settings[key] for key in expected} == expected
    assert expected or settings == {}


def test_frames_dtype_and_device_are_arguments(adapter: Any, weights: str, demo_clip: Path) -> None:
    model = made(adapter, f"{weights.replace('num_frames=2', 'num_frames=3')},dtype=bfloat16,method=full")
    assert str(model.device) == "cpu"
    assert model._model.info.dtype == "bfloat16"
    (answer,) = ask(model, [about(demo_clip)], max_new_tokens=1)
    assert answer.token_counts.input_tokens > 3 * 196


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("num_frame=2", MethodError, "no setting 'num_frame'.*num_frames, max_new_tokens"),
        ("method=nothing", MethodError, "no method 'nothing'.*holitom"),
        ("preset=11", MethodError, "no preset '11'.*25"),
        ("method=full,preset=10", MethodError, "'full' has no preset '10'"),
        ("retain_ratio=2", MethodError, "retain_ratio is 2"),
        ("inner_layer=9", MethodError, "inner_layer is 9.*4 layers"),
        ("max_new_tokens=0", UsageError, "max_new_tokens is 0"),
        ("broken_clips=skip", UsageError, "broken_clips is 'skip'.*stop or blank"),
        ("dtype=int8", HolitomError, "int8"),
    ],
)
def test_wrong_arguments_are_told_with_their_hint(
    adapter: Any, weights: str, text: str, error: type[HolitomError], said: str
) -> None:
    with pytest.raises(error, match=f"(?s){said}"):
        made(adapter, f"{weights},{text}")


@pytest.mark.parametrize("text", ["num_frames=0", "num_frames=2.5", "num_frames=many"])
def test_wrong_numbers_of_frames_are_refused(adapter: Any, tiny_checkpoint: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"num_frames is .* whole number"):
        made(adapter, f"pretrained={tiny_checkpoint},{text}")


def test_larger_batches_are_refused(adapter: Any, tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="batch_size is '4'"):
        adapter.HolitomForLmms(str(tiny_checkpoint), batch_size="4")


def test_a_missing_checkpoint_is_told(adapter: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no directory .*Give a directory"):
        made(adapter, f"pretrained={tmp_path / 'nothing'}")


def test_wrong_arguments_are_told_before_weights_are_read(
    adapter: Any, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("holitom_cli.model.loading.load", read)
    with pytest.raises(UsageError, match="max_new_tokens"):
        made(adapter, f"pretrained={tiny_checkpoint},max_new_tokens=0")
    with pytest.raises(MethodError, match="4 layers"):
        made(adapter, f"pretrained={tiny_checkpoint},inner_layer=9")
    with pytest.raises(AssertionError, match="weights are read"):  # control
        made(adapter, f"pretrained={tiny_checkpoint}")


def test_each_process_takes_its_own_gpu(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = adapter._device_of_process
    monkeypatch.setattr("torch.distributed.get_node_local_rank", lambda: 3)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert [here(device) for device in ("auto", "cuda", "cpu")] == ["auto", "cuda", "cpu"]  # one process
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert [here(device) for device in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:3", "cuda:1", "cpu"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert here("auto") == "auto"


def documented() -> list[str]:
    """The --model_args of every command in docs/lmms-eval.md, loops written out."""
    text = (ROOT / "docs" / "lmms-eval.md").read_text(encoding="utf-8")
    found = re.findall(r"^  *(?:lmms-env/bin/.* )?--model_args (\S+)", text, re.MULTILINE)
    presets = ("25", "20", "15", "10")
    return [
        one.replace("$preset", preset) for one in found for preset in (presets if "$preset" in one else presets[:1])
    ]


def test_documented_arguments_are_taken(adapter: Any, tiny_checkpoint: Path) -> None:
    given = [text.partition(",") for text in documented()]
    assert len(given) == 10
    assert {name for name, _, _ in given} == {"pretrained=llava-hf/llava-onevision-qwen2-7b-ov-hf"}
    made_of = [made(adapter, f"pretrained={tiny_checkpoint},{rest}")._method for _, _, rest in given]
    rows = [
        (getattr(one, "retain_ratio", 1), getattr(one, "tau", 0), getattr(one, "inner_layer", "")) for one in made_of
    ]
    paper = [(0.25, 0.8), (0.20, 0.8), (0.15, 0.8), (0.10, 0.65)]
    inside, outside = [(*row, "auto") for row in paper], [(*row, "off") for row in paper]
    assert rows == [*inside, *outside, (1, 0, ""), inside[2]]


def test_every_argument_is_documented(adapter: Any) -> None:
    text = (ROOT / "docs" / "lmms-eval.md").read_text(encoding="utf-8")
    section = text.partition("## Arguments")[2].partition("## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (?:`?([^|`]*)`?)? *\|", section, re.MULTILINE)
    taken = inspect.signature(adapter.HolitomForLmms).parameters
    own = {name: taken[name].default for name in taken if name not in ("batch_size", "settings")}
    assert {name for name, _ in rows} == own.keys()
    assert ", ".join(own) == adapter._ARGUMENTS
    said = {name: default.strip() for name, default in rows if name != "max_new_tokens"}
    assert said == {name: str(own[name] or "") if name != "pretrained" else "" for name in said}


# --- what a task asks for --------------------------------------------------------------------


def test_the_task_says_how_long_answers_are_unless_the_user_does(adapter: Any, weights: str, demo_clip: Path) -> None:
    free, bounded = made(adapter, weights), made(adapter, f"{weights},max_new_tokens=2")

    def longest(one: Any, **wanted: Any) -> int:
        (answer,) = ask(one, [about(demo_clip)], **wanted)
        return answer.token_counts.output_tokens  # type: ignore[no-any-return]

    assert longest(free, max_new_tokens=3) == 3
    assert longest(free, max_new_tokens=9) > 3
    assert longest(bounded, max_new_tokens=9) == 2


def test_an_answer_ends_before_the_first_stop(model: Any, demo_clip: Path) -> None:
    (whole,) = ask(model, [about(demo_clip)])
    stop = whole.text[5:8]
    for until in ([stop], stop, ["never said", stop, whole.text[-3:]]):
        (cut,) = ask(model, [about(demo_clip)], until=until)
        assert cut.text == whole.text[: whole.text.index(stop)]
    for until in ([], None, [""]):
        (same,) = ask(model, [about(demo_clip)], until=until)
        assert same.text == whole.text


@pytest.mark.parametrize(("name", "value"), [("do_sample", True), ("num_beams", 4), ("repetition_penalty", 1.2)])
def test_anything_but_greedy_is_refused(model: Any, demo_clip: Path, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"shapes, document 0: The task sets {name} to {value}.*--gen_kwargs {name}="):
        ask(model, [about(demo_clip)], **{name: value})
    ask(model, [about(demo_clip)], num_beams=1, do_sample=False, repetition_penalty=None, temperature=0, top_p=None)


@pytest.mark.parametrize("visuals", [[], [object()], ["a.mp4", "b.mp4"], None])
def test_only_one_video_file_can_be_shown(model: Any, visuals: Any) -> None:
    with pytest.raises(UsageError, match=r"shapes, document 0: The task shows .* about one video file"):
        ask(model, [{"question": "What?", "visuals": visuals}])


def test_likelihoods_and_rounds_are_refused(model: Any) -> None:
    requests = [request({"question": "What?"}, 0, {})]
    with pytest.raises(UsageError, match=r"Task shapes compares likelihoods.*egoschema_mcppl"):
        model.loglikelihood(requests)
    with pytest.raises(UsageError, match="Task shapes asks in several rounds"):
        model.generate_until_multi_round(requests)


# --- broken clips ----------------------------------------------------------------------------


def test_a_broken_clip_ends_the_run(model: Any, demo_clip: Path, broken_clip: Path) -> None:
    with pytest.raises(VideoError, match=r"shapes, document 1: broken.mp4 is not a video that can be read\. \w+"):
        ask(model, [about(demo_clip), about(broken_clip)])


def test_a_broken_clip_is_left_blank_if_wanted(
    adapter: Any, weights: str, demo_clip: Path, broken_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(adapter, "_log", lambda level, text: logged.append(f"{level}: {text}"))
    model = made(adapter, f"{weights},broken_clips=blank,max_new_tokens=4")
    first, blank, last = ask(model, [about(demo_clip), about(broken_clip), about(demo_clip)])
    assert blank.text == ""
    assert blank.token_counts is None
    assert first.text == last.text != ""
    said = "error: shapes, document 1 gets an empty answer: broken.mp4 is not a video that can be read."
    assert [text for text in logged if text.startswith("error")] == [said]


def test_other_errors_are_never_blank(
    adapter: Any, weights: str, demo_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise DeviceError("The memory is full.", "Use fewer --num-frames.")

    model = made(adapter, f"{weights},broken_clips=blank")
    monkeypatch.setattr(pipeline, "watch", full)
    with pytest.raises(DeviceError, match=r"document 0: The memory is full\. Use fewer --num-frames\."):
        ask(model, [about(demo_clip)])


# --- the comparison of tests/lmms/compare.py -------------------------------------------------


def test_the_comparison_sees_what_differs() -> None:
    same = Run(0.5, {("a.mp4", "What?"): " a cup", ("a.mp4", "Where?"): "left"})
    assert differences(same, Run(0.5, {("a.mp4", "What?"): "a cup", ("a.mp4", "Where?"): "left"})) == []
    assert differences(same, Run(0.5, {**same.answers, ("a.mp4", "Where?"): "right"})) == [
        "('a.mp4', 'Where?'): 'left' and 'right'"
    ]
    assert differences(same, Run(0.25, same.answers)) == ["accuracy 0.5 and 0.25"]
    assert differences(same, Run(0.5, {("a.mp4", "What?"): "a cup"})) == ["only one has ('a.mp4', 'Where?')"]
    assert differences(Run(0, {}), Run(0, {})) == ["there are no answers"]
