"""The values that cross rooms: frozen dataclasses whose shapes are checked when they are made.

Shapes use F frames, P = grid**2 pooled patches a frame, D embedding width, N visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

# One of them stands apart, for decoders.
from holitom_cli.sampling import DEFAULT_FRAMES as DEFAULT_FRAMES  # noqa: PLC0414
from holitom_cli.sampling import MOST_FPS as MOST_FPS  # noqa: PLC0414
from holitom_cli.sampling import Sampling as Sampling  # noqa: PLC0414

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from holitom_cli.clock import Clock
    from holitom_cli.methods import Method

    IntArray = np.ndarray[Any, np.dtype[np.int64]]
    FloatArray = np.ndarray[Any, np.dtype[np.float64]]
    BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
    ByteArray = np.ndarray[Any, np.dtype[np.uint8]]


def _expect(name: str, array: Tensor | np.ndarray[Any, Any], *shape: int | None) -> None:
    """Raise ValueError unless `array` has this shape; None admits any length."""
    actual = tuple(array.shape)
    if actual == shape:
        return
    if len(actual) != len(shape) or any(want not in (None, got) for got, want in zip(actual, shape, strict=True)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} has shape {actual}, expected ({wanted})")


# --- video -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What the container says about a file's first real video stream."""

    path: str
    container: str
    codec: str
    width: int  # as shown, after rotation
    height: int
    rotation: int  # degrees clockwise that make the stored picture upright: 0, 90, 180 or 270
    duration_seconds: float
    frame_count: int
    frames_per_second: float
    size_bytes: int
    hdr: str = ""  # PQ or HLG where the clip is made for bright screens; its frames are as an ordinary one shows them
    mirrored: bool = False  # the stored picture has to be flipped left to right before it is turned


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Decoded, upright RGB frames and where in the clip they stand."""

    pixels: ByteArray  # (F, H, W, 3) uint8; as large as a model wants where they were read for one, 0 x 0 if cached
    seconds: FloatArray  # (F,) presentation time from the clip's first frame
    indices: IntArray | None = None  # (F,) frame numbers in presentation order
    video: VideoInfo | None = None
    decoder: str = "given"
    decoder_reason: str = "frames were passed in"
    frames_missing: int = 0  # frames asked for that could not be read
    sampling: Sampling | None = None  # what was asked for; None where frames were passed in
    moved_seconds: float = 0.0  # the furthest that a frame is from where it was asked for, with key frames alone
    cached: bool = False  # nothing was decoded: the compressed tokens were kept from an earlier question
    warnings: tuple[str, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict)  # stages "probe" and "decode"

    def __post_init__(self) -> None:
        _expect("pixels", self.pixels, None, None, None, 3)
        _expect("seconds", self.seconds, len(self.pixels))
        if str(self.pixels.dtype).removeprefix("torch.") != "uint8":
            raise ValueError(f"pixels are {self.pixels.dtype}, expected uint8")

    def __len__(self) -> int:
        return len(self.pixels)


# --- compression: the contract between the tower, a method and the language model ------------


@dataclass(frozen=True, slots=True, eq=False)
class VideoFeatures:
    """What the vision tower and projector say about a clip."""

    tokens: Tensor  # (F, P, D) projected and pooled patch tokens
    attention: Tensor | None  # (F, P) float32, mean attention a patch receives, pooled alike
    grid: int  # P = grid**2
    keys: Tensor | None = None  # (F, P, K) the tower's last keys, only for methods that ask

    def __post_init__(self) -> None:
        patches = self.grid**2
        _expect("tokens", self.tokens, None, patches, None)
        if self.attention is not None:
            _expect("attention", self.attention, len(self.tokens), patches)
        if self.keys is not None:
            _expect("keys", self.keys, len(self.tokens), patches, None)


@dataclass(frozen=True, slots=True, eq=False)
class VisualTokens:
    """The tokens that enter the language model and what each of them stands for."""

    embeds: Tensor  # (N, D) in reading order, newline token not included
    frame: Tensor  # (N,) int64 source frame (first of the segment for a temporally merged token)
    cell: Tensor  # (N,) int64 row-major patch where the token stands
    size: Tensor  # (N,) int64 how many original tokens it stands for
    source: Tensor  # (F, P) int64 row of embeds that each original token went to, -1 = dropped
    segments: tuple[range, ...]  # frames of each segment
    stages: tuple[tuple[str, int], ...]  # the funnel: (stage, tokens left after it)

    def __post_init__(self) -> None:
        count = len(self.embeds)
        _expect("embeds", self.embeds, None, None)
        for name in ("frame", "cell", "size"):
            _expect(name, getattr(self, name), count)
        _expect("source", self.source, None, None)

    def __len__(self) -> int:
        return len(self.embeds)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A video behind the vision tower: encoded once, for any number of methods."""

    frames: Frames
    features: VideoFeatures
    clock: Clock  # stages preprocess, vision


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """A video as the language model will see it: compressed once, for any number of questions."""

    frames: Frames
    visual: VisualTokens
    method: Method
    clock: Clock  # stages preprocess, vision, compress
    context: str = ""  # words about the clip that stand before every question


