"""A worker of `holitom batch --gpus`: lines of JSON in, lines of JSON out, for as long as its parent is there."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from holitom_cli.errors import in_a_sentence

if TYPE_CHECKING:
    from collections.abc import Callable

    from holitom_cli.batch.runner import Run


def main() -> None:
    """Load the model that the first line names, and answer until the parent says that there is no more."""
    say = _speaker()
    document = json.loads(sys.stdin.buffer.readline())
    try:
        run = _run(document)
    except Exception as error:
        told = in_a_sentence(error)
        say({"error": {"message": told.message, "hint": told.hint}})
        return
    run.on_cut = lambda job, windows: say({"job": job.number, "windows": windows})
    run.expect_more()
    threading.Thread(target=_listen, args=(run,), daemon=True).start()
    say({"ready": True})
    _answer(run, document, say)
    say({"seconds": run.watch.seconds})


def _speaker() -> Callable[[dict[str, Any]], None]:
    """Writes messages; whatever else prints to stdout, native libraries too, is sent to stderr."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        rest = json.dumps(message, allow_nan=False).encode() + b"\n"
        while rest:
            rest = rest[out.write(rest) :]

    return say


def _run(document: dict[str, Any]) -> Run:
    from pathlib import Path

    from holitom_cli.batch.crew import plan_from
    from holitom_cli.batch.ledger import Ledger
    from holitom_cli.batch.runner import Run
    from holitom_cli.cli.session import spare_threads
    from holitom_cli.model import loading
    from holitom_cli.model.hub import locate

    checkpoint = loading.read_checkpoint(locate(document["model"], document["revision"]))
    model = loading.load(checkpoint, document["device"], document["dtype"])
    spare_threads(model)
    output = Path(document["output"]) if document["output"] else None
    ledger = Ledger(output, retry_failed=document["retry_failed"], force=document["force"])
    return Run(model, [], plan_from(document["plan"]), ledger)


def _listen(run: Run) -> None:
    """Take jobs. A parent that is gone without a word has been killed: then this process ends, too."""
    from holitom_cli.batch.crew import job_from

    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "end" in message:
            run.feed(None)
            return
        if "stop" in message:
            run.stop()
        else:
            run.feed(job_from(message))
    from holitom_cli.video import stop_workers

    stop_workers()
    os._exit(1)


def _answer(run: Run, document: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    from pathlib import Path

    from holitom_cli.cli.clip_pages import clip_pages
    from holitom_cli.cli.tally import row_of

    folder = Path(document["clip_pages"]) if document["clip_pages"] else None
    timeout_seconds = document["plan"]["decode_timeout_seconds"]
    with clip_pages(folder, timeout_seconds, lambda said: say({"warning": said})) as paged:
        for item in run:
            row = row_of(item)
            told = {"claim": item.outcome} if row is None else {"row": row | paged(item)}
            say({"job": item.job.number, "key": item.key, **told})
