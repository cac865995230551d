"""Policies and training states stored with their records, to act and to resume training.

    results/runs/<suite>/<task>/<entry>/<run_id>.safetensors

With `keep=policy` it holds the tensors that the method's `act` reads, with `keep=state` all of them, the
run's key and its number of steps: a longer run of the same settings resumes from there. Either holds what
acting needs: the run's specification, the fitted transforms, and the units of actions. Nothing is
unpickled, and neither the data nor an environment is needed to load one.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import (
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_map,
    tree_unflatten,
)

from offbench import rng
from offbench.data.pipeline import Pipeline
from offbench.errors import UserError, in_one_line
from offbench.results.sharing.policies import policy_fault
from offbench.results.spec import RunSpec
from offbench.results.store import Record, Store
from offbench.training.checkpoint import write_sealed
from offbench.training.imperative import Imperative, Objects
from offbench.training.step import Carry, Swept, bind, n_minibatches, stack
from offbench.types import Context, Method, Spec

_FORMAT = 1


class Units(NamedTuple):
    """Units of the environment's actions, to which a policy's [-1, 1] are scaled."""

    low: tuple[float, ...] | None = None  # (A,) bounds; None: actions are in [-1, 1] there, too
    high: tuple[float, ...] | None = None
    # number of the first choice; None: actions are continuous
    first: int | None = None

    def scaled(self, action: Tensor) -> Tensor:
        """Actions (..., A) of a policy in these units; of discrete ones the numbers of the choices (...)."""
        if self.first is not None:
            return action.argmax(-1) + self.first
        if self.low is None or self.high is None:
            return action
        low, high = (torch.from_numpy(np.asarray(x, np.float32)) for x in (self.low, self.high))
        return torch.clamp(low + (action + 1) / 2 * (high - low), low, high)


class Program(NamedTuple):
    """A trained run without its state: method, pipeline, problem."""

    # dotted path of the method's class
    target: str
    method: Method
    pipeline: Pipeline
    # the environment's, before the view
    spec: Spec
    units: Units
    # view settings that were null and set from the data
    fitted: Mapping[str, Any]


# --- writing --------------------------------------------------------------------------------


def save(
    path: Path,
    carry: Carry,
    member: int,
    *,
    keep: str,
    run: RunSpec,
    program: Program,
) -> None:
    """Writes the policy or the training state of one member of a stack; `carry` is on the CPU.

    For a PyTorch class (`offbench.training.imperative`) it is the policy either way: the state dicts of
    its modules. The write is atomic; UserError where the file cannot be written.
    """
    method, pipeline, spec = program.method, program.pipeline, program.spec
    if isinstance(method, Imperative):
        keep, tensors = "policy", _of_modules(carry.state.members[member].algorithm)
    else:
        tensors = _of_carry(carry.seed(member), keep, method, pipeline.spec(spec))
    about: dict[str, Any] = {
        "format": _FORMAT,
        "kind": keep,
        "run": run.as_dict(),
        "target": program.target,
        "spec": spec._asdict(),
        "units": program.units._asdict(),
        "fitted": dict(program.fitted),
        "transforms": [],
    }
    # named tuples, all of them
    transforms: Sequence[Any] = pipeline.transforms
    for i, transform in enumerate(transforms):
        fields = transform._asdict()
        tensors |= {f"transforms[{i}].{k}": x for k, x in fields.items() if isinstance(x, Tensor)}
        numbers = {k: x for k, x in fields.items() if not isinstance(x, Tensor)}
        about["transforms"].append({"kind": type(transform).__name__, **numbers})
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    try:
        write_sealed(path, tensors, {"offbench": json.dumps(about)})
    except OSError as error:
        raise UserError(f"cannot keep a policy in {path}: {error.strerror}") from None


def _of_carry(carry: Carry, keep: str, method: Method, spec: Spec) -> dict[str, Tensor]:
    state = carry.state.state if isinstance(carry.state, Swept) else carry.state
    tensors = _named("state", state)
    if keep == "state":
        return tensors | {"key": carry.key, "step": carry.step}
    read = _read_by_act(method, state, spec)
    return {name: x for name, x in tensors.items() if name in read}


def _modules(algorithm: Any) -> dict[str, torch.nn.Module]:
    """Attribute name -> module of an object of a PyTorch class; "self" where it is a module."""
    if isinstance(algorithm, torch.nn.Module):
        return {"self": algorithm}
    return {k: x for k, x in vars(algorithm).items() if isinstance(x, torch.nn.Module)}


def _of_modules(algorithm: Any) -> dict[str, Tensor]:
    return {
        f"modules.{name}.{k}": x
        for name, module in _modules(algorithm).items()
        for k, x in module.state_dict().items()
    }


def sizes(method: Method, spec: Spec) -> dict[str, int]:
    """Bytes of tensors in one run's file for each choice of `keep`; `spec` is that of the view."""
    if isinstance(method, Imperative):
        held = _of_modules(method.member(rng.key(0), spec, "cpu").algorithm)
        size = sum(x.nbytes for x in held.values())
        return {"none": 0, "policy": size, "state": size}
    state = method.init(rng.key(0), spec)
    named = _named("state", state)
    read = _read_by_act(method, state, spec)
    whole = sum(x.nbytes for x in named.values())
    return {"none": 0, "policy": sum(named[k].nbytes for k in read), "state": whole}


