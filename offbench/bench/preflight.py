"""Builds the method and pipeline of a cell; checks cells before training."""

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil

from offbench.bench.cells import Cell
from offbench.bench.settings import check_device_name
from offbench.bench.stacks import program_of
from offbench.bench.targets import is_torch_class, locate, option_of
from offbench.errors import UserError, calling, unknown

if TYPE_CHECKING:
    from offbench.data.pipeline import Pipeline
    from offbench.data.replay import ReplayData
    from offbench.synthetic.sources import Synthetic
    from offbench.types import Method, Spec


_NO_TENSOR = "act returned something that is no tensor: return a tensor (E, A) for E observations"


def build(
    cell: Cell, data: "ReplayData", spec: "Spec", *, lazy: bool = False
) -> "tuple[Any, Pipeline]":
    """(method, pipeline) of a cell on its task's data. Raises UserError where they do not fit."""
    from offbench.data.pipeline import make_pipeline

    method = build_method(cell)
    sampler = dict(cell.pipeline["sampler"])
    row_weights = option_of("sampler", sampler.pop("name"))
    pipeline = make_pipeline(
        data,
        view=build_view(cell),
        weights=[partial(row_weights, **sampler)] if row_weights else [],
        transforms=cell.pipeline["transforms"],
        batch_size=cell.pipeline["batch_size"],
        lazy=lazy,
        needs=getattr(method, "needs", ()),
    )
    check_actions(method, pipeline.spec(spec), cell)
    if source := build_source(cell):
        source.check(pipeline, spec, cell.task.id)
    if check := getattr(method, "check", None):
        check(pipeline.spec(spec))
    if pipeline.spec(spec).context and "context" not in getattr(method, "needs", ()):
        raise UserError(f"{cell.method} does not learn from windows of steps; use view=nstep")
    if pipeline.spec(spec).chunk > 1:
        check_ends(data, spec, cell)
    check_batch(pipeline.spec(spec), cell)
    return method, pipeline


def build_view(cell: Cell) -> Any:
    """The cell's view, not fitted to data."""
    view = dict(cell.pipeline["view"])
    return option_of("view", view.pop("name"))(**view, gamma=cell.pipeline["gamma"])


def build_method(cell: Cell) -> Any:
    """The cell's method, wrapped in learned weights and synthetic data where it has them.

    Raises UserError for either on a PyTorch class.
    """
    from offbench.training.imperative import Imperative

    cls, wrapper = locate(cell.target), dict(cell.pipeline.get("weight", {}))
    source = build_source(cell)
    if not is_torch_class(cls):
        method = cls(**cell.hparams)
    elif wrapper or source:
        what, group = ("learned weights", "weight") if wrapper else ("synthetic data", "synthetic")
        raise UserError(
            f"{cell.method} is a PyTorch class, and {what} need a functional method; use {group}=none"
        )
    else:
        method = Imperative(cls, **cell.hparams)
    if wrapper:
        method = option_of("weight", wrapper.pop("name"))(method=method, **wrapper)
    return source.mix(method) if source else method


def build_source(cell: Cell) -> "Synthetic | None":
    """The cell's source of synthetic data, not trained; None without."""
    source = dict(cell.pipeline.get("synthetic", {}))
    return option_of("synthetic", source.pop("name"))(**source) if source else None


def check_batch(spec: "Spec", cell: Cell) -> None:
    """Raises UserError where one minibatch of one seed exceeds the machine's memory."""
    import torch

    has = psutil.virtual_memory().total
    if torch.cuda.is_available():
        has = max(has, torch.cuda.get_device_properties(0).total_memory)
    rows, numbers = cell.pipeline["batch_size"], 2 * spec.obs_dim + spec.action_dim + 2
    if (needs := 4 * rows * numbers) > has:
        raise UserError(
            f"batch_size={rows}: one minibatch of {cell.task.id} takes {needs / 2**30:.0f} GiB, and this"
            f" machine has {has / 2**30:.0f}"
        )


