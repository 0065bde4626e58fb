"""Servers and models that the tests of the server share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holitom_cli.model.loading import Model
from tests.clips import make
from tests.serve.served import Served, load, load_endless, serving

DEMO_CLIP = Path(__file__).parent.parent.parent / "holitom_cli" / "assets" / "demo" / "shapes.mp4"


@pytest.fixture(scope="session")
def demo() -> Model:
    """The bundled model, to ask it directly."""
    return load("demo")


@pytest.fixture(scope="session")
def random() -> Model:
    """A model that says something for as long as it may."""
    return load_endless()


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three clips that differ."""
    folder = tmp_path_factory.mktemp("clips")
    others = [make(folder / f"{frames}.mp4", frames=frames) for frames in (20, 40)]
    return [DEMO_CLIP, *(folder / f"{frames}.mp4" for frames in (20, 40))] if others else []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled model, served."""
    with serving(lambda: load("demo"), tmp_path_factory.mktemp("served")) as there:
        yield there


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The random model, served: its answers are as long as they may be."""
    with serving(load_endless, tmp_path_factory.mktemp("talkative")) as there:
        yield there