def _named(prefix: str, tree: Any) -> dict[str, Tensor]:
    """Leaves of a pytree by path: "state.actor[0]['w']"."""
    return {prefix + keystr(path): x for path, x in tree_flatten_with_path(tree)[0]}


def _read_by_act(method: Method, state: Any, spec: Spec) -> set[str]:
    """The names of the leaves that acting depends on, by tracing it; all of them where it cannot be traced."""
    from torch.fx.experimental.proxy_tensor import make_fx

    leaves, tree = tree_flatten(state)
    obs, key = _example(spec), rng.key(0)

    def act(leaves: list[Tensor]) -> list[Tensor]:
        bound, inner = bind(method, tree_unflatten(leaves, tree))
        return tree_flatten(bound.act(inner, obs, key))[0]

    names = list(_named("state", state))
    try:
        graph = make_fx(act)(leaves).graph
    except Exception:
        return set(names)
    graph.eliminate_dead_code()
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return {name for name, node in zip(names, inputs, strict=True) if node.users}


def _example(spec: Spec) -> Any:
    """An observation of zeros as a method sees it: (1, O), or a window that is full."""
    if not spec.context:
        return torch.zeros(1, spec.obs_dim)
    wide = [torch.zeros(1, spec.context, n) for n in (spec.obs_dim, spec.action_dim, 1)]
    none = wide[2][..., 0]
    return Context(wide[0], wide[1], none, none.long(), torch.ones_like(none, dtype=torch.bool))


# --- reading --------------------------------------------------------------------------------


