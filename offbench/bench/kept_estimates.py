"""Kept policies evaluated from recorded data alone (`offbench.bench.estimate`), and played for comparison."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from offbench import rng
from offbench.bench.estimate import (
    OPE,
    Estimator,
    check_rewards,
    check_view,
    decisions_of,
    make_estimator,
)
from offbench.bench.played import beyond, longer
from offbench.bench.policy import Loaded, load
from offbench.data.replay import ReplayData
from offbench.errors import UserError
from offbench.ope.decisions import Decisions, stacked
from offbench.ope.fqe import FQE
from offbench.ope.model import fit_model, imagined_returns
from offbench.results.estimates import PLAYED, is_estimated, path_of, write_estimates
from offbench.rollout import EnvPool, PlayedStep, evaluate, make_policy
from offbench.tasks.loading import load_data
from offbench.tasks.task import Task

# of the decisions of a stack
_MOST_BYTES = 1 << 29


class Candidate(NamedTuple):
    """A kept policy that is to be evaluated."""

    run_id: str
    # "iql seed 0"
    name: str
    # of its record's json
    mark: Path

    @property
    def kept(self) -> Path:
        """The file of the policy."""
        return self.mark.with_suffix(".safetensors")


# of each candidate its rows, or why there are none
Done = Callable[[Candidate, "pd.DataFrame | UserError"], None]
Estimate = Callable[[Sequence[Candidate], Done], None]


@dataclass(frozen=True)
class Evaluation:
    """Kept policies of one task, evaluated and played; what is on file is not computed again."""

    task: Task
    # of the results
    root: Path
    fqe: FQE
    device: str = "cpu"
    say: Callable[[str], None] = lambda text: None
    report: Callable[[str], None] = lambda text: None

    def files(
        self, candidates: Sequence[Candidate], by: Sequence[str], play: int | None
    ) -> list[Path]:
        """The files of estimates `by` some estimators, and of `play` episodes.

        Raises UserError where the data have no rewards; a policy that cannot be evaluated is said to be so.
        """
        data, _ = load_data(self.task, defects="ignore")
        check_rewards(self.task, data)
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.fqe).items()}
        found, made = list[Path](), set[str]()
        for name in by:
            paths = self._made(
                name,
                candidates,
                settings,
                lambda some, done, name=name: estimate(  # type: ignore[misc]
                    name, some, data, self.fqe, self.device, done
                ),
            )
            found, made = [*found, *paths.values()], made | paths.keys()
        if play is not None and self.task.env:
            pool = EnvPool(unlimited(self.task, self.fqe.gamma))
            how = {"episodes": play, "gamma": self.fqe.gamma}
            some = [c for c in candidates if c.run_id in made]
            found += self._made(PLAYED, some, how, partial(_play, pool, how)).values()
            pool.close()
        return found

    def _made(
        self,
        name: str,
        candidates: Sequence[Candidate],
        settings: Mapping[str, Any],
        estimate: Estimate,
    ) -> dict[str, Path]:
        where = {c.run_id: path_of(self.root, c.mark, name) for c in candidates}
        missing = [c for c in candidates if not is_estimated(where[c.run_id], c.kept, settings)]
        lost = set[str]()
        left = len(missing)

        def done(candidate: Candidate, rows: "pd.DataFrame | UserError") -> None:
            nonlocal left
            left -= 1
            self.report(f"{name} on {self.task.id}: {left} of {len(missing)} policies left")
            if isinstance(rows, UserError):
                self.say(f"{candidate.name} on {self.task.id}: {rows}")
                lost.add(candidate.run_id)
            else:
                write_estimates(where[candidate.run_id], rows, candidate.kept, settings)

        if missing:
            self.report(f"{name} on {self.task.id}: {len(missing)} policies")
            estimate(missing, done)
        return {run: path for run, path in where.items() if run not in lost}


def _play(
    pool: EnvPool, how: Mapping[str, Any], candidates: Sequence[Candidate], done: Done
) -> None:
    for candidate in candidates:
        done(candidate, played_returns(candidate, pool, **how))


def estimate(
    name: str, candidates: Sequence[Candidate], data: ReplayData, fqe: FQE, device: str, done: Done
) -> None:
    """Evaluates kept policies, as many in one stack as memory allows."""
    if name == "model":
        return _imagine(candidates, data, fqe, done)
    estimator = make_estimator(name, data, fqe, device)
    groups: dict[tuple[int, bool], list[tuple[Candidate, int, Decisions]]] = {}
    for candidate in candidates:
        try:
            loaded = load(candidate.kept)
            made = _decisions(loaded, data)
        except UserError as error:
            done(candidate, error)
            continue
        group = groups.setdefault((made.steps, made.length is not None), [])
        group.append((candidate, loaded.run.seed, made))
        if sum(m.action.nbytes for _, _, m in group) >= _MOST_BYTES:
            _estimate_group(name, estimator, group, done)
            group.clear()
    for group in filter(None, groups.values()):
        _estimate_group(name, estimator, group, done)


def _imagine(candidates: Sequence[Candidate], data: ReplayData, fqe: FQE, done: Done) -> None:
    """Evaluates kept policies one after another in a learned model; those with a memory, too."""
    model = fit_model(data, fqe)
    for candidate in candidates:
        try:
            loaded = load(candidate.kept)
        except UserError as error:
            done(candidate, error)
            continue
        policy = make_policy(loaded.method, loaded.pipeline, values="none")
        key = rng.fold(rng.key(loaded.run.seed), OPE)
        how: dict[str, Any] = {"gamma": fqe.gamma, "key": key, "steps": beyond(fqe.gamma)}
        found = imagined_returns(model, policy, loaded.state, data, **how)
        done(candidate, rows_of(candidate.run_id, "model", found.double().numpy()))


def _decisions(loaded: Loaded, data: ReplayData) -> Decisions:
    check_view(loaded.pipeline.view, "its policy")
    given = loaded.method, loaded.pipeline, loaded.spec, loaded.state, [loaded.run.seed]
    return decisions_of(*given, data)


def _estimate_group(
    name: str, estimator: Estimator, group: list[tuple[Candidate, int, Decisions]], done: Done
) -> None:
    candidates = [candidate for candidate, _, _ in group]
    try:
        found = estimator(stacked([m for _, _, m in group]), [seed for _, seed, _ in group])
    except UserError as error:
        for candidate in candidates:
            done(candidate, error)
        return
    for candidate, own, effective in zip(candidates, found.values, found.effective, strict=True):
        if np.isfinite(own).all():
            done(candidate, rows_of(candidate.run_id, name, own, effective))
        else:
            done(candidate, UserError(f"its estimate by {name} is not finite"))


def rows_of(
    run_id: str, estimator: str, own: np.ndarray, effective: float | None = None
) -> pd.DataFrame:
    """Rows of `offbench.results.estimates.ESTIMATE_SCHEMA`."""
    columns = {"run_id": run_id, "estimator": estimator, "episode": np.arange(len(own))}
    return pd.DataFrame(
        columns | {"value": own, "effective": np.nan if effective is None else effective}
    )


# --- the truth, where there is an environment ---------------------------------------------------


class DiscountedReturns:
    """Discounted raw returns of episodes, from the steps that an `EnvPool` tells it."""

    def __init__(self, gamma: float):
        self.gamma, self.found = gamma, dict[int, float]()

    def __call__(self, step: PlayedStep) -> None:
        before = self.found.get(step.episode, 0.0)
        self.found[step.episode] = before + self.gamma**step.t * float(step.reward)


def played_returns(
    candidate: Candidate, pool: EnvPool, *, episodes: int, gamma: float, n_envs: int = 5
) -> pd.DataFrame:
    """Discounted raw returns of episodes that a kept policy plays; `pool` is of `unlimited` episodes."""
    loaded = load(candidate.kept)
    policy = make_policy(loaded.method, loaded.pipeline, values="none")
    watch = pool.watch = DiscountedReturns(gamma)
    evaluate(
        policy,
        loaded.state,
        pool,
        seeds=[loaded.run.seed],
        episodes=episodes,
        stream="played",
        n_envs=n_envs,
    )
    found = np.array([watch.found[i] for i in range(episodes)])
    return rows_of(candidate.run_id, PLAYED, found)


def unlimited(task: Task, gamma: float) -> Task:
    """The task with a later time limit, as an estimated value knows none."""
    return longer(task, beyond(gamma))