class Added(NamedTuple):
    """A further clip of a conversation."""

    watched: Watched
    turn: int  # in which user turn it stands; 0 is the first, behind the clip that is there already


class LayerView(NamedTuple):
    """All that a reduction inside the language model may look at.

    The visual rows of several clips follow one another as if nothing stood between them, each clip's newline token
    behind its own; N + 1 is the number of all.
    """

    hidden: Tensor  # (N+1, D) states of the visual rows entering the layer, newline token last
    attention: Tensor  # (Q, N+1) float32 by prompt token after the (last) video, last prompt token last
    entered: int = 0  # visual rows that entered the first layer; 0 where that is not known


class CacheView(NamedTuple):
    """What a method that prunes a layer's cache after the prefill may look at."""

    attention: Tensor  # (Q, n) float32 that every prompt token after the video paid to the n cached visual rows
    text: Tensor  # (Q,) float32 that the last prompt token paid to those tokens


@dataclass(frozen=True, slots=True)
class Reduction:
    """A merge inside the language model: what it wants to see and what it does with it.

    `apply` returns the kept states (M, D) in reading order, and into (N+1,) int64: for every row
    of the span the kept row that it went to. A kept row names itself, -1 means dropped, so the
    rows with into[i] == i are the M kept ones and keep their position.
    """

    apply: Callable[[LayerView], tuple[Tensor, Tensor]]
    rows: Literal["last", "all"] = "last"  # which prompt tokens after the video are looked at
    heads: Literal["mean", "max"] = "mean"
    layer: Literal["before", "this"] = "before"  # whose attention