def about(path: Path) -> dict[str, Any]:
    """The header of a kept file, without its tensors. UserError for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {}).get("offbench", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a kept policy ({error})") from None
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise UserError(f"{path} is not a policy that offbench kept")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a kept file by name. UserError where it cannot be read, or anything in it changed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if fault := policy_fault(path):
            raise UserError(f"{path} {fault}; train the run again")
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); train the run again") from None


def filled(like: Any, tensors: Mapping[str, Tensor], path: Path, *, partly: bool) -> Any:
    """The pytree `like` with the tensors of a file as its leaves. UserError where they do not fit.

    With `partly` leaves that the file lacks stay as they are.
    """
    leaves, tree = tree_flatten(like)
    names = list(_named("state", like))
    found = [tensors.get(name) for name in names]
    for name, old, new in zip(names, leaves, found, strict=True):
        if new is None and not partly:
            raise UserError(f"{path} does not fit this version of its method: it lacks {name}")
        if new is not None and (new.shape, new.dtype) != (old.shape, old.dtype):
            raise UserError(
                f"{path} does not fit this version of its method: {name} is {tuple(new.shape)}, not"
                f" {tuple(old.shape)}"
            )
    return tree_unflatten([old if x is None else x for x, old in zip(found, leaves)], tree)


def written_objects(
    method: Imperative, spec: Spec, tensors: Mapping[str, Tensor], path: Path
) -> Objects:
    """An object of the class with the state dicts of its modules. UserError where they do not fit."""
    member = method.member(rng.key(0), spec, "cpu")
    for name, module in _modules(member.algorithm).items():
        own = f"modules.{name}."
        found = {k.removeprefix(own): x for k, x in tensors.items() if k.startswith(own)}
        try:
            module.load_state_dict(found)
        except RuntimeError as error:
            words = in_one_line(error)
            raise UserError(f"{path} does not fit {method.name} as it is now: {words}") from None
    members = np.empty(1, object)
    members[0] = member
    return Objects(torch.zeros(1), members)


# --- going on -------------------------------------------------------------------------------


class ShorterRuns(NamedTuple):
    """Kept training states of shorter runs with the same settings, one per member of a stack."""

    carry: Carry  # stacked
    n_updates: int
    records: list[Record]


def find_shorter(
    store: Store, members: Sequence[tuple[str, RunSpec]], like: Carry, method: Method
) -> "tuple[ShorterRuns | None, str | None]":
    """The longest kept state that every (entry, run) of a stack can resume from, shaped as `like`;
    or None and the reason why a kept shorter run cannot be resumed."""
    found: list[dict[int, Path]] = []
    why: str | None = None
    for _, run in members:
        shorter, reason = _shorter(store, run)
        found.append(shorter)
        why = why or reason
    common = set.intersection(*(set(x) for x in found)) if found else set()
    if not common:
        return None, why
    n = max(common)
    carries = []
    try:
        for i, shorter in enumerate(found):
            tensors, own = read_tensors(shorter[n]), like.seed(i)
            swept = isinstance(own.state, Swept)
            state = filled(
                own.state.state if swept else own.state, tensors, shorter[n], partly=False
            )
            state = own.state._replace(state=state) if swept else state
            carries.append(Carry(state, tensors["key"], tensors["step"]))
        if any(int(c.step) * n_minibatches(method) != n for c in carries):
            raise UserError(f"{found[0][n]} does not end at {n} updates")
    except UserError as error:
        return None, str(error)
    stacked = Carry(
        stack([c.state for c in carries]), torch.stack([c.key for c in carries]), carries[0].step
    )
    stacked = tree_map(lambda x, y: x.to(y.device), stacked, like)
    return ShorterRuns(stacked, n, [store.read(x[n].stem) for x in found]), None


def _shorter(store: Store, run: RunSpec) -> tuple[dict[int, Path], str | None]:
    """Number of updates -> kept state of a run that differs in its length only; and why another kept
    run cannot be resumed."""
    found: dict[int, Path] = {}
    why = None
    for other, path, kind in shorter_runs(store, run):
        if tied := _tied(other, run):
            words = ", ".join(f"method.{k}" for k in tied)
            why = (
                f"a run of {other.n_updates} updates was kept, but {words} follows the length of the run:"
                " training began at 0"
            )
        elif kind == "state":
            found[other.n_updates] = path
        else:
            why = (
                f"of the run of {other.n_updates} updates the policy alone was kept, so training began at 0;"
                " a run with keep=state can be gone on from"
            )
    return found, why


def on_its_way(store: Store, run: RunSpec) -> tuple[dict[int, Path], list[str]]:
    """Number of updates -> kept policy of a run that differs in its length only; and the hyper-parameters that made
    other shorter runs of the same settings differ in more."""
    found: dict[int, Path] = {}
    follow: list[str] = []
    for other, path, _ in shorter_runs(store, run):
        if tied := _tied(other, run):
            follow = tied
        else:
            found[other.n_updates] = path
    return found, follow


def shorter_runs(store: Store, run: RunSpec) -> Iterator[tuple[RunSpec, Path, str]]:
    """Runs of the same settings and fewer updates, what was kept of them, and of which kind that is.

    Hyper-parameters that are the length of a run may differ with it.
    """
    for path in store.kept(run):
        try:
            header = about(path)
            other = RunSpec(**header["run"])
        except UserError:
            continue
        if other.n_updates >= run.n_updates or other.method != run.method:
            continue
        # training is the same whatever is evaluated, but for the episodes that are held out
        held_out = other.protocol.get("validation") == run.protocol.get("validation")
        same = {
            "n_updates": run.n_updates,
            "protocol": run.protocol if held_out else other.protocol,
        }
        hparams = {**other.hparams, **{k: run.hparams[k] for k in _tied(other, run)}}
        if RunSpec(**{**header["run"], **same, "hparams": hparams}) == run:
            yield other, path, header["kind"]


def _tied(other: RunSpec, run: RunSpec) -> list[str]:
    """Hyper-parameters equal to the length of each run, as a decay over all of it."""
    lengths = (other.n_updates, run.n_updates)
    return [k for k, v in run.hparams.items() if (other.hparams.get(k), v) == lengths]
