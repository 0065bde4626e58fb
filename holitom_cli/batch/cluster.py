"""A batch on a Ray cluster: a pool of decoders, a pool of models, and their rows back to one file.

Ray Data moves clips between the pools, holds decoders back where models are slower, and gives actors that died their
work back. Here is what it does not know: which rows there are, several clips in one model at a time, and when a clip
has ended enough processes. Its own checkpoints are not used: they know which clips have been through, but not under
which question and settings, nor which failed; the rows themselves, in --output, say all of that.
"""

from __future__ import annotations

import logging
import re
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from holitom_cli.batch.crew import Made, made_once
from holitom_cli.batch.fetcher import Fetcher
from holitom_cli.batch.ledger import Claim, Ledger
from holitom_cli.batch.questions import Job
from holitom_cli.batch.reader import Fetched
from holitom_cli.batch.runner import Item, Plan, Run
from holitom_cli.errors import BatchError, DeviceError, HolitomError, UsageError, reason

if TYPE_CHECKING:
    import torch

    from holitom_cli.model.loading import Checkpoint
    from holitom_cli.types import VisualTokens

_ATTEMPTS = 2  # as with processes on one machine: together with others, then alone
_AHEAD = 2  # clips that wait in a model's process, so that the model need not
_HALF = 0.5  # of a core is for a model and as much for a decoder, where there are no GPUs

RowOf = Callable[[Item], Mapping[str, Any] | None]
Row = dict[str, Any]  # of Ray Data


@dataclass(frozen=True, slots=True)
class Order:
    """What every process of the cluster has to know."""

    model: tuple[str, str | None, str]  # id, revision and dtype
    place: str  # where a machine finds the model: its id, or an absolute path
    device: str  # of models: cuda or cpu
    plan: Plan


@dataclass(frozen=True, slots=True)
class Part:
    """A clip, or a window of it, on its way through the pools."""

    job: Job
    windows: int = 1  # that its clip has

    @property
    def place(self) -> str:
        """Its name among all parts."""
        return f"{self.job.number} {self.job.window}"


@dataclass(frozen=True, slots=True)
class Told:
    """What a model made of a part."""

    rows: Sequence[tuple[Mapping[str, Any] | None, Claim | None]]
    worker: str
    seconds: Mapping[str, float]  # of its thread since it began, by what they went into


# --- before the batch -----------------------------------------------------------------------------


def connect() -> Any:
    """The library, connected to the cluster that is running.

    Raises:
        UsageError: the library is not installed.
        BatchError: there is no cluster.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(
            "--engine ray needs the library Ray, which is not installed.", "Run: pip install 'holitom_cli[ray]'"
        ) from error
    if not ray.is_initialized():
        try:
            ray.init("auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BatchError(
                f"No Ray cluster can be reached: {reason(error)}.",
                "Start one with: ray start --head, or name one by RAY_ADDRESS.",
            ) from error
    return ray


def device_type(wish: str) -> str:
    """Where the cluster's models run: on its GPUs, or on its processors if it has none.

    Raises:
        UsageError: a device of one machine is named.
        DeviceError: GPUs are wanted, and it has none.
    """
    if wish not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--engine ray cannot keep to {wish!r}.", "Use --device cuda, cpu or auto.")
    gpus = connect().cluster_resources().get("GPU", 0)
    if wish == "cuda" and gpus < 1:
        raise DeviceError("The Ray cluster has no GPU.", "Add a machine that has one, or use --device cpu.")
    return "cuda" if wish != "cpu" and gpus >= 1 else "cpu"


def dtype_on(wish: str, device: str) -> str:
    """The number format, as a machine of the cluster that has such a device chooses it."""
    if device == "cpu":
        return _dtype_name(wish, device)
    ray = connect()
    try:
        name: str = ray.get(ray.remote(num_gpus=1, num_cpus=0)(_dtype_name).remote(wish, device))
    except ray.exceptions.RayError as error:
        raise _told(error) from error
    return name


def _dtype_name(wish: str, device: str) -> str:
    import torch

    from holitom_cli.model.device import choose_dtype

    return str(choose_dtype(wish, torch.device(device))).removeprefix("torch.")


# --- the actors -----------------------------------------------------------------------------------


class Register:
    """Which parts are with a model, and how often each has been: it outlives the models."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._stopping = False

    def times(self, place: str) -> int:
        """How often a part has been begun."""
        return self._times.get(place, 0)

    def begin(self, place: str) -> bool:
        """Begin a part; False where nothing new is to be begun."""
        if not self._stopping:
            self._times[place] = self.times(place) + 1
        return not self._stopping

    def end(self, place: str) -> None:
        """The rows of a part have arrived."""
        self._times.pop(place, None)

    def stop(self) -> int:
        """Let nothing new begin; returns how many parts are under way."""
        self._stopping = True
        return len(self._times)