# --- the answer ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Generation:
    """How tokens are chosen. Temperature 0 is greedy."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The widths and depths that costs are counted from."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    vision_layers: int  # layers that run for the selected features
    vision_hidden: int
    vision_intermediate: int
    vision_patches: int  # tower tokens a frame, before pooling
    patch_pixels: int  # values in one patch: 3 * patch_size**2


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which checkpoint answered, and how it was run."""

    id: str  # as asked for: a hub id, a directory or "demo"
    kind: Literal["demo", "random", "published", "local"]
    revision: str | None  # resolved commit of a hub checkpoint
    path: str  # local directory the weights came from
    dtype: str
    device: str
    device_name: str
    parameters: int
    shape: ModelShape
    preprocessor_file: str | None = None
    reason: str = ""  # why this checkpoint, where it was chosen for the user
    quantize: Literal["int8", "int4"] | None = None  # how the language model's matrices are kept; None: in dtype

    @property
    def number_format(self) -> str:
        """Of states and weights, as bfloat16 or bfloat16+int4: the same checkpoint says other things in another."""
        return f"{self.dtype}+{self.quantize}" if self.quantize else self.dtype


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive frames that were compressed together."""

    start_frame: int
    stop_frame: int  # exclusive, an index into the sampled frames
    start_seconds: float
    end_seconds: float  # time of its last frame
    tokens: int  # visual tokens it contributes to the language model


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Where the visual tokens, of all clips, went. The newline token is counted apart."""

    frames: int
    patches_per_frame: int
    funnel: tuple[tuple[str, int], ...]  # before the language model, first entry F * P
    inside: tuple[tuple[int, int], ...]  # (layer, visual rows from there on, newline included)
    text: int
    prompt: int  # visual + newline + text tokens entering the first layer
    generated: int
    cached: tuple[int, ...] = ()  # visual rows left in each layer's cache after the prefill; empty where all are
    newlines: int = 1  # one a clip

    @property
    def original(self) -> int:
        return self.frames * self.patches_per_frame

    @property
    def visual(self) -> int:
        return self.funnel[-1][1]

    @property
    def retained(self) -> float:
        """Share of the original visual tokens that enter the language model."""
        return self.visual / self.original


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds by stage. TTFT runs from processed pixels on the device to the first token."""

    stages_ms: Mapping[str, float]  # probe, decode, preprocess, vision, compress, prefill, sample
    ttft_ms: float
    tpot_ms: float | None  # mean time per token after the first; None when there was only one
    time_to_answer_s: float  # all stages and all tokens

    @property
    def tokens_per_second(self) -> float | None:
        return 1000 / self.tpot_ms if self.tpot_ms else None


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak memory in bytes."""

    device_peak_bytes: int | None  # allocated on the first GPU since the video was watched; None on a CPU
    host_peak_bytes: int  # resident set of the process since it started


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point cost of the prefill, with this method and with every token kept."""

    paper: float  # the paper's formula: multiply-adds of the language model's visual tokens alone
    paper_full: float
    true: float  # 2 a multiply-add, grouped keys/values, gated MLP, text and vision included
    true_full: float


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers that were given to choose from."""

    text: str
    probability: float  # among the choices, which add up to 1


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """One of several clips that an answer is about: what stands in an `Answer` of the last of them."""

    frames: Frames
    segments: tuple[Segment, ...]
    visual: VisualTokens
    inner_source: Tensor  # (F, P) int64 row, among those of all clips, that each original token ends in, -1 = dropped


@dataclass(frozen=True, slots=True, eq=False)
class AnswerRecord:
    """An answer and all that is reported of it. Of several clips, frames and segments are those of the last."""

    question: str
    text: str
    finish_reason: Literal["stop", "length", "choice"]
    method: str
    method_settings: Mapping[str, Any]
    generation: Generation
    tokens: TokenCounts
    segments: tuple[Segment, ...]
    timings: Timings
    memory: Memory
    flops: Flops
    model: ModelInfo
    frames: Frames
    token_ids: tuple[int, ...]
    versions: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    context: str = ""  # words about the clip that stood before the question
    choices: tuple[Choice, ...] = ()  # where there were some, the text is the likeliest of them
    served_by: Mapping[str, Any] | None = None  # the running server that gave it: its version and process id
    earlier: tuple[Shown, ...] = ()  # the clips before the last of several, in order

    def agrees(self, other: AnswerRecord) -> bool:
        """Whether both say the same, token by token: texts can be alike, or both empty, where tokens differ."""
        return (self.text, self.token_ids) == (other.text, other.token_ids)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Answer(AnswerRecord):
    """An answer and everything that made it: its record, and where every patch of the clip went."""

    visual: VisualTokens
    inner_source: Tensor  # (F, P) int64 visual row, among those of all clips, each original token ends in, -1 = dropped
    inner_size: Tensor  # (N+1,) int64 original tokens that end in each visual row, newline last; of all clips
