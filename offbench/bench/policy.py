"""A trained policy, loaded from the file that its run kept."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.bench.export import export
from offbench.bench.kept import Units, about, filled, read_tensors, written_objects
from offbench.bench.targets import (
    BUILT_IN,
    check_method,
    is_torch_class,
    locate,
    option_of,
    parameters,
)
from offbench.bench.trust import allowing_code, check_target
from offbench.bench.values import coerce
from offbench.data import transforms
from offbench.data.goals import Goal
from offbench.data.pipeline import Pipeline
from offbench.data.views import Window
from offbench.errors import UserError, expect
from offbench.results.spec import RunSpec
from offbench.results.store import Store
from offbench.rollout import make_policy
from offbench.training.imperative import Imperative
from offbench.types import Method, Policy, Spec, TimeStep

_TRANSFORMS = {cls.__name__: cls for cls in (transforms.ObsNorm, transforms.RewardAffine)}


class Loaded(NamedTuple):
    """What a kept file holds, with the code that it names."""

    # "policy" or "state": what was kept
    kind: str
    run: RunSpec
    method: Method | Imperative
    # to act only: it has no data
    pipeline: Pipeline
    # stacked, of one seed; nan where only the policy was kept and acting does not read it
    state: Any
    # the environment's, before the view
    spec: Spec
    units: Units


class TrainedPolicy:
    """A trained policy of one seed, as it acts in the raw environment.

    >>> policy = load_policy("results/runs/.../0123456789abcdef.safetensors")  # doctest: +SKIP
    >>> policy.reset(); action = policy.act(obs)  # doctest: +SKIP

    `run` is the specification of the run it was trained in. Observations are flat, as
    `offbench.evaluation_env(offbench.load_task(run.task))` shows them; actions are in the units the
    environment takes itself: numbers within its bounds, or the number of a choice.
    """

    def __init__(self, run: RunSpec, policy: Policy, state: Any, spec: Spec, units: Units):
        self.run, self.spec, self.units = run, spec, units
        self._policy, self._state = policy, state
        self._key = rng.fold(rng.key(run.seed), _ACTING)
        self._episode = -1
        self.reset()

    def reset(self) -> None:
        """Begins new episodes: memories of chunks and windows are cleared."""
        self._episode, self._t, self._memory = self._episode + 1, 0, None

    def act(self, obs: NDArray[Any], reward: NDArray[Any] | float = 0.0) -> NDArray[Any]:
        """The action at an observation (O,) -> (A,), or at those of E environments (E, O) -> (E, A).

        `reward` is that of the step before, (E,) or a number; policies that aim at a return ask for it.
        Discrete actions are numbers of choices, () or (E,). Raises UserError for another size.
        """
        rows = np.asarray(obs, np.float32)
        single = rows.ndim == 1
        rows = rows[None] if single else rows
        if rows.ndim != 2 or rows.shape[1] != self.spec.obs_dim:
            raise UserError(
                f"{self.run.task}: an observation of shape {np.shape(obs)}, its policies see"
                f" ({self.spec.obs_dim},) or (environments, {self.spec.obs_dim})"
            )
        n = len(rows)
        if self._memory is None:
            self._memory, self._n = self._policy.init(1, n), n
        if n != self._n:
            raise UserError(f"{n} observations after {self._n}; reset() begins new episodes")
        received = torch.as_tensor(np.broadcast_to(np.float32(reward), n).copy())[None]
        step = TimeStep(
            torch.from_numpy(rows.copy())[None], received, torch.full((1, n), self._t == 0)
        )
        key = rng.fold(rng.fold(self._key, torch.arange(n) + n * self._episode), self._t)[None]
        with torch.no_grad():
            action, self._memory = self._policy.act(self._state, step, self._memory, key)
        self._t += 1
        actions = self.units.scaled(action[0]).numpy()
        return actions[0] if single else actions

    __call__ = act

    def export(self, path: str | Path) -> Path:
        """Writes it as TorchScript, which acts without offbench: an observation (O,) -> the action.

        Raises UserError where it needs more than the observation: a memory of steps, or random draws.
        """
        name, size = f"{self.run.method} of {self.run.task}", self.spec.obs_dim
        return export(name, self._policy, self._state, size, self.units, Path(path))


# a stream of its own, so that acting draws nothing that training or evaluation draws
_ACTING = 0x0FF


def load_policy(
    run: str | Path, *, results: str | Path = "results", allow_code: bool = False
) -> TrainedPolicy:
    """The trained policy of a run, ready to act; neither its data nor its environment is needed.

    Args:
        run: a run id, the beginning of one, or the path of a record or of a kept file.
        results: the folder of the records, where `run` is an id.
        allow_code: whether a class of no installed package may be imported, such as one in the working folder.

    Raises:
        UserError: there is no such run, its policy was not kept, the file does not fit, or it names a class
            that is not allowed.
    """
    expect("results", results, (str, os.PathLike), "a folder")
    loaded = load(_find(str(run), Path(results)), allow_code=allow_code)
    policy = make_policy(loaded.method, loaded.pipeline, values="none")
    # of a goal-conditioned task, an observation has the goal after the state
    spec = loaded.spec._replace(obs_dim=loaded.pipeline.spec(loaded.spec).obs_dim)
    return TrainedPolicy(loaded.run, policy, loaded.state, spec, loaded.units)


def load(path: Path, *, allow_code: bool = False) -> Loaded:
    """The contents of a kept file. Raises UserError as `load_policy` does."""
    header, tensors = about(path), read_tensors(path)
    spec, spec_of_run = Spec(**header["spec"]), RunSpec(**header["run"])
    with allowing_code(allow_code):
        _check_code(header["target"], spec_of_run, path)
    method = _method_of(header["target"], spec_of_run)
    view = _view(spec_of_run.pipeline, header["fitted"], spec)
    fitted = tuple(
        _transform(t, f"transforms[{i}].", tensors) for i, t in enumerate(header["transforms"])
    )
    pipeline = Pipeline(None, None, view, fitted)  # type: ignore[arg-type]  # acting reads no data
    seen = view.spec(spec)
    if isinstance(method, Imperative):
        state = written_objects(method, seen, tensors, path)
    else:
        empty = tree_map(_unknown, method.init(rng.key(0), seen))
        state = filled(empty, tensors, path, partly=header["kind"] == "policy")
        state = tree_map(lambda x: x[None], state)
    units: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in header["units"].items()
    }
    return Loaded(header["kind"], spec_of_run, method, pipeline, state, spec, Units(**units))


def _unknown(x: Tensor) -> Tensor:
    """nan in the place of numbers, so that what was not kept is not taken for what was."""
    return torch.full_like(x, torch.nan) if x.is_floating_point() else x


def _find(run: str, results: Path) -> Path:
    """The kept file of a run. UserError where there is none."""
    named = Path(run).suffix in (".json", ".parquet", ".safetensors")
    kept = Path(run) if named else Store(results).find(run)
    if kept.suffix != ".safetensors":
        # a part of its checksum stands before the ending of a parquet
        kept = kept.with_name(f"{kept.name.partition('.')[0]}.safetensors")
    if not kept.exists():
        raise UserError(f"{kept} does not exist; a run keeps its policy unless keep=none")
    return kept


def _check_code(target: str, run: RunSpec, path: Path) -> None:
    """Raises UserError where a kept file names code that is not to be run: its classes must be a method, a
    view and a wrapper, of installed packages."""
    where = f"{path.name} of {run.task}"
    check_target(target, where)
    check_method(target)
    for group, need in (("view", "policy"), ("weight", "act"), ("synthetic", "mix")):
        name = str(run.pipeline.get(group, {}).get("name", "none"))
        if name in BUILT_IN[group] or name == "none":
            continue
        check_target(name, where)
        if not (isinstance(found := locate(name), type) and hasattr(found, need)):
            raise UserError(f"{where} names {name}, which is no {group}")


def _method_of(target: str, run: RunSpec) -> Method | Imperative:
    cls = locate(target)
    method = Imperative(cls, **run.hparams) if is_torch_class(cls) else _of(cls, run.hparams)
    if wrapper := dict(run.pipeline.get("weight", {})):
        method = _of(option_of("weight", wrapper.pop("name")), wrapper, method=method)
    if source := dict(run.pipeline.get("synthetic", {})):
        method = _of(option_of("synthetic", source.pop("name")), source).mix(method)
    return method


def _of(cls: Any, values: Mapping[str, Any], **more: Any) -> Any:
    """An object of `cls` with the settings of a JSON record, coerced to its types."""
    hints = parameters(cls)
    return cls(**{k: coerce(v, hints[k][0], k) for k, v in values.items()}, **more)


def _view(pipeline: Mapping[str, Any], fitted: Mapping[str, Any], spec: Spec) -> Any:
    settings = dict(pipeline["view"]) | {k.removeprefix("view."): v for k, v in fitted.items()}
    view = _of(option_of("view", settings.pop("name")), settings, gamma=pipeline["gamma"])
    if isinstance(view, Window):
        return view.to_act(spec.action_dim)
    return view.to_act() if isinstance(view, Goal) else view


def _transform(fields: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor]) -> Any:
    numbers = {k: v for k, v in fields.items() if k != "kind"}
    own: dict[str, Any] = {
        k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)
    }
    return _TRANSFORMS[fields["kind"]](**numbers, **own)
