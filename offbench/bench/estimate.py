"""Trained policies evaluated from recorded data alone (`offbench.ope`)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.bench.settings import ESTIMATING, EvalSettings
from offbench.data.pipeline import Pipeline
from offbench.data.replay import ReplayData, discounted_to_go, first_rows, is_one_hot
from offbench.data.views import Chunk, NStep
from offbench.errors import UserError
from offbench.ope.behaviour import Behaviour, clone
from offbench.ope.decisions import Decisions, decide
from offbench.ope.fqe import FQE, Fitted, fit
from offbench.ope.weighted import Weighted, doubly_robust, wis
from offbench.results.schema import ESTIMATE, ESTIMATE_ERROR, RECORDED
from offbench.rollout import make_policy
from offbench.tasks.task import Task
from offbench.training.imperative import Imperative
from offbench.training.step import to_device
from offbench.types import Method, Policy, Spec

# separates the draws of an evaluation from those of training
OPE = 0x09E


def make_fqe(settings: EvalSettings) -> FQE:
    """The estimator of `eval.fqe_updates` and the like. Raises UserError for values out of range."""
    names = ("gamma", "updates", "hidden")
    gamma, updates, hidden = (getattr(settings, f"fqe_{name}") for name in names)
    return FQE(gamma=gamma, n_updates=updates, hidden=tuple(hidden))


def fqe_of(protocol: Mapping[str, Any]) -> FQE:
    """The estimator of a run's protocol."""
    return make_fqe(EvalSettings(**{k: protocol[k] for k in ESTIMATING}))


class _Plans(NamedTuple):
    """A view through which a policy's decisions are seen whole."""

    gamma: float

    def policy(self, policy: Policy) -> Policy:
        return policy


def check_rewards(task: Task, data: ReplayData) -> None:
    """Raises UserError where there is nothing to estimate."""
    if task.goals:
        raise UserError(
            f"{task.id} is goal-conditioned: its data have no rewards that a value could be estimated of"
        )
    if not data.reward[data.valid].any():
        raise UserError(
            f"{task.id}: every recorded reward is 0, so every policy is estimated to be worth 0"
        )


def check_view(view: Any, name: str) -> None:
    """Raises UserError for a policy whose decisions depend on more than the observation."""
    if not isinstance(view, NStep | Chunk):
        raise UserError(
            f"{name} decides by more than one observation (view {type(view).__name__}), and fitted Q evaluation is of"
            " policies of single observations"
        )


def decisions_of(
    method: Method | Imperative,
    pipeline: Pipeline,
    spec: Spec,
    state: Any,
    seeds: Sequence[int],
    data: ReplayData,
) -> Decisions:
    """What the stacked policies of a method decide at the rows of raw `data`."""
    policy, steps = planning(method, pipeline, spec)
    return decide(policy, state, data, keys=keys_of(seeds, data), steps=steps)


def planning(method: Method | Imperative, pipeline: Pipeline, spec: Spec) -> tuple[Policy, int]:
    """The policy of a method whose decisions are whole plans, and the steps of one."""
    steps = pipeline.spec(spec).chunk
    plans: Any = _Plans(pipeline.view.gamma)
    seen = pipeline._replace(view=pipeline.view if steps == 1 else plans)
    return make_policy(method, seen, values="none"), steps


def keys_of(seeds: Sequence[int], data: ReplayData) -> Tensor:
    """(N,) keys of an evaluation, the same for all policies of a seed."""
    return torch.stack([rng.fold(rng.key(s), OPE) for s in seeds]).to(data.obs.device)


def fitted_q(
    fqe: FQE,
    data: ReplayData,
    decisions: Decisions,
    seeds: Sequence[int],
    *,
    device: str = "cpu",
    rows: bool = False,
    pause: Callable[[int], bool] | None = None,
) -> Fitted | None:
    """The Q-functions of N policies fitted on a device, their values on the CPU; None where `pause` was true.

    `rows`: with Q and V of every row.
    """
    there = Decisions(*(to_device(decisions, device)))
    keys = keys_of(seeds, data).to(device)
    found = fit(fqe, data.to(device), there, keys=keys, rows=rows, pause=pause)
    return None if found is None else Fitted(*to_device(found, "cpu"))


