"""What a batch has done so far: progress on the way, a table and a document at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from holitom_cli.cli.console import Talk
from holitom_cli.errors import HolitomError
from holitom_cli.report.terminal import warning_line
from holitom_cli.report.text import count, counted, percent, seconds, size, visible
from holitom_cli.types import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from holitom_cli.batch.estimate import Estimate
    from holitom_cli.batch.runner import Item, Run
    from holitom_cli.clock import Stopwatch


@dataclass(slots=True)
class Tally:
    """Counts of rows, and sums over the answers among them."""

    answered: int = 0
    failed: int = 0
    skipped: int = 0  # answered before
    failed_before: int = 0
    kept: float = 0.0  # shares of tokens, added up
    generated_tokens: int = 0
    stages: Counter[str] = field(default_factory=Counter)  # where failures happened

    def add(self, item: Item) -> None:
        """Count an item."""
        outcome = item.outcome
        if isinstance(outcome, Answer):
            self.answered += 1
            self.kept += outcome.tokens.retained
            self.generated_tokens += outcome.tokens.generated
        elif isinstance(outcome, HolitomError):
            self.failed += 1
            self.stages[outcome.stage] += 1
        elif outcome == "failed":
            self.failed_before += 1
        else:
            self.skipped += 1

    @property
    def kept_on_average(self) -> float | None:
        return self.kept / self.answered if self.answered else None

    def line(self) -> str:
        """The counts in a line."""
        before = self.failed_before
        again = f", {before} failed before (--retry-failed tries again)" if before else ""
        return f"{self.answered} answered, {self.failed} failed, {self.skipped} skipped{again}"

    def table(self, watch: Stopwatch) -> Table:
        """Counts, rates and where the time went."""
        total = watch.total_seconds
        table = Table(show_header=False, box=None, pad_edge=False)
        rows = {
            "rows": f"{count(self.answered + self.failed)} in {seconds(total)}, "
            f"{count(round(3600 * (self.answered + self.failed) / total))} an hour",
            "failed": ", ".join(f"{number} at stage {stage}" for stage, number in self.stages.items()),
            "tokens kept": "" if self.kept_on_average is None else f"{percent(self.kept_on_average)} on average",
            "generated": f"{counted(self.generated_tokens, 'token')}, {self.generated_tokens / total:.1f} a second",
            "time": ", ".join(f"{name} {seconds(spent)}" for name, spent in watch.seconds.items()),
            "model at work": percent(busy_share(watch)),
        }
        for name, text in rows.items():
            if text:
                table.add_row(f"{name}  ", text)
        return table

    def document(self, watch: Stopwatch, *, interrupted: bool) -> dict[str, Any]:
        """The same for programs."""
        return {
            "schema_version": 1,
            "answered": self.answered,
            "failed": self.failed,
            "skipped": self.skipped,
            "failed_before": self.failed_before,
            "failed_by_stage": dict(self.stages),
            "interrupted": interrupted,
            "total_s": watch.total_seconds,
            "rows_per_hour": 3600 * (self.answered + self.failed) / watch.total_seconds,
            "retained_ratio_mean": self.kept_on_average,
            "generated_tokens": self.generated_tokens,
            "seconds_by_work": dict(watch.seconds),
            "model_at_work_ratio": busy_share(watch),
        }


def busy_share(watch: Stopwatch) -> float:
    """Share of the time in which the model's thread had something to do with it, and did not wait for clips."""
    at_work = sum(spent for name, spent in watch.seconds.items() if name != "waiting for clips")
    return min(1.0, at_work / watch.total_seconds)


@contextmanager
def board(talk: Talk, run: Run, tally: Tally, total: int) -> Iterator[Callable[[Item], None]]:
    """Show progress: a bar on a terminal, a line a clip elsewhere; to be told of every item."""
    shown = talk.console.is_terminal and not talk.quiet
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    unfinished: dict[tuple[Any, ...], list[Item]] = {}
    with Progress(*columns, console=talk.console, disable=not shown) as bar:
        task = bar.add_task("rows", total=total)

        def step(item: Item) -> None:
            tally.add(item)
            bar.update(task, advance=1, total=total + run.extra, description=_note(tally, run.watch))
            place = (item.job.clip, item.job.window)
            unfinished.setdefault(place, []).append(item)
            if len(unfinished[place]) >= len(item.job.asked):
                _tell(talk, unfinished.pop(place), shown)

        yield step
        for items in unfinished.values():
            _tell(talk, items, shown)


def _note(tally: Tally, watch: Stopwatch) -> str:
    rate = 60 * (tally.answered + tally.failed) / watch.total_seconds
    kept = "" if tally.kept_on_average is None else f", {percent(tally.kept_on_average)} of the tokens kept"
    return f"{rate:.1f} rows/min, {tally.failed} failed{kept}"


def _tell(talk: Talk, items: list[Item], shown: bool) -> None:
    """A clip is through: what came of it, where the bar does not say it."""
    errors = [item.outcome for item in items if isinstance(item.outcome, HolitomError)]
    answers = [item.outcome for item in items if isinstance(item.outcome, Answer)]
    window = items[0].job.window
    clip = visible(str(items[0].job.clip)) + (f" {seconds(window[0])}" if window else "")
    state = f"failed: {errors[0].message}" if errors else f"{len(answers)} answered" if answers else "skipped"
    if errors or not shown:
        talk.say(Text(f"{clip}: {visible(state)}"))
    for warning in answers[0].frames.warnings if answers else ():
        talk.say(warning_line(f"{clip}: {warning}"))


def estimate_table(total: Estimate, model: str) -> Table:
    """What a batch would take."""
    table = Table(show_header=False, box=None, pad_edge=False)
    unreadable = f", {count(total.unreadable)} of them unreadable" if total.unreadable else ""
    rows = {
        "clips": f"{count(total.clips)}{unreadable}, {seconds(total.seconds)} of video",
        "rows": f"{count(total.rows)}: {count(total.answered)} answered, {count(total.failed)} failed before, "
        f"{count(total.open)} to do",
        "frames": f"up to {count(total.frames)} to decode",
        "visual tokens": f"up to {count(total.visual_tokens)} into the language model",
        "generated": f"up to {counted(total.generated_tokens, 'token')}",
        "memory": f"{size(total.weights_bytes)} for the weights of {model}, up to {size(total.answers_bytes)} for "
        "answers that are generated together",
        "cache": f"up to {size(total.cache_bytes)} on disk",
    }
    for name, text in rows.items():
        table.add_row(f"{name}  ", text)
    return table