class Cutter:
    """Makes of a clip its windows, so that several decoders read them."""

    def __init__(self, order: Order) -> None:
        self._fetcher = _fetcher(order, Ledger())

    def __call__(self, row: Row) -> list[Row]:
        fetched = self._fetcher.fetch(row["part"].job)
        parts = [Part(job, len(fetched.parts)) for job in fetched.parts]
        return [{"part": part} for part in parts] or [row]  # of one that cannot be read the decoder says so


class Decoder:
    """Reads clips; it has no model."""

    def __init__(self, order: Order, ledger: Any) -> None:
        import ray

        self._fetcher = _fetcher(order, ray.get(ledger))

    def __call__(self, row: Row) -> list[Row]:
        part: Part = row["part"]
        fetched = self._fetcher.fetch(part.job)
        # Parts are there where a clip could be read now, but not when it was to be cut.
        several = [
            {"part": Part(job, len(fetched.parts)), "fetched": self._fetcher.fetch(job)} for job in fetched.parts
        ]
        return several or [{"part": part, "fetched": fetched}]


class Answerer:
    """A model; several threads bring it clips, which it answers about together."""

    def __init__(self, order: Order, register: Any, row_of: RowOf) -> None:
        from holitom_cli.model import loading

        model = loading.load(_checkpoint(order), order.device, order.model[2])
        self._device, self._register, self._row_of = model.device, register, row_of
        self._name = uuid.uuid4().hex
        self._most = at_a_time(order.plan)
        self._seats, self._door = threading.Semaphore(self._most), threading.Lock()
        self._fetched: dict[str, Fetched] = {}
        self._made: dict[str, SimpleQueue[Item | Exception]] = {}  # by part
        self._run = Run(model, [], order.plan, fetch=lambda job: self._fetched.pop(Part(job).place))
        self._run.expect_more()
        threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, row: Row) -> Row:
        import ray

        part: Part = row["part"]
        items: list[Item] = []
        times = ray.get(self._register.times.remote(part.place))
        if times >= _ATTEMPTS:
            items = _given_up(row["fetched"])
        else:
            with self._seat(alone=times > 0):
                if ray.get(self._register.begin.remote(part.place)):
                    items = self._answer(part.place, row["fetched"])
        rows = [(self._row_of(item), item.outcome if isinstance(item.outcome, Claim) else None) for item in items]
        return {"part": part, "told": Told(rows, self._name, dict(self._run.watch.seconds))}

    @contextmanager
    def _seat(self, *, alone: bool) -> Iterator[None]:
        """Room for one part beside others, or alone for one that may have ended a process."""
        taken = self._most if alone else 1
        with self._door:  # one at a time, so that two of them do not keep from each other what both need
            for _ in range(taken):
                self._seats.acquire()
        try:
            yield
        finally:
            self._seats.release(taken)

    def _answer(self, place: str, fetched: Fetched) -> list[Item]:
        if fetched.known:
            frames, visual = fetched.known
            fetched = replace(fetched, known=(frames, _moved(visual, self._device)))
        made = self._made[place] = SimpleQueue()
        self._fetched[place] = fetched
        self._run.feed(fetched.job)
        items = [made.get() for _ in fetched.asked]
        del self._made[place]
        if broken := next((item for item in items if isinstance(item, Exception)), None):
            raise broken
        return [item for item in items if isinstance(item, Item)]

    def _work(self) -> None:
        """The model's thread."""
        try:
            for item in self._run:
                self._made[Part(item.job).place].put(item)
        except Exception as error:
            while True:  # nobody is left without an answer, whoever comes
                for made in list(self._made.values()):
                    made.put(error)
                threading.Event().wait(0.1)


def at_a_time(plan: Plan) -> int:
    """How many parts are with one model at a time."""
    return plan.rows + _AHEAD


def _checkpoint(order: Order) -> Checkpoint:
    from holitom_cli.model import loading
    from holitom_cli.model.hub import locate

    name, revision, _ = order.model
    return loading.read_checkpoint(replace(locate(order.place, revision), id=name))


def _fetcher(order: Order, ledger: Ledger) -> Fetcher:
    """Reads clips where no GPU is; nothing is claimed, since nobody here hears of what others have done."""
    import torch

    return Fetcher(_checkpoint(order), order.model, torch.device("cpu"), order.plan, ledger.peek, seen_on=order.device)


def _given_up(fetched: Fetched) -> list[Item]:
    name = fetched.job.clip.name
    error = BatchError(f"{name} ended its worker process twice.", "Leave it out, or try fewer --rows.")
    return [
        Item(key, fetched.job, asked, error if claim is Claim.OPEN else claim) for key, asked, claim in fetched.asked
    ]


