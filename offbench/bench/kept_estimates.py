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
    Estimators,
    check_rewards,
    check_view,
    decisions_of,
)
from offbench.bench.played import beyond, longer
from offbench.bench.policy import Loaded, load
from offbench.data.replay import ReplayData, end_rows, first_rows
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


# of an estimator and a candidate its rows, or why there are none
Done = Callable[[str, Candidate, "pd.DataFrame | UserError"], None]
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
        # estimates of before, which weighed what was recorded after a terminal, are made again
        if (end_rows(data) < data.last[first_rows(data)]).any():
            settings["episodes"] = "to the first terminal"
        # estimators that lack the same policies share what they need
        together: dict[Any, list[str]] = {}
        for name in dict.fromkeys(by):
            lacks = tuple(c.run_id for c in self._missing(name, candidates, settings))
            together.setdefault(name if name == "model" else lacks, []).append(name)
        of_name: dict[str, dict[str, Path]] = {}
        for names in together.values():
            make = partial(estimate, names, data, self.fqe, self.device)
            of_name |= self._made(names, candidates, settings, make)
        found = [path for name in dict.fromkeys(by) for path in of_name[name].values()]
        if play is not None and self.task.env:
            pool = EnvPool(unlimited(self.task, self.fqe.gamma))
            how = {"episodes": play, "gamma": self.fqe.gamma}
            some = [c for c in candidates if any(c.run_id in made for made in of_name.values())]
            found += self._made([PLAYED], some, how, partial(_play, pool, how))[PLAYED].values()
            pool.close()
        return found

    def _missing(
        self, name: str, candidates: Sequence[Candidate], settings: Mapping[str, Any]
    ) -> list[Candidate]:
        """The candidates without rows by an estimator."""
        path = lambda c: path_of(self.root, c.mark, name)
        return [c for c in candidates if not is_estimated(path(c), c.kept, settings)]

    def _made(
        self,
        names: Sequence[str],
        candidates: Sequence[Candidate],
        settings: Mapping[str, Any],
        make: Estimate,
    ) -> dict[str, dict[str, Path]]:
        """Estimator -> run id -> its file, of estimators that lack the same policies."""
        where = {(n, c.run_id): path_of(self.root, c.mark, n) for n in names for c in candidates}
        missing = self._missing(names[0], candidates, settings)
        words, said = f"{', '.join(names)} on {self.task.id}", set[str]()
        total = left = len(names) * len(missing)

        def done(name: str, candidate: Candidate, rows: "pd.DataFrame | UserError") -> None:
            nonlocal left
            left -= 1
            self.report(f"{words}: {left} of {total} estimates left")
            at = name, candidate.run_id
            if not isinstance(rows, UserError):
                write_estimates(where[at], rows, candidate.kept, settings)
                return
            del where[at]
            text = f"{candidate.name} on {self.task.id}: {rows}"
            if text not in said:
                self.say(text)
                said.add(text)

        if missing:
            self.report(f"{words}: {len(missing)} policies")
            make(missing, done)
        return {
            name: {run: path for (n, run), path in where.items() if n == name} for name in names
        }


def _play(
    pool: EnvPool, how: Mapping[str, Any], candidates: Sequence[Candidate], done: Done
) -> None:
    for candidate in candidates:
        done(PLAYED, candidate, played_returns(candidate, pool, **how))


def estimate(
    names: Sequence[str],
    data: ReplayData,
    fqe: FQE,
    device: str,
    candidates: Sequence[Candidate],
    done: Done,
) -> None:
    """Evaluates kept policies by some estimators, as many in one stack as memory allows."""
    if "model" in names:
        return _imagine(candidates, data, fqe, done)
    estimators = Estimators(data, fqe, device)
    groups: dict[tuple[int, bool], list[tuple[Candidate, int, Decisions]]] = {}
    for candidate in candidates:
        try:
            loaded = load(candidate.kept)
            made = _decisions(loaded, data)
        except UserError as error:
            for name in names:
                done(name, candidate, error)
            continue
        group = groups.setdefault((made.steps, made.length is not None), [])
        group.append((candidate, loaded.run.seed, made))
        if sum(m.action.nbytes for _, _, m in group) >= _MOST_BYTES:
            _estimate_group(names, estimators, group, done)
            group.clear()
    for group in filter(None, groups.values()):
        _estimate_group(names, estimators, group, done)


def _imagine(candidates: Sequence[Candidate], data: ReplayData, fqe: FQE, done: Done) -> None:
    """Evaluates kept policies one after another in a learned model; those with a memory, too."""
    model = fit_model(data, fqe)
    for candidate in candidates:
        try:
            loaded = load(candidate.kept)
        except UserError as error:
            done("model", candidate, error)
            continue
        policy = make_policy(loaded.method, loaded.pipeline, values="none")
        key = rng.fold(rng.key(loaded.run.seed), OPE)
        how: dict[str, Any] = {"gamma": fqe.gamma, "key": key, "steps": beyond(fqe.gamma)}
        found = imagined_returns(model, policy, loaded.state, data, **how)
        done("model", candidate, rows_of(candidate.run_id, "model", found.double().numpy()))


def _decisions(loaded: Loaded, data: ReplayData) -> Decisions:
    check_view(loaded.pipeline.view, "its policy")
    given = loaded.method, loaded.pipeline, loaded.spec, loaded.state, [loaded.run.seed]
    return decisions_of(*given, data)


def _estimate_group(
    names: Sequence[str],
    estimators: Estimators,
    group: list[tuple[Candidate, int, Decisions]],
    done: Done,
) -> None:
    candidates = [candidate for candidate, _, _ in group]
    decisions, seeds = stacked([m for _, _, m in group]), [seed for _, seed, _ in group]
    for name, found in estimators.of(names, decisions, seeds).items():
        if isinstance(found, UserError):
            for candidate in candidates:
                done(name, candidate, found)
            continue
        for candidate, x, effective in zip(candidates, found.values, found.effective, strict=True):
            if np.isfinite(x).all():
                done(name, candidate, rows_of(candidate.run_id, name, x, effective))
            else:
                done(name, candidate, UserError(f"its estimate by {name} is not finite"))


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
    how: dict[str, Any] = {"episodes": episodes, "stream": "played", "n_envs": n_envs}
    evaluate(policy, loaded.state, pool, seeds=[loaded.run.seed], **how)
    found = np.array([watch.found[i] for i in range(episodes)])
    return rows_of(candidate.run_id, PLAYED, found)


def unlimited(task: Task, gamma: float) -> Task:
    """The task with a later time limit, as an estimated value knows none."""
    return longer(task, beyond(gamma))
