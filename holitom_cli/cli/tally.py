"""What a batch has done so far: progress on the way, a table and a document at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from holitom_cli.cli.console import Talk
from holitom_cli.errors import HolitomError
from holitom_cli.report.record import error_record, flat_record
from holitom_cli.report.terminal import warning_line
from holitom_cli.report.text import count, counted, percent, seconds, size, visible
from holitom_cli.types import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from holitom_cli.batch.crew import Made
    from holitom_cli.batch.estimate import Estimate
    from holitom_cli.batch.questions import Asked, Job
    from holitom_cli.batch.runner import Item
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

    def add(self, made: Made) -> None:
        """Count a row."""
        row = made.row
        if row is None:
            self.failed_before += made.claim == "failed"
            self.skipped += made.claim == "answered"
        elif "error" in row:
            self.failed += 1
            self.stages[row["error"]["stage"]] += 1
        else:
            self.answered += 1
            self.kept += row["tokens"]["retained_ratio"]
            self.generated_tokens += row["tokens"]["generated"]

    @property
    def kept_on_average(self) -> float | None:
        return self.kept / self.answered if self.answered else None

    def line(self) -> str:
        """The counts in a line."""
        before = self.failed_before
        again = f", {before} failed before (--retry-failed tries again)" if before else ""
        return f"{self.answered} answered, {self.failed} failed, {self.skipped} skipped{again}"

    def table(self, watch: Stopwatch, workers: int) -> Table:
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
            "model at work": percent(busy_share(watch, workers)),
        }
        for name, text in rows.items():
            if text:
                table.add_row(f"{name}  ", text)
        return table

    def document(self, watch: Stopwatch, workers: int, *, interrupted: bool) -> dict[str, Any]:
        """The same for programs."""
        return {
            "schema_version": 1,
            "answered": self.answered,
            "failed": self.failed,
            "skipped": self.skipped,
            "failed_before": self.failed_before,
            "failed_by_stage": dict(self.stages),
            "interrupted": interrupted,
            "workers": workers,
            "total_s": watch.total_seconds,
            "rows_per_hour": 3600 * (self.answered + self.failed) / watch.total_seconds,
            "retained_ratio_mean": self.kept_on_average,
            "generated_tokens": self.generated_tokens,
            "seconds_by_work": dict(watch.seconds),
            "model_at_work_ratio": busy_share(watch, workers),
        }


def busy_share(watch: Stopwatch, workers: int) -> float:
    """Share of the time in which a model's thread had something to do with it, and did not wait for clips."""
    at_work = sum(spent for name, spent in watch.seconds.items() if name != "waiting for clips")
    return min(1.0, at_work / (watch.total_seconds * workers))


def row_of(item: Item) -> dict[str, Any] | None:
    """The row of an item; None where it was there before."""
    job, asked, outcome = item.job, item.asked, item.outcome
    if isinstance(outcome, HolitomError):
        return error_row(job, asked, outcome, item.key)
    if not isinstance(outcome, Answer):
        return None
    return _named(flat_record(outcome, item.key), job, asked)


def error_row(job: Job, asked: Asked, error: HolitomError, key: str) -> dict[str, Any]:
    """The row of a question that failed."""
    return _named(error_record(str(job.clip.absolute()), asked.text, error, key), job, asked)


def _named(row: dict[str, Any], job: Job, asked: Asked) -> dict[str, Any]:
    """With the user's name for it, and the window that it is about."""
    if asked.custom_id is not None:
        row["custom_id"] = asked.custom_id
    if job.window is not None:
        row["start_s"], row["end_s"] = job.window
    return row


@contextmanager
def board(talk: Talk, tally: Tally, watch: Stopwatch, total: int) -> Iterator[Callable[[Made], None]]:
    """Show progress: a bar on a terminal, a line a clip elsewhere; to be told of every row."""
    shown = talk.console.is_terminal and not talk.quiet
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    unfinished: dict[tuple[Any, ...], list[Made]] = {}
    with Progress(*columns, console=talk.console, disable=not shown) as bar:
        task = bar.add_task("rows", total=total)

        def step(made: Made) -> None:
            nonlocal total
            total += made.more
            if made.more:
                return
            tally.add(made)
            bar.update(task, advance=1, total=total, description=_note(tally, watch))
            place = (made.job.number, made.row and made.row.get("start_s"))
            unfinished.setdefault(place, []).append(made)
            if len(unfinished[place]) >= len(made.job.asked):
                _tell(talk, unfinished.pop(place), shown)

        yield step
        for several in unfinished.values():
            _tell(talk, several, shown)


def _note(tally: Tally, watch: Stopwatch) -> str:
    rate = 60 * (tally.answered + tally.failed) / watch.total_seconds
    kept = "" if tally.kept_on_average is None else f", {percent(tally.kept_on_average)} of the tokens kept"
    return f"{rate:.1f} rows/min, {tally.failed} failed{kept}"


def _tell(talk: Talk, several: Sequence[Made], shown: bool) -> None:
    """A clip is through: what came of it, where the bar does not say it."""
    rows = [made.row for made in several if made.row is not None]
    errors = [row["error"]["message"] for row in rows if "error" in row]
    answers = [row for row in rows if "answer" in row]
    begin = rows[0].get("start_s") if rows else None
    clip = visible(str(several[0].job.clip)) + ("" if begin is None else f" {seconds(begin)}")
    state = f"failed: {errors[0]}" if errors else f"{len(answers)} answered" if answers else "skipped"
    if errors or not shown:
        talk.say(Text(f"{clip}: {visible(state)}"))
    for warning in answers[0]["sampling"]["warnings"] if answers else ():
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