def estimate_stack(
    trained: tuple[Method | Imperative, Pipeline, Spec],
    state: Any,
    seeds: Sequence[int],
    broken: Sequence[bool],
    data: ReplayData,
    protocol: Mapping[str, Any],
    *,
    device: str = "cpu",
    pause: Callable[[int], bool] | None = None,
) -> dict[str, list[float]] | None:
    """What the trained policies of a stack are estimated to be worth, by the protocol of their runs: the numbers
    of a record's curves, one per member, nan of `broken` ones, whose parameters are not finite; None where
    `pause` was true."""
    finite = [i for i, bad in enumerate(broken) if not bad]
    values = np.full((len(broken), len(first_rows(data))), np.nan)
    fqe = fqe_of(protocol)
    if finite:
        method, pipeline, spec = trained
        own, members = tree_map(lambda x: x[finite], state), [seeds[i] for i in finite]
        decisions = decisions_of(method, pipeline, spec, own, members, data)
        found = fitted_q(fqe, data, decisions, members, device=device, pause=pause)
        if found is None:
            return None
        values[finite] = found.start_values.double().numpy()
    recorded = float(discounted_to_go(data, fqe.gamma)[first_rows(data)].double().mean())
    n = values.shape[1]
    error = values.std(1, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(values), np.nan)
    return {
        ESTIMATE: values.mean(1).tolist(),
        ESTIMATE_ERROR: error.tolist(),
        RECORDED: [recorded] * len(values),
    }


class Estimates(NamedTuple):
    """Estimates of N policies at, or contributions of, E recorded episodes."""

    # (N, E)
    values: np.ndarray
    # (N,) effective numbers of episodes, of importance weights
    effective: Sequence[float | None]


@dataclass(frozen=True)
class Estimators:
    """The estimators `fqe`, `wis` and `dr` on recorded data; what several of them need is computed once."""

    data: ReplayData
    fqe: FQE
    device: str = "cpu"

    @cached_property
    def behaviour(self) -> Behaviour:
        """The policy that recorded the data, cloned."""
        discrete = is_one_hot(self.data.action, self.data.valid)
        return clone(self.data, self.fqe, discrete=discrete)

    def of(
        self, names: Collection[str], decisions: Decisions, seeds: Sequence[int]
    ) -> dict[str, Estimates | UserError]:
        """What a stack of policies is worth by each of some estimators, or why one cannot say."""
        single, found = decisions.steps == 1, dict[str, Estimates | UserError]()
        rows = single and "dr" in names
        if rows or "fqe" in names:
            fitted = fitted_q(self.fqe, self.data, decisions, seeds, device=self.device, rows=rows)
            # nothing pauses it
            assert fitted is not None
            found["fqe"] = Estimates(fitted.start_values.double().numpy(), [None] * len(seeds))
        weights = [name for name in names if name != "fqe"]
        if weights and single:
            ratios = [self.behaviour.log_ratio(self.data.action, x) for x in decisions.action]
        for name in weights:
            if not single:
                why = "importance weights are of single actions, and its policy has chunks"
                found[name] = UserError(why)
            elif name == "wis":
                found[name] = _of_weights([wis(self.data, x, self.fqe.gamma) for x in ratios])
            else:
                assert fitted is not None and fitted.q is not None and fitted.v is not None
                own = zip(ratios, fitted.q, fitted.v, strict=True)
                made = [doubly_robust(self.data, x, q, v, self.fqe.gamma) for x, q, v in own]
                found[name] = _of_weights(made)
        return {name: found[name] for name in names}


def _of_weights(made: Sequence[Weighted]) -> Estimates:
    return Estimates(np.stack([m.terms.numpy() for m in made]), [m.effective for m in made])
