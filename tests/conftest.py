"""Fixtures that all tests share."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells leave it to jobs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if not shutil.which("nvidia-smi"):  # before Triton is imported, which reads it once
    os.environ.setdefault("TRITON_INTERPRET", "1")

DATA = Path(__file__).parent / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=DATA / "golden",
        metavar="DIR",
        help="directory of reference arrays (default: the small ones in tests/data/golden)",
    )


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and where cores are busy these wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_root(request: pytest.FixtureRequest) -> Path:
    """Directory of reference arrays, from --golden."""
    root: Path = request.config.getoption("--golden")
    return root.resolve()


@pytest.fixture(scope="session")
def demo_clip() -> Path:
    """A real clip: H.264, 640 x 360, 175 frames in 7 s, a cut before frame 116."""
    return DATA / "city.mp4"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random float32 checkpoint of real geometry and next to no width, with a tokenizer."""
    import torch

    from tests.make_random_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("tiny"), layers=4, dtype=torch.float32)