def check_ends(data: "ReplayData", spec: "Spec", cell: Cell) -> None:
    """Raises UserError where ends of episodes are not recorded: chunks would cross them."""
    if data.n_episodes == 1 and data.n_transitions > 10 * spec.max_episode_steps:
        raise UserError(
            f"{cell.task.id}: one episode of {data.n_transitions} steps where the environment allows "
            f"{spec.max_episode_steps}: no ends of episodes are recorded, and chunks would run across them"
        )


def check_actions(method: Any, spec: "Spec", cell: Cell) -> None:
    """Raises UserError where method and data differ in discrete or continuous actions."""
    wants = getattr(method, "actions", "continuous")
    has = "discrete" if spec.discrete else "continuous"
    if wants not in (kinds := ("continuous", "discrete")):
        raise unknown(f"kind of actions of {cell.method}", wants, kinds)
    if wants == "discrete" and has != "discrete":
        raise UserError(
            f"{cell.method} learns discrete actions; those of {cell.task.id} are continuous"
        )
    if spec.discrete and spec.chunk > 1:
        raise UserError(
            f"{cell.task.id}: chunks of discrete actions are not supported; use view=nstep"
        )
    if wants != has:
        other = ": say method.actions=discrete" if hasattr(type(method), "actions") else ""
        raise UserError(
            f"{cell.method} learns continuous actions; those of {cell.task.id} are discrete{other}"
        )


def preflight(
    cells: Sequence[Cell],
    *,
    strict: bool = False,
    tries: bool = True,
    fits: Callable[[Cell], None] = lambda cell: None,
    report: Callable[[str], None] = lambda text: None,
) -> None:
    """Checks data, environments and composition of all cells before training, once for those that differ in
    numbers only; `fits` raises for a cell that takes more memory than there is, and with `tries` functional
    methods of the user's own make one update on the CPU.

    Raises UserError for the first fault; severe defects of a data set warn, with `strict` they raise.
    Writes reports on data into the cache, nothing else.
    """
    from offbench import rng
    from offbench.rollout import EnvPool
    from offbench.tasks import doctor
    from offbench.tasks.loading import doctor_report, load_data
    from offbench.training.imperative import Imperative
    from offbench.training.loop import check_budget

    for task in {cell.task.id: cell.task for cell in cells}.values():
        report(f"checking {task.id}")
        data, spec = load_data(task, defects="ignore")
        (doctor.refuse if strict else doctor.warn_once)(doctor_report(task, data))
        if task.env:
            pool = EnvPool(task)
            pool.check(spec)
            pool.close()
        for cell in _one_of_each([c for c in cells if c.task.id == task.id]):
            training_episodes(cell, data)
            method, pipeline = build(cell, data, spec, lazy=True)
            # a method of offbench keeps the contract (tests)
            own = not isinstance(method, Imperative) and not cell.target.startswith("offbench.")
            if own and tries:
                # too large a one is not tried; what else is wrong with it shows when it is
                try:
                    fits(cell)
                except UserError:
                    raise
                except Exception:
                    pass
                try_method(method, pipeline, spec, cell)
            fits(cell)
            if cell.protocol.get("by"):
                check_estimable(cell, pipeline, data)
            check_budget(method, cell.n_updates)
            if isinstance(method, Imperative):
                method.check(pipeline.spec(spec), pipeline.sample(rng.key(0)))


