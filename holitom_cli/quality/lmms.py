"""The pipeline as a model of lmms-eval: `lmms-eval --model holitom --model_args pretrained=demo,preset=15 --tasks ...`.

lmms-eval finds `manifest` by its entry point and imports this module; nothing else in the package does. How to install
and run it: docs/lmms-eval.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from statistics import fmean
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms

from holitom_cli.errors import HolitomError, UsageError, VideoError

if TYPE_CHECKING:
    from holitom_cli.methods import Method
    from holitom_cli.model.loading import Checkpoint
    from holitom_cli.types import Answer, Watched

_LONGEST = 1024  # tokens, where neither the task nor the user says; what lmms-eval's own LLaVA-OneVision takes
_ARGUMENTS = "pretrained, method, preset, num_frames, max_new_tokens, device, dtype, revision, broken_clips"


def manifest() -> Any:
    """The name that lmms-eval lists the model by, and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="holitom", simple_class_path=f"{__name__}.{HolitomForLmms.__name__}")


class _Said(NamedTuple):
    """What stays of an answer; its frames would fill the memory."""

    text: str
    prompt_tokens: int
    visual_tokens: int
    generated_tokens: int
    ttft_ms: float
    paper_tflops: float


class HolitomForLmms(lmms):  # type: ignore[misc]  # lmms-eval ships no types
    """A LLaVA-OneVision checkpoint with a compression method that answers questions about video files, greedily.

    Args:
        pretrained: a directory, a hub id that has been downloaded, or "demo".
        method: a method's name.
        preset: of the method; 25, 20, 15 and 10 are the paper's rows of holitom.
        num_frames: how many frames to sample, uniformly.
        max_new_tokens: the longest answer; None leaves it to the task.
        device: auto, cuda, cuda:N, mps or cpu; with auto or cuda, each of several processes takes a GPU of its own.
        dtype: auto, bfloat16, float16 or float32.
        revision: branch, tag or commit of a hub id.
        broken_clips: "stop" ends the run at a clip that cannot be read, "blank" gives its questions empty answers.
        batch_size: from lmms-eval; only 1.
        settings: of the method, as retain_ratio=0.15 or inner_layer="off"; they override the preset.

    Raises:
        HolitomError: an argument, the checkpoint or the device cannot be used; the hint is part of the text.
    """

    is_simple = True  # says to lmms-eval that prompts are plain text

    def __init__(
        self,
        pretrained: str,
        method: str = "holitom",
        preset: int | str | None = None,
        num_frames: int = 32,
        max_new_tokens: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        broken_clips: str = "stop",
        batch_size: int | str = 1,
        **settings: Any,
    ) -> None:
        super().__init__()
        from holitom_cli.model import loading

        with _whole_text():
            # 1. Everything that can be wrong without reading a weight.
            self._method = _method(method, preset, settings)
            self._num_frames = _count("num_frames", num_frames)
            self._max_new_tokens = None if max_new_tokens is None else _count("max_new_tokens", max_new_tokens)
            self._stop_at_broken_clips = _one_of("broken_clips", broken_clips, "stop", "blank") == "stop"
            _one_of("batch_size", str(batch_size), "1")
            checkpoint = _checkpoint(str(pretrained), None if revision is None else str(revision))
            self._method.reductions(checkpoint.depth)
            # 2. The weights.
            self._model = loading.load(checkpoint, _device_of_process(device), dtype)
        self._last: tuple[str, Watched] | None = None

    @property
    def device(self) -> Any:
        """Where lmms-eval puts what it gathers from several processes."""
        return self._model.device

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests one by one; those in a row about the same clip share its compressed tokens.

        Args:
            requests: whose `args` are prompt, generation settings, function from a document to its visuals, number of
                the document, task and split.

        Returns:
            for each its answer and the tokens that went into and came out of the language model.

        Raises:
            HolitomError: a request cannot be answered; the text names task and document.
        """
        from tqdm import tqdm  # type: ignore[import-untyped]

        started = perf_counter()
        said = [self._say(*request.args) for request in tqdm(requests, desc="holitom", disable=self.rank != 0)]
        _log_figures([one for one in said if one], perf_counter() - started)
        return [_result(one) for one in said]

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Refused: the tasks of the paper let the model write its answer."""
        _refuse(requests, "compares likelihoods")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Refused: the tasks of the paper ask once."""
        _refuse(requests, "asks in several rounds")

    def _say(
        self,
        question: str,
        wanted: Mapping[str, Any],
        doc_to_visual: Callable[[Any], Any],
        document: int,
        task: str,
        split: str,
    ) -> _Said | None:
        """Answer one request; None for a clip that cannot be read, where these are left blank."""
        from holitom_cli import pipeline

        where = f"{task}, document {document}"
        with _whole_text(f"{where}: "):
            limit, stops = _generation(wanted, self._max_new_tokens)
            path = _only_path(doc_to_visual(self.task_dict[task][split][document]))
            try:
                watched = self._watch(path)
            except VideoError as error:
                if self._stop_at_broken_clips:
                    raise
                _log("error", f"{where} gets an empty answer: {error}")
                return None
            return _said(pipeline.ask(self._model, watched, question, max_new_tokens=limit), stops)

    def _watch(self, path: str) -> Watched:
        from holitom_cli import pipeline

        if self._last is None or self._last[0] != path:
            watched = pipeline.watch(self._model, path, method=self._method, num_frames=self._num_frames)
            self._last = (path, watched)
        return self._last[1]


# --- arguments -------------------------------------------------------------------------------


def _method(name: str, preset: int | str | None, settings: Mapping[str, Any]) -> Method:
    from holitom_cli import methods
    from holitom_cli.errors import MethodError

    try:
        return methods.get(str(name), preset=None if preset is None else str(preset), **settings)
    except MethodError as error:  # a model argument that is misspelt ends up among the settings
        raise MethodError(error.message, f"{error.hint} Besides these there are {_ARGUMENTS}.") from error


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"Argument {name} is {value!r}, which is not a whole number of at least 1.", f"As in {name}=8")
    return value


def _one_of(name: str, value: Any, *allowed: str) -> str:
    if value not in allowed:
        raise UsageError(f"Argument {name} is {value!r}.", f"It can be {' or '.join(allowed)}.")
    return str(value)


def _checkpoint(name: str, revision: str | None) -> Checkpoint:
    from holitom_cli.model import hub, loading

    checkpoint = loading.read_checkpoint(hub.locate(name, revision))
    if checkpoint.random:
        _log("warning", f"The checkpoint {name} has random weights: its accuracy is chance.")
    return checkpoint


def _device_of_process(wanted: str) -> str:
    """The device that was asked for; of several processes on one host, each takes another GPU."""
    import torch
    from torch import distributed

    several = distributed.is_available() and distributed.is_initialized()
    if several and wanted in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{distributed.get_node_local_rank()}"
    return wanted


# --- requests --------------------------------------------------------------------------------


def _generation(wanted: Mapping[str, Any], max_new_tokens: int | None) -> tuple[int, list[str]]:
    """The longest answer and the texts that end it, from the generation settings of a task.

    Raises:
        UsageError: the task asks for anything but greedy decoding.
    """
    for name, greedy in {"do_sample": False, "num_beams": 1, "repetition_penalty": 1}.items():
        if (value := wanted.get(name)) not in (None, greedy):
            raise UsageError(
                f"The task sets {name} to {value}, but answers are greedy.", f"Add --gen_kwargs {name}={greedy}"
            )
    until = wanted.get("until") or []
    limit = max_new_tokens or wanted.get("max_new_tokens") or _LONGEST
    return int(limit), [until] if isinstance(until, str) else list(until)


def _only_path(visuals: Any) -> str:
    """The one video file that a task shows.

    Raises:
        UsageError: it shows something else.
    """
    if isinstance(visuals, Sequence) and len(visuals) == 1 and isinstance(visuals[0], str | PathLike):
        return fspath(visuals[0])
    shown = [type(one).__name__ for one in visuals] if isinstance(visuals, Sequence) else visuals
    raise UsageError(
        f"The task shows {shown}, but questions have to be about one video file.", "Choose a task about videos."
    )


def _said(answer: Answer, stops: Sequence[str]) -> _Said:
    text = answer.text
    for stop in stops:
        text = text.partition(stop)[0] if stop else text
    tokens = answer.tokens
    return _Said(
        text, tokens.prompt, tokens.visual, tokens.generated, answer.timings.ttft_ms, answer.flops.paper / 1e12
    )


def _result(said: _Said | None) -> Any:
    if said is None:
        return GenerationResult("")
    return GenerationResult(said.text, TokenCounts(said.prompt_tokens, said.generated_tokens))


def _refuse(requests: Sequence[Any], does: str) -> NoReturn:
    task = requests[0].task_name
    hint = "Choose a task that generates its answers once, as egoschema instead of egoschema_mcppl."
    raise UsageError(f"Task {task} {does}, which holitom does not do in lmms-eval. {hint}")


@contextmanager
def _whole_text(where: str = "") -> Iterator[None]:
    """Put the hint into an error's text: lmms-eval shows nothing else of it."""
    try:
        yield
    except HolitomError as error:
        raise type(error)(f"{where}{error.message} {error.hint}".strip(), error.hint) from error


# --- what lmms-eval's log and results say besides the score -----------------------------------


def _log(level: str, text: str) -> None:
    from loguru import logger

    logger.log(level.upper(), text)


def _log_figures(said: Sequence[_Said], seconds: float) -> None:
    """Put the means over all answers of this process into lmms-eval's `throughput`."""
    from lmms_eval.models.model_utils.gen_metrics import log_metrics

    if not said:
        return
    generated = sum(one.generated_tokens for one in said)
    means = {name: fmean(getattr(one, name) for one in said) for name in ("visual_tokens", "ttft_ms", "paper_tflops")}
    log_metrics(seconds, generated, generated / seconds, means)
