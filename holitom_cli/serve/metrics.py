"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from holitom_cli.serve.engine import Engine
    from holitom_cli.types import Answer

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, engine: Engine) -> None:
        """All at nothing."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "holitom_requests", "Requests that were responded to.", ["route", "status"], registry=self._registry
        )
        self._tokens = Counter("holitom_tokens", "Tokens of prompts and answers.", ["kind"], registry=self._registry)
        self._visual = Counter(
            "holitom_visual_tokens", "Visual tokens of clips, and those that were kept.", ["kind"],
            registry=self._registry,
        )  # fmt: skip
        self._first = Histogram(
            "holitom_time_to_first_token_seconds", "From processed pixels to the first token.", buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._whole = Histogram(
            "holitom_request_seconds", "From a request to the end of its answer.", buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "holitom_requests_under_way", "Requests that have a place, waiting or answered.", registry=self._registry
        )
        self._gauge("holitom_rows_busy", "Answers that are generated together now.", lambda: engine.speaking)
        self._gauge("holitom_clips_kept", "Clips that are kept for another question.", lambda: len(engine.clips))
        self._gauge("holitom_clips_kept_bytes", "Bytes that they take.", lambda: engine.clips.nbytes)

    def answered(self, answer: Answer, seconds: float) -> None:
        """Count an answer that took so long."""
        tokens = answer.tokens
        self._tokens.labels("prompt").inc(tokens.prompt)
        self._tokens.labels("completion").inc(tokens.generated)
        self._visual.labels("original").inc(tokens.original)
        self._visual.labels("kept").inc(tokens.visual)
        self._first.observe(answer.timings.ttft_ms / 1000)
        self._whole.observe(seconds)

    def page(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self._registry).set_function(value)
