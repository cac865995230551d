"""How long training takes on a GPU that need not be here: from its data sheet and a count of an update's work.

    seconds of a step = launches x LAUNCH_S + seeds x (FLOP / (reached share of the peak) + bytes / bandwidth)

An estimate and no measurement: what earlier runs on such a card took corrects it (`correction`).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from offbench.bench.cells import Cell
from offbench.bench.settings import Settings
from offbench.bench.stacks import program_of
from offbench.errors import UserError, unknown
from offbench.io import read_csv

if TYPE_CHECKING:
    from offbench.data.replay import ReplayData
    from offbench.training.step import Carry, Step
    from offbench.types import Spec

# of a kernel in a CUDA graph. This and REACHED follow from the rates of TD3+BC and IQL that an H200 has reached
# (results/gpu/h200): all are within 31 % of this estimate
LAUNCH_S = 2.5e-6
# kernels of a compiled update for each of its matrix products, for methods that the table of launches lacks: bc 3.0,
# td3_bc 2.5, iql 2.6 as inductor lowers them
KERNELS_PER_PRODUCT = 2.6
# of the peak, what batched products of 256 rows and columns reach; bf16 is not measured
REACHED = {"float32": 0.5, "tf32": 0.25, "bf16": 0.125}
# what `offbench speed --audit launches=true` counted; with the source only, not in a wheel
LAUNCHES = Path(__file__).resolve().parents[2] / "results" / "launches.csv"
# compiling a program, once; later runs find the code
COMPILE_S = 60.0


class Card(NamedTuple):
    """A GPU by the figures of its data sheet: dense rates, without sparsity."""

    name: str
    # FLOP/s of matrix products by the precision of a run; tensor cores for tf32 and bf16
    float32: float
    tf32: float
    bf16: float
    # bytes per second of its memory
    bandwidth: float
    # bytes of it
    memory: float

    def step_s(self, work: "Work", seeds: int, precision: str) -> float:
        """Seconds of one step of a stack."""
        arithmetic = work.flops / (REACHED[precision] * getattr(self, precision))
        return work.launches * LAUNCH_S + seeds * (arithmetic + work.bytes / self.bandwidth)


# NVIDIA's data sheets: H200 (2024), H100 SXM and PCIe (2023), A100 80GB SXM (2021), L40S (2023), L4 (2023); white
# papers of the architectures Ada (RTX 4090), GA102 (RTX 3090), Volta (V100 SXM2) and Turing (T4). Where a card has
# no such mode, its rate in float32 stands.
CARDS = (
    Card("H200", 67e12, 495e12, 989e12, 4.8e12, 141e9),
    Card("H100", 67e12, 495e12, 989e12, 3.35e12, 80e9),
    Card("H100 PCIe", 51e12, 378e12, 756e12, 2.0e12, 80e9),
    Card("A100", 19.5e12, 156e12, 312e12, 2.04e12, 80e9),
    Card("L40S", 91.6e12, 183e12, 362e12, 0.864e12, 48e9),
    Card("L4", 30.3e12, 60e12, 121e12, 0.3e12, 24e9),
    Card("RTX 4090", 82.6e12, 82.6e12, 165e12, 1.008e12, 24e9),
    Card("RTX 3090", 35.6e12, 35.6e12, 71e12, 0.936e12, 24e9),
    Card("V100", 15.7e12, 15.7e12, 15.7e12, 0.9e12, 16e9),
    Card("T4", 8.1e12, 8.1e12, 8.1e12, 0.32e12, 16e9),
)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def card(name: str) -> Card:
    """The card of a name as users write it: H100, rtx4090. UserError for one without figures here."""
    found = next((c for c in CARDS if _plain(c.name) == _plain(name)), None)
    if found is None:
        raise unknown("GPU", name, [c.name for c in CARDS])
    return found


def card_of(device: str) -> Card | None:
    """The card of a device's full name, "NVIDIA H100 80GB HBM3"; None for a CPU and for one that is not known."""
    words = re.findall(r"[a-z0-9]+", device.lower())
    fits = [c for c in CARDS if set(c.name.lower().split()) <= set(words)]
    return max(fits, key=lambda c: len(c.name), default=None)


def planned_card(settings: Settings) -> Card | None:
    """The card that the settings' device is; None for a CPU, and for a GPU that is not known."""
    from offbench.bench.executors.executor import is_here
    from offbench.bench.preflight import resolve_device
    from offbench.bench.provenance import device_name

    device = resolve_device(settings.device) if is_here(settings) else "cpu"
    return card_of(device_name(device)) if device.startswith("cuda") else None


class Work(NamedTuple):
    """What one step of one seed asks of a GPU."""

    launches: float
    flops: float
    # what products and optimisers read and write; what lies between is taken to be fused
    bytes: float
    minibatches: int


_known: dict[Any, Work] = {}


def work_of(cell: Cell) -> Work:
    """The work of a step, counted while one is made on this CPU.

    Where the data are not here, made-up data in the shape of the environment take their place.

    Raises:
        UserError: neither the data nor the environment are here, or the method is a PyTorch class.
    """
    from offbench.bench.preflight import build
    from offbench.training.imperative import Imperative
    from offbench.training.step import initial_carry, make_step, n_minibatches

    data, spec = shape_of(cell)
    key = (*program_of(cell), spec)
    if key in _known:
        return _known[key]
    method, pipeline = build(cell, data, spec)
    if isinstance(method, Imperative):
        raise UserError(f"{cell.method} is a PyTorch class: its work on a GPU is not counted")
    k, carry = n_minibatches(method), initial_carry(method, pipeline.spec(spec), [0])
    work = work_of_step(make_step(method, pipeline), carry)._replace(minibatches=k)
    if (each := _counted(cell)) is not None:
        work = work._replace(launches=k * each)
    _known[key] = work
    return work


