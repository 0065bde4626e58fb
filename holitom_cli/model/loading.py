"""A checkpoint's files to a model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holitom_cli.errors import HolitomError, ModelError
from holitom_cli.model import memory
from holitom_cli.model.attention import device_of
from holitom_cli.model.config import Config, parse_config
from holitom_cli.model.device import choose_device, choose_dtype, device_name, memory_advice
from holitom_cli.model.hub import Source, check_architecture, locate
from holitom_cli.model.layers import join_language, join_tower
from holitom_cli.model.network import Network
from holitom_cli.model.preprocess import Preprocessor, read_json, read_preprocessor
from holitom_cli.model.prompt import Chat, read_chat
from holitom_cli.model.quantise import Quantize, check_quantize, count_weights, prepare
from holitom_cli.model.weights import fill, reading, stored_shapes, unfit, weight_bytes
from holitom_cli.types import ModelInfo, ModelShape

_LARGER = "Close other programs on the GPU, use --quantize int8 or int4, --device-map auto, or a smaller checkpoint."

DeviceMap = str | Mapping[str, int | str]  # "auto", or where each module goes


@dataclass(frozen=True)
class Checkpoint:
    """What the small files say, known before a weight is read; some are read only when first needed."""

    source: Source
    config: Config
    shape: ModelShape
    random: bool  # marked as having random weights

    @property
    def directory(self) -> Path | None:
        """Where the files are; None where there are none."""
        return self.source.path

    @property
    def depth(self) -> int:
        return self.shape.layers

    @property
    def max_positions(self) -> int:
        return self.config.text_config.max_position_embeddings

    @property
    def patch_grid(self) -> int:
        """Patches along a side of a frame, before pooling."""
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size

    @property
    def visual_grid(self) -> int:
        """Visual tokens along a side of a frame, after pooling."""
        return -(-self.patch_grid // 2)

    @cached_property
    def preprocessor(self) -> Preprocessor:
        """How frames become pixels."""
        found = read_preprocessor(self.source.path)
        side = self.config.vision_config.image_size
        if (found.height, found.width) != (side, side):
            raise ModelError(
                f"{found.file} resizes frames to {found.width}x{found.height}, but the tower takes {side}x{side}.",
                "Download the checkpoint's own files again.",
            )
        return found

    @cached_property
    def chat(self) -> Chat:
        """How questions become tokens, and tokens text."""
        return read_chat(self.source.path, self.config)


class Model:
    """A loaded LLaVA-OneVision checkpoint."""

    def __init__(self, network: Any, checkpoint: Checkpoint, info: ModelInfo) -> None:
        self.network = network
        self.checkpoint = checkpoint
        self.info = info
        self.vision_tower: Any = network.model.vision_tower
        self.projector: Any = network.model.multi_modal_projector
        self.language_model: Any = network.model.language_model
        self.lm_head: Any = network.lm_head
        self.dtype: torch.dtype = network.dtype
        self.device = device_of(self.vision_tower.embeddings.patch_embedding)

    @property
    def newline(self) -> Tensor:
        """The learned token (D,) that ends the video."""
        return self.network.model.image_newline.to(self.device)  # type: ignore[no-any-return]

    @cached_property
    def stock(self) -> Any:
        """The library's own network on the same weights, to compare with; a spread model runs on it."""
        if not isinstance(self.network, Network):
            return self.network
        from holitom_cli.model.stock import stock_network

        return stock_network(self.network, self.checkpoint.directory)

    @property
    def patch_grid(self) -> int:
        return self.checkpoint.patch_grid

    @property
    def preprocessor(self) -> Preprocessor:
        """How frames become pixels."""
        return self.checkpoint.preprocessor

    @property
    def chat(self) -> Chat:
        """How questions become tokens, and tokens text."""
        return self.checkpoint.chat

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (n,) to embeddings (n, D) on the model's device."""
        embedding = self.language_model.embed_tokens
        return embedding(ids.to(device_of(embedding))).to(self.device)  # type: ignore[no-any-return]


def load_model(
    path_or_id: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    device_map: DeviceMap | None = None,
    quantize: str | None = None,
) -> Model:
    """Load a LLaVA-OneVision checkpoint in the transformers layout (safetensors only, no remote code).

    Args:
        path_or_id: a local directory, a hub id that has been downloaded, or "demo".
        device: auto, cuda, cuda:N, mps or cpu, or torch's own.
        dtype: auto, bfloat16, float16 or float32, or torch's own.
        revision: branch, tag or commit of a hub id.
        device_map: spread the checkpoint by accelerate: "auto", or {module: device}.
        quantize: "int8" or "int4" keeps the language model's matrices in so many bits, see `quantise`.

    Raises:
        ModelError: missing, incomplete, or not LLaVA-OneVision.
        DeviceError: the device is absent or too small.
        UsageError: `quantize` is not known, or used with `device_map`.
    """
    checkpoint = read_checkpoint(locate(str(path_or_id), revision))
    return load(checkpoint, str(device), str(dtype).removeprefix("torch."), device_map, quantize)


