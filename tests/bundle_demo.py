"""Make a trained run the bundled demo: its checkpoint, its log, a clip with questions, and the model card.

    python -m tests.bundle_demo RUN --command "python -m holitom_cli.quality.train RUN" --device "one NVIDIA H200"

A maintainer's script. RUN is the directory that the training wrote. The clip is chosen by a rule, given at `candidates`
and `choose`, so that the same run always brings the same one.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from holitom_cli import pipeline
from holitom_cli.model.hub import DEMO, locate
from holitom_cli.model.loading import Model, load_model
from holitom_cli.quality.clips import write_clip
from holitom_cli.quality.questions import Question, ask_about
from holitom_cli.quality.scoring import normalised
from holitom_cli.quality.world import FRAMES, Clip, make_clip, test_seed
from tests.model_card import Training, card

QUESTIONS = 6
MOST_BYTES = 16_000_000  # of everything in the folder
_CLIP = "shapes.mp4"
_BRIEF_FRAMES = 3  # something that is there for so short is easily missed


class Scene(NamedTuple):
    """A test clip and what the demo asks about it."""

    number: int  # of the test clip
    clip: Clip
    questions: list[Question]


def candidates() -> Iterator[Scene]:
    """Test clips, in order, that show what there is to see.

    Three or four things, one cut, one thing that is there for a moment only, and one that changes its colour. The
    questions are the first six that the clip brings in test wordings; they have to be of six kinds, and ask about the
    change and about the brief thing.
    """
    for number in count():
        clip = make_clip(test_seed(number))
        brief = [thing for thing in clip.things if thing.leave - thing.enter <= _BRIEF_FRAMES]
        if len(clip.cuts) != 1 or len(clip.things) < 3 or len(brief) != 1:
            continue
        questions = ask_about(clip, QUESTIONS, test=True)
        kinds = {question.kind for question in questions}
        about_the_brief = any(brief[0].name in question.text for question in questions)
        if len(kinds) == QUESTIONS and "change" in kinds and about_the_brief:
            yield Scene(number, clip, questions)


def choose(model: Model, path: Path, most: int = 50) -> tuple[Scene, int]:
    """Write the first candidate whose questions the model answers rightly, and say how many were passed over.

    Raises:
        SystemExit: none of the first `most`.
    """
    for passed, scene in enumerate(candidates()):
        if passed == most:
            raise SystemExit(f"of {most} clips there is none whose {QUESTIONS} questions are all answered rightly")
        write_clip(path, scene.clip)
        watched = pipeline.watch(model, path)
        said = [pipeline.ask(model, watched, question.text, max_new_tokens=16).text for question in scene.questions]
        if list(map(normalised, said)) == [normalised(question.answer) for question in scene.questions]:
            return scene, passed
    raise AssertionError("there is always another clip")


def write_questions(directory: Path, scene: Scene) -> None:
    """The questions with their answers, one JSON object a line."""
    rows = [
        {"video": _CLIP, "question": one.text, "answer": one.answer, "choices": one.choices, "type": one.kind}
        for one in scene.questions
    ]
    (directory / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def about_the_clip(scene: Scene, passed: int) -> str:
    """What the card says of the choice."""
    return (
        f"`holitom demo` shows `{_CLIP}` with `questions.jsonl`: test clip {scene.number}, the first with a cut, a\n"
        "change of colour and something brief whose questions the model answers rightly with every setting at its\n"
        f"default ({passed} passed over before it)."
    )


def bundle(run: Path, target: Path, training: Training) -> None:
    """Put everything in place; what was there is replaced once all is well.

    Raises:
        SystemExit: it is too large, or no clip fits.
        ValueError: the log has no test.
    """
    with TemporaryDirectory(dir=target.parent) as name:
        new = Path(name) / "demo"
        size, scene, passed = _gather(run, new, training)
        if size > MOST_BYTES:
            raise SystemExit(f"{size:,} bytes are more than {MOST_BYTES:,}")
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
    print(f"{target}: {size:,} bytes, test clip {scene.number}, {passed} passed over")


def _gather(run: Path, folder: Path, training: Training) -> tuple[int, Scene, int]:
    """Fill the folder; its size in bytes, what the demo shows, and how many clips were passed over for it."""
    shutil.copytree(run / "checkpoint", folder)
    shutil.copy(run / "log.jsonl", folder)
    model = load_model(folder, device="cpu")
    scene, passed = choose(model, folder / _CLIP)
    write_questions(folder, scene)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    about = about_the_clip(scene, passed)
    text = card(model.checkpoint.config, model.info.parameters, training, log, FRAMES, about)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return sum(file.stat().st_size for file in folder.iterdir()), scene, passed


def main() -> None:
    """Bundle with the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--command", required=True, help="that trained it, for the card")
    parser.add_argument("--device", required=True, help="that it ran on, for the card")
    parser.add_argument("--note", default="", help="what else the card has to say of the training")
    options = parser.parse_args()
    bundle(options.run, locate(DEMO).path, Training(options.command, options.device, options.note))


if __name__ == "__main__":
    main()