def work_of_step(step: "Step", carry: "Carry") -> Work:
    """The work of a step of one minibatch, counted while the first of a stack makes one on this CPU."""
    from offbench.training.step import advance

    return work_of_run(lambda: advance(step, carry.seed(0)))


def work_of_run(run: Callable[[], Any]) -> Work:
    """The work of a function, counted while it runs: on this CPU, or without memory on torch's device `meta`."""
    products, flops, moved = _tally(run)
    return Work(KERNELS_PER_PRODUCT * products, flops, moved, 1)


def _counted(cell: Cell) -> float | None:
    """Launches for each minibatch in the table of launches, of the method with as many layers; None without."""
    if not LAUNCHES.exists():
        return None
    hidden = cell.hparams.get("hidden")
    for row in read_csv(LAUNCHES):
        if row["method"] != cell.method:
            continue
        if hidden is None or len(hidden) == len(row["hidden"].split("x")):
            return float(row["per_minibatch"])
    return None


def shape_of(cell: Cell) -> "tuple[ReplayData, Spec]":
    """The task's data and spec; where they are not here, a few made-up episodes of the environment's shape."""
    from offbench.tasks.loading import load_data

    if cell.task.sha256 is not None:
        return load_data(cell.task, gamma=cell.pipeline["gamma"], defects="ignore")
    return _made_up(cell)


# spaces of environments that were made: each takes up to a second
_spaces: dict[tuple[str, str, str], tuple[Any, Any]] = {}


def _made_up(cell: Cell) -> "tuple[ReplayData, Spec]":
    from gymnasium.spaces import Discrete, flatdim

    from offbench.tasks.environments import evaluation_env
    from offbench.testing.fakes import fake_data
    from offbench.types import Spec

    if not cell.task.env:
        raise UserError(
            f"{cell.task.id}: its data are not here, and it has no environment to ask for sizes"
        )
    key = cell.task.id, cell.task.env, str(cell.task.env_kwargs)
    if key not in _spaces:
        env = evaluation_env(cell.task)
        _spaces[key] = env.observation_space, env.action_space
        env.close()
    observations, actions = _spaces[key]
    seen = flatdim(observations)
    spec = Spec(
        # a goal is shown with each observation
        obs_dim=seen // 2 if cell.task.goals else seen,
        action_dim=flatdim(actions),
        gamma=cell.pipeline["gamma"],
        max_episode_steps=cell.task.max_episode_steps,
        discrete=isinstance(actions, Discrete),
    )
    # long enough for the sub-goals and options of a goal view
    return fake_data(spec, longest=200), spec


def _tally(run: Callable[[], Any]) -> tuple[int, float, float]:
    """(matrix products, their FLOP, bytes that they and the optimisers read and write) of a run."""
    import torch
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from offbench.nn import evaluated
    from offbench.training.products import FACTORS

    matmul = torch.ops.aten.matmul.default
    # operators of a CPU, and what stays whole within them
    composed = {**evaluated.FORMULAS, matmul: matmul.decompose}
    count = [0.0, 0.0, 0.0]

    class Tally(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in composed:
                with self:
                    return composed[func](*args, **(kwargs or {}))
            result = func(*args, **(kwargs or {}))
            if func in FACTORS:
                first = FACTORS[func]
                a, b = args[first : first + 2]
                count[0] += 1
                count[1] += 2.0 * a.numel() * b.shape[-1]
            if func in FACTORS or func.namespace == "offbench":
                tensors = [x for x in tree_leaves((args, result)) if isinstance(x, Tensor)]
                count[2] += sum(x.nbytes for x in tensors)
            return result

    with torch.no_grad(), Tally():
        run()
    return int(count[0]), count[1], count[2]


def correction(
    gpu: Card, rows: "Iterable[Mapping[str, Any]]", cell_of: Callable[[str], Cell]
) -> float:
    """Seconds measured per second estimated, the median of earlier runs on such a card; 1 without any.

    Args:
        rows: of finished runs, with run_id, entry, task, device, precision, pack, n_updates and train_s.
        cell_of: the cell of a run's id. Raises UserError where nothing here can train it, which is left out.
    """
    ratios: dict[tuple[str, str, int], float] = {}
    for row in rows:
        key = (row["entry"], row["task"], row["pack"])
        if card_of(row["device"]) != gpu or key in ratios or len(ratios) == CORRECTED_BY:
            continue
        try:
            cell = cell_of(row["run_id"])
            # its seconds are those of its source, too
            if "synthetic" in cell.pipeline:
                continue
            work = work_of(cell)
        except UserError:
            continue
        steps = row["n_updates"] / work.minibatches
        ratios[key] = row["train_s"] / (steps * gpu.step_s(work, row["pack"], row["precision"]))
    return median(ratios.values()) if ratios else 1.0


# stacks that a correction looks at
CORRECTED_BY = 12
