"""Which device and number format are taken; a card that torch cannot use is an error, never a silent CPU run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from holitom_cli.errors import DeviceError, UsageError
from holitom_cli.model import device as module
from holitom_cli.model.device import choose_device, choose_dtype, device_name, nvidia_card
from holitom_cli.model.hub import LARGE, SMALL, default_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GIB = 1024**3


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with nothing but a CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(module, "nvidia_card", lambda: None)
    return monkeypatch


def with_cards(
    machine: pytest.MonkeyPatch, count: int = 2, capability: tuple[int, int] = (8, 0), built_for: str = "sm_80 sm_90"
) -> None:
    """A machine whose cards torch can see."""
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "device_count", lambda: count)
    machine.setattr(torch.cuda, "current_device", lambda: 0)
    machine.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
    machine.setattr(torch.cuda, "get_device_name", lambda _=None: "Test Card")
    machine.setattr(torch.cuda, "get_arch_list", built_for.split)


def test_only_a_cpu(machine: pytest.MonkeyPatch) -> None:
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(DeviceError, match="no NVIDIA card") as caught:
        choose_device("cuda")
    assert caught.value.hint == "Use --device cpu."
    with pytest.raises(DeviceError, match="no Metal"):
        choose_device("mps")


def test_a_mac(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    assert choose_dtype("auto", torch.device("mps")) == torch.float16
    assert device_name(torch.device("mps")) == "Apple GPU"


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize(("cuda", "mend"), [(None, "CUDA build: pip install"), ("13.0", "driver to one for CUDA 13.0")])
def test_a_card_that_torch_cannot_use_is_an_error(
    machine: pytest.MonkeyPatch, name: str, cuda: str | None, mend: str
) -> None:
    machine.setattr(module, "nvidia_card", lambda: "NVIDIA Test Card")
    machine.setattr(torch.version, "cuda", cuda)
    with pytest.raises(DeviceError, match=r"an NVIDIA Test Card, but .*cannot use it") as caught:
        choose_device(name)
    assert mend in caught.value.hint
    assert choose_device("cpu") == CPU  # asked for by name, it is no accident


def test_cards(machine: pytest.MonkeyPatch) -> None:
    with_cards(machine)
    assert choose_device("auto") == choose_device("cuda") == CUDA
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match=r"There is no cuda:2; this machine has 2 GPU"):
        choose_device("cuda:2")
    assert device_name(CUDA) == "Test Card"


@pytest.mark.parametrize(
    ("capability", "built_for", "usable"),
    [
        ((8, 0), "sm_80 sm_90", True),
        ((8, 6), "sm_80 sm_90", True),  # binary code runs on later minor versions
        ((8, 0), "sm_86 sm_90", False),
        ((6, 1), "sm_75 sm_80", False),
        ((12, 0), "sm_80 sm_90", False),
        ((12, 0), "sm_80 sm_90 compute_90", True),  # PTX runs on anything later
        ((9, 0), "sm_90a", True),
        ((12, 1), "sm_80 sm_120", True),
    ],
)
def test_a_card_that_torch_was_not_built_for(
    machine: pytest.MonkeyPatch, capability: tuple[int, int], built_for: str, usable: bool
) -> None:
    with_cards(machine, capability=capability, built_for=built_for)
    if usable:
        assert choose_device("auto") == CUDA
        return
    with pytest.raises(DeviceError, match=rf"capability {capability[0]}\.{capability[1]}\) is not among"):
        choose_device("auto")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "cpu:0x"])
def test_what_is_not_a_device(machine: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(UsageError, match="is not a device") as caught:
        choose_device(name)
    assert "cuda:N" in caught.value.hint


@pytest.mark.parametrize("name", ["meta", "xpu", "vulkan"])
def test_devices_that_are_not_supported(machine: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' is not supported"):
        choose_device(name)


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16)]
)
def test_the_number_format_is_one_that_the_card_has(
    machine: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    with_cards(machine, capability=capability)
    assert choose_dtype("auto", CUDA) == expected
    assert choose_dtype("float32", CUDA) == torch.float32
    assert choose_dtype("auto", CPU) == torch.float32
    with pytest.raises(UsageError, match="'float64' is not a number format"):
        choose_dtype("float64", CPU)


@pytest.mark.parametrize(("gibibytes", "expected"), [(80, LARGE), (19, LARGE), (18.9, SMALL), (8, SMALL)])
def test_the_default_model_goes_by_the_cards_total_memory(
    monkeypatch: pytest.MonkeyPatch, gibibytes: float, expected: str
) -> None:
    card = SimpleNamespace(total_memory=int(gibibytes * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    name, reason = default_model(CUDA)
    assert name == expected
    assert f"{gibibytes:.0f} GiB" in reason
    assert default_model(CPU)[0] == SMALL


def fake_tool(folder: Path, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'Card One'; echo 'Card Two'", "Card One"),
        ("echo 'NVIDIA-SMI has failed' >&2; exit 9", None),
        ("exit 0", None),
    ],
)
def test_the_drivers_tool_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, expected: str | None
) -> None:
    fake_tool(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert nvidia_card() == expected


def test_without_the_drivers_tool_there_is_no_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_card() is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_every_kind_of_full_memory_has_advice(error: Exception) -> None:
    said = pytest.raises(DeviceError, match=r"The memory of X is not enough for this\.")
    with said as caught, module.memory_advice("X", "for this", "Use less."):
        raise error
    assert caught.value.hint == "Use less."


def test_other_errors_pass_the_advice() -> None:
    with pytest.raises(RuntimeError, match="shape"), module.memory_advice("X", "for this", "Use less."):
        raise RuntimeError("shape mismatch")