def read_checkpoint(source: Source) -> Checkpoint:
    """Read and check the configuration and that all weight files are there; no weight is read.

    Raises:
        ModelError: not a LLaVA-OneVision checkpoint, or an incomplete one.
    """
    raw = _read_config(source)
    _check_files(source)
    with _readable(source):
        config = parse_config(raw)
        shape = shape_of(config)
    return Checkpoint(source, config, shape, random=raw.get("holitom_checkpoint") == "random")


def load(
    checkpoint: Checkpoint,
    device: str = "auto",
    dtype: str = "auto",
    device_map: DeviceMap | None = None,
    quantize: str | None = None,
) -> Model:
    """Read the weights, straight to the device.

    Arguments are those of `load_model`; a dtype may name both formats, as `ModelInfo.number_format` does.

    Raises:
        ModelError: missing or damaged tensors.
        DeviceError: the device is absent or too small.
        UsageError: `quantize` is not known, or used with `device_map`.
    """
    dtype, _, kept = dtype.partition("+")
    kept_as = check_quantize(quantize or kept or None, spread=device_map is not None)
    target = choose_device(device)
    number_format = choose_dtype(dtype, target)
    if not device_map:
        check_memory(checkpoint, device, dtype, kept_as)
    room = memory_advice(device_name(target), f"to load {checkpoint.source.id}", _LARGER)
    with _readable(checkpoint.source), room:
        if device_map:  # accelerate moves and offloads modules one by one
            network = _spread(checkpoint, number_format, device_map)
        else:
            network = _read(checkpoint, target, number_format, kept_as)
            join_tower(network.model.vision_tower)
            join_language(network.model.language_model)
    network.eval()
    return Model(network, checkpoint, describe(checkpoint, network, target, number_format, kept_as))


def check_memory(
    checkpoint: Checkpoint, device: str, dtype: str, quantize: str | None, task: memory.Task | None = None
) -> None:
    """Refuse what a GPU has too little memory for, before a weight is read.

    Args:
        checkpoint: whose weights are to be loaded.
        device: as of `load_model`.
        dtype: as of `load_model`.
        quantize: as of `load_model`.
        task: what is to be asked; where that is not known, the weights alone count.

    Raises:
        DeviceError: it has too little; names settings with which it has enough.
    """
    target, kept_as = choose_device(device), check_quantize(quantize)
    if target.type != "cuda":
        return
    number_format, label = choose_dtype(dtype, target), checkpoint.source.id
    memory.check(label, checkpoint.shape, _shapes(checkpoint), target, number_format, kept_as, task)


def stored_bytes(checkpoint: Checkpoint, dtype: torch.dtype, quantize: Quantize | None) -> int:
    """What a checkpoint's weights take in memory."""
    return weight_bytes(_shapes(checkpoint), dtype, quantize)


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    source = checkpoint.source
    with _readable(source):
        return stored_shapes(source.path / name for name in weight_files(source))


def _read(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, quantize: Quantize | None) -> Network:
    """The network on one device."""
    source = checkpoint.source
    with reading([source.path / name for name in weight_files(source)], device, dtype, quantize) as coming:
        network = Network(checkpoint.config, dtype)
        if quantize:
            prepare(device)
        if device.type == "cuda":
            _rehearse(checkpoint, device, dtype)
        found = {name: tensor.result() for name, tensor in coming.items()}
    _check_loaded(source, *unfit(network, found))
    fill(network, lambda name, _: found[name])
    return network.to(device)  # the buffers