def _moved(visual: VisualTokens, device: torch.device) -> VisualTokens:
    import torch

    parts = {one.name: getattr(visual, one.name) for one in fields(visual)}
    moved: dict[str, Any] = {name: part.to(device) for name, part in parts.items() if isinstance(part, torch.Tensor)}
    return replace(visual, **moved)


# --- the driver -----------------------------------------------------------------------------------


class Cluster:
    """A batch on the cluster: iterate over it for its rows, in the order in which they are made."""

    def __init__(self, jobs: Sequence[Job], order: Order, ledger: Ledger, row_of: RowOf) -> None:
        """Prepare to answer the questions of `jobs` that `ledger` has no rows of; `row_of` makes rows of items."""
        self._ray = connect()
        self._order, self._ledger, self._row_of = order, ledger, row_of
        self._jobs = {job.number: job for job in jobs}
        self._open = dict.fromkeys(self._jobs, 1)  # parts that have not arrived
        self._cut: set[int] = set()  # clips whose number of windows is known
        self._answered: set[str] = set()  # keys, by any model
        self._spent: dict[str, Mapping[str, float]] = {}  # seconds of each model
        self._stopping = False
        resources = self._ray.cluster_resources()
        self._cores, gpus = max(1, int(resources.get("CPU", 0))), int(resources.get("GPU", 0))
        self.workers = gpus if order.device == "cuda" else self._cores
        self.seconds: dict[str, float] = {}  # of all models' threads, by what they went into

    def stop(self) -> None:
        """Begin nothing new; what models have under way is finished. Safe from a signal handler."""
        self._stopping = True

    def __iter__(self) -> Generator[Made, None, None]:
        ray = self._ray
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        register = ray.remote(Register).options(num_cpus=0, scheduling_strategy=here).remote()
        ledger = ray.put(self._ledger)
        try:
            arriving = self._dataset(register, ledger).iter_batches(
                batch_size=None, prefetch_batches=0, batch_format="numpy"
            )
            with closing(iter(arriving)) as blocks:
                for block in blocks:
                    for part, told in zip(block["part"], block["told"], strict=True):
                        yield from self._take(part, told)
                        register.end.remote(part.place)
                    if self._stopping and ray.get(register.stop.remote()) == 0:
                        return
        except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
            raise _told(error) from error
        finally:
            ray.kill(register)
        if any(self._open.values()):
            raise BatchError(
                f"{sum(map(bool, self._open.values()))} clips were lost on the way.", "Run it again to go on."
            )

    def _dataset(self, register: Any, ledger: Any) -> Any:
        """The pools, one behind the other."""
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.target_max_block_size = 1  # each row by itself: it goes on as soon as it is there
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it would say is raised, too
        order, pool = self._order, data.ActorPoolStrategy
        models: Row = {"num_gpus": 1} if order.device == "cuda" else {"num_cpus": _HALF}
        jobs = [replace(job, clip=job.clip.absolute()) for job in self._jobs.values()]  # other folders are others' own
        parts = data.from_items([{"part": Part(job)} for job in jobs], override_num_blocks=len(jobs))
        if order.plan.every_seconds is not None:
            parts = parts.flat_map(Cutter, fn_constructor_args=(order,), compute=pool(size=1), num_cpus=0)
        read = parts.flat_map(
            Decoder,
            fn_constructor_args=(order, ledger),
            compute=pool(min_size=1, max_size=self._cores),
            num_cpus=1 if order.device == "cuda" else _HALF,
        )
        threads = at_a_time(order.plan)
        return read.map(
            Answerer,
            fn_constructor_args=(order, register, self._row_of),
            compute=pool(size=self.workers, max_concurrent_calls_per_actor=threads, enable_true_multi_threading=True),
            **models,
        )

    def _take(self, part: Part, told: Told) -> Iterator[Made]:
        job = self._jobs[part.job.number]
        if part.windows > 1 and job.number not in self._cut:
            self._cut.add(job.number)
            self._open[job.number] = part.windows
            yield Made(job, more=(part.windows - 1) * len(job.asked))
        self._open[job.number] -= 1
        self._spent[told.worker] = told.seconds
        for name in {name for spent in self._spent.values() for name in spent}:
            self.seconds[name] = sum(spent.get(name, 0.0) for spent in self._spent.values())
        for row, claim in told.rows:
            yield made_once(self._answered, job, row, claim)


def _told(error: Exception) -> HolitomError:
    """What went wrong somewhere in the cluster."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HolitomError):
        cause = getattr(cause, "cause", None) or cause.__cause__
    if isinstance(cause, HolitomError):
        return cause
    said = re.sub(r"^[\w.]+(Error|Exception): ", "", str(error).strip().splitlines()[-1])
    return BatchError(
        f"A process of the cluster failed: {said.rstrip('.')}.",
        "Each machine needs the program, the model and the clips; ray logs says more.",
    )