def try_method(method: "Method", pipeline: "Pipeline", spec: "Spec", cell: Cell) -> None:
    """Raises UserError where a functional method fails before it has learned: in its first update, of two
    stacked seeds, or in acting after it."""
    import torch
    from torch.func import vmap
    from torch.utils._pytree import tree_leaves, tree_structure

    from offbench import rng
    from offbench.rollout import make_policy
    from offbench.testing.checks_update import VMAP_ADVICE
    from offbench.training.step import initial_carry, make_step
    from offbench.types import TimeStep

    name = cell.target.rpartition(".")[2]

    def need(good: bool, sentence: str) -> None:
        more = f"offbench check method._target_={cell.target} tests all that a method must keep"
        if not good:
            raise UserError(f"{name}: {sentence} ({more})")

    with calling(f"{name}.init"):
        leaves = tree_leaves(method.init(rng.key(0), pipeline.spec(spec)))
    other = [x for x in leaves if not isinstance(x, torch.Tensor)]
    need(not other, f"init returned a state that holds {other[:1]}: make it of tensors alone")
    carry, step = initial_carry(method, pipeline.spec(spec), [0, 1]), make_step(method, pipeline)
    given = vmap(lambda key: step.input(step.draw(key)))(carry.key)
    with torch.no_grad(), calling(f"{name}.update"):
        try:
            state, metrics = vmap(step.update)(carry.state, given)
        except (RuntimeError, ValueError) as error:
            for symptom, sentence in VMAP_ADVICE:
                need(symptom not in str(error), sentence.rstrip("."))
            raise
    shapes = lambda tree: [(x.shape, x.dtype) for x in tree_leaves(tree)]
    need(
        tree_structure(state) == tree_structure(carry.state)
        and shapes(state) == shapes(carry.state),
        "update returned a state of another structure, or of other shapes or types, than init",
    )
    arrays = {k: tuple(x.shape[1:]) for k, x in metrics.items() if x.ndim > 1}
    need(not arrays, f"update returned metrics that are no scalars, of shapes {arrays}")
    policy = make_policy(method, pipeline, values="none")
    # a goal is an observation, and is shown with each
    obs = torch.zeros(2, 1, (2 if cell.task.goals else 1) * spec.obs_dim)
    first, keys = TimeStep.begin(obs), rng.split(rng.key(1), 2)[:, None]
    with torch.no_grad(), calling(f"{name}.act"):
        try:
            action, _ = policy.act(state, first, policy.init(2, 1), keys)
        except (AttributeError, TypeError, ValueError) as error:
            # of what act returned, not in it
            last = traceback.extract_tb(error.__traceback__)[-1].filename
            odd = last == make_policy.__code__.co_filename
            need(not (odd or VMAP_ADVICE[0][0] in str(error)), _NO_TENSOR)
            raise
    sizes = "".join(f", {n}" for n in action.shape[2:])
    need(
        action.shape[2:] == (spec.action_dim,),
        f"act returned actions (E{sizes or ','}) for E observations, and (E, {spec.action_dim}) are needed",
    )


def check_estimable(cell: Cell, pipeline: "Pipeline", data: "ReplayData") -> None:
    """Raises UserError where fitted Q evaluation has no rewards, or no policy of single observations."""
    from offbench.bench.estimate import check_rewards, check_view

    check_rewards(cell.task, data)
    check_view(pipeline.view, cell.entry)


def _one_of_each(cells: Sequence[Cell]) -> list[Cell]:
    """The first of all cells that differ in numeric hyper-parameters only."""
    found: dict[Any, Cell] = {}
    for cell in cells:
        found.setdefault((program_of(cell), cell.n_updates, cell.protocol.shown), cell)
    return list(found.values())


def resolve_device(device: str) -> str:
    """The device to use for `device=`, auto resolved. UserError for one that is not there."""
    check_device_name(device)
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"device={device}: no CUDA device is available; use device=cpu (offbench plan --on H100 estimates"
            " for a GPU that is not here)"
        )
    return device


def check_machine(device: str, engine: str, precision: str) -> None:
    """Raises UserError for a device that is not there, and for an engine or precision that it lacks."""
    resolved = resolve_device(device)
    if resolved.startswith("cuda"):
        return
    where = f"device={device}" if device != "auto" else "device=auto, here cpu"
    if engine == "cudagraph":
        raise UserError(f"engine=cudagraph is for GPUs ({where}); use engine=auto")
    if precision == "tf32":
        raise UserError(f"precision=tf32 is for GPUs ({where}); use precision=float32")


def training_episodes(cell: Cell, data: "ReplayData") -> "tuple[ReplayData, ReplayData | None]":
    """(training, held-out) episodes; None where the protocol holds none out."""
    from offbench.training.held_out import split

    if not (share := cell.protocol.get("validation")):
        return data, None
    return split(data, share, name=cell.task.id)