def _rehearse(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
    """Show even frames to one layer of such a tower: the first frames of a process wait a second for its kernels."""
    from holitom_cli.model import vision

    config = checkpoint.config
    tower, text = replace(config.vision_config, num_hidden_layers=1), replace(config.text_config, num_hidden_layers=0)
    small = replace(config, vision_feature_layer=-1, vision_config=tower, text_config=replace(text, vocab_size=1))
    network = Network(small, dtype)
    fill(network, lambda _, like: torch.zeros(like.shape, dtype=dtype, device=device))
    join_tower(network.to(device).eval().model.vision_tower)
    alike = replace(checkpoint, config=small, shape=shape_of(small))
    colours = torch.arange(vision.CHUNK_FRAMES, dtype=torch.float32, device=device)  # equal frames count as one
    pixels = colours[:, None, None, None].expand(-1, tower.num_channels, tower.image_size, tower.image_size)
    vision.encode(Model(network, alike, describe(alike, network, device, dtype)), pixels)


def _spread(checkpoint: Checkpoint, dtype: torch.dtype, device_map: DeviceMap) -> Any:
    """The network spread over several devices by the library."""
    from holitom_cli.model.stock import spread_network

    source = checkpoint.source
    network, report = spread_network(source.path, dtype, device_map)
    _check_loaded(source, sorted(report["missing_keys"]), sorted(report["mismatched_keys"]))
    return network


def _check_loaded(source: Source, missing: Sequence[str], other: Sequence[tuple[str, Any, Any]]) -> None:
    """Every tensor has to have come from the files, in the shape that the configuration says."""
    if missing:
        raise ModelError(
            f"{source.id} lacks {len(missing)} tensors, {missing[0]} among them.", "Download the checkpoint again."
        )
    if other:
        name, stored, wanted = other[0]
        raise ModelError(
            f"{source.id} has {name} of shape {tuple(stored)}, but its config.json asks for {tuple(wanted)}.",
            "The files do not belong together: download the checkpoint again.",
        )


def describe(
    checkpoint: Checkpoint, network: Any, device: torch.device, dtype: torch.dtype, quantize: Quantize | None = None
) -> ModelInfo:
    """What is said of a network that runs."""
    source = checkpoint.source
    return ModelInfo(
        id=source.id,
        kind="random" if checkpoint.random and source.kind != "demo" else source.kind,
        revision=source.revision,
        path=str(source.path),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        device_name=device_name(device),
        quantize=quantize,
        parameters=count_weights(network),
        shape=checkpoint.shape,
        reason=source.reason,
    )


def _read_config(source: Source) -> dict[str, Any]:
    path = source.path / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{source.path} has no config.json, so it is not a checkpoint.",
            "Give the directory of a LLaVA-OneVision checkpoint in the transformers layout.",
        )
    raw = read_json(path)
    check_architecture(source.id, raw)
    return raw


def _check_files(source: Source) -> None:
    """Every weight file that the index names has to be there."""
    names = weight_files(source)
    missing = [name for name in names if not (source.path / name).is_file()]
    if not missing:
        return
    remedy = f"Run: holitom pull {source.id}." if source.kind == "published" else "Copy the missing files there."
    if any(source.path.glob("*.bin")):
        remedy = "Only safetensors are loaded: convert the .bin files, or use a checkpoint that has them."
    raise ModelError(
        f"{source.id} is incomplete: {len(missing)} of {len(names)} weight files are missing ({missing[0]}).",
        remedy,
    )


def weight_files(source: Source) -> list[str]:
    """Names of the weight files, from the index where there is one.

    Raises:
        ModelError: the index names none.
    """
    index = source.path / "model.safetensors.index.json"
    listed = read_json(index).get("weight_map") if index.is_file() else {"": "model.safetensors"}
    if not (isinstance(listed, dict) and listed and all(isinstance(name, str) for name in listed.values())):
        raise ModelError(f"{index} names no weight files.", "Download the checkpoint again.")
    return sorted(set(listed.values()))


def shape_of(config: Config) -> ModelShape:
    """Widths and depths of a configuration.

    Raises:
        ValueError: it takes features from a layer that the tower does not have.
    """
    text, vision, layer = config.text_config, config.vision_config, config.vision_feature_layer
    vision_layers = layer if layer >= 0 else vision.num_hidden_layers + 1 + layer
    if not 1 <= vision_layers <= vision.num_hidden_layers:
        raise ValueError(f"vision_feature_layer {layer} is outside the tower's {vision.num_hidden_layers} layers")
    return ModelShape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=text.head_width,
        vocab=text.vocab_size,
        vision_layers=vision_layers,
        vision_hidden=vision.hidden_size,
        vision_intermediate=vision.intermediate_size,
        vision_patches=(vision.image_size // vision.patch_size) ** 2,
        patch_pixels=vision.num_channels * vision.patch_size**2,
    )


@contextmanager
def _readable(source: Source) -> Iterator[None]:
    """Turn what a damaged or foreign checkpoint makes the library raise into a sentence."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    known = (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError)
    try:
        yield
    except HolitomError:
        raise
    except (*known, SafetensorError, StrictDataclassError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"{source.id} cannot be loaded: {reason.rstrip('.')}.", "Check that it is complete, or download it again."
        ) from error
