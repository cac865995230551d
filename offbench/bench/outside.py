"""Evaluates a policy that was trained elsewhere on the test episodes of a task, and records it.

Episodes, protocol and leaderboard are those of every other entry. Its training is unknown, and recorded as
such: method `outside`, tuning "trained outside offbench".
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from offbench.bench import provenance
from offbench.bench.suites import protocol_of
from offbench.errors import UserError, expect
from offbench.results.spec import OUTSIDE, Provenance, RunSpec
from offbench.results.store import Store
from offbench.rollout import EnvPool, evaluate
from offbench.tasks.locate import load_task
from offbench.tasks.task import Task
from offbench.types import Policy, TimeStep

if TYPE_CHECKING:
    import gymnasium
    import pandas as pd

Act = Callable[[np.ndarray], Any]  # (E, O) float32 -> (E, A)
REMARK = "trained outside offbench: its data, budget and tuning are not known here"


def evaluate_policy(
    act: Act | Mapping[int, Act],
    task: Task | str,
    *,
    entry: str,
    version: str,
    episodes: int | None = None,
    suite: str | None = None,
    results: str = "results",
    actions: Literal["env", "unit"] = "env",
) -> "pd.DataFrame":
    """The rows of `act` on the test episodes of `task`, one per (seed, episode), recorded in `results`.

    `act` maps the raw observations of E environments, (E, O) float32, to (E, A) actions in the
    environment's own units; with `actions="unit"` in [-1, 1] of its bounds. Actions beyond them are clipped.
    A policy with a memory has `reset(first)`, called before `act` where episodes begin: (E,) bool of the rows
    that do. One callable is one training seed; several are a mapping {seed: act}, of which `seeds` picks.

    `episodes` and the suite are by default those of the task where no suite is named, as on the command
    line. A run is known by entry, `version`, actions, task, environment, protocol and seed, never by the code
    of `act`: `version` is the caller's word for which policy it is (a checkpoint's hash, a date). Raises
    UserError where that is recorded already, where `entry` is on record with another version, and for
    actions of another shape or not finite.
    """
    for name, value in (("entry", entry), ("version", version)):
        expect(name, value, str, "text")
        if not value:
            raise UserError(f"{name} is empty")
    task = load_task(task) if isinstance(task, str) else task
    acts = _by_seed(act)
    if actions not in ("env", "unit"):
        raise UserError(f"actions={actions!r} must be 'env' or 'unit'")
    home, protocol = protocol_of(task, suite, episodes)
    known = {"entry": entry, "version": version, "actions": actions}
    runs = [_spec(task, home, protocol, known, seed) for seed in acts]
    store = Store(results)
    _refuse_known(runs, store, entry)
    store.check_writable()
    pool, start = EnvPool(task), time.perf_counter()
    try:
        rows = evaluate(
            _policy(list(acts.values()), pool.take(1)[0], entry, in_unit=actions == "unit"),
            torch.zeros(len(acts), 1),
            pool,
            seeds=list(acts),
            episodes=protocol["episodes"],
            n_envs=protocol["envs"],
        )
    finally:
        pool.close()
    facts = _provenance(entry, len(acts), time.perf_counter() - start)
    for i, run in enumerate(runs):
        store.append(run, rows[rows["member"] == i].drop(columns="member"), facts, remark=REMARK)
    return rows.drop(columns="member")


def _spec(task: Task, home: Mapping, protocol: Mapping, known: Mapping, seed: int) -> RunSpec:
    return RunSpec(
        suite=home["id"],
        suite_version=home["version"],
        task=task.id,
        dataset=task.dataset,
        dataset_sha256=task.sha256,
        env=task.environment,
        method=OUTSIDE,
        hparams=known,
        pipeline={},
        n_updates=0,
        seed=seed,
        protocol=protocol,
    )


def _by_seed(act: Act | Mapping[int, Act]) -> dict[int, Act]:
    """Seed -> its policy. One policy under several seeds would be one result counted often."""
    acts = dict(act) if isinstance(act, Mapping) else {0: act}
    if not acts or len({id(f) for f in acts.values()}) < len(acts):
        raise UserError(
            f"seeds {list(acts)} have {len({id(f) for f in acts.values()})} policies: one for each is needed"
        )
    if wrong := [f for f in acts.values() if not callable(f)]:
        raise UserError(f"act: {type(wrong[0]).__name__} is not callable")
    return acts


def _refuse_known(runs: Sequence[RunSpec], store: Store, entry: str) -> None:
    lines = store.runs(suite=runs[0].suite, task=runs[0].task)
    recorded = lines[lines["entry"] == entry]
    for run in runs:
        if run.run_id in set(recorded["run_id"]):
            raise UserError(
                f"{entry} version {run.hparams['version']} is recorded on {run.task} seed {run.seed} (run {run.run_id}); "
                "another policy needs another version= and entry="
            )
    for line in recorded[~recorded["config_id"].isin({run.config_id for run in runs})].itertuples():
        raise UserError(
            f"{entry} is on record on {line.task} as another policy or under another protocol (run {line.run_id}); "
            "a board holds one of each entry: use another entry="
        )


def _policy(acts: Sequence[Act], env: "gymnasium.Env", entry: str, *, in_unit: bool) -> Policy:
    from gymnasium.wrappers import RescaleAction

    space: Any = env.action_space
    size = space.shape[0]
    if isinstance(env, RescaleAction) and not in_unit:
        # the environment's own, which is scaled to [-1, 1]
        space = env.env.action_space
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)

    def act(state: Any, step: TimeStep, memory: Any, key: Tensor) -> tuple[Tensor, Any]:
        obs, first = step.obs.numpy(), step.first.numpy()
        raw = np.stack([_acted(f, obs[i], first[i], size, entry) for i, f in enumerate(acts)])
        action = torch.from_numpy(2 * (raw - low) / (high - low) - 1)
        return action.float().clamp(-1, 1), memory

    return Policy(lambda n_seeds, n_envs: (), act)


def _acted(act: Act, obs: np.ndarray, first: np.ndarray, size: int, entry: str) -> np.ndarray:
    if first.any() and hasattr(act, "reset"):
        act.reset(first.copy())
    action = act(obs.copy())
    action = action.detach().cpu().numpy() if isinstance(action, Tensor) else np.asarray(action)
    if action.shape != (len(obs), size):
        raise UserError(
            f"{entry}: act returned {action.shape} for obs {obs.shape}: return {(len(obs), size)}"
        )
    if not np.isfinite(action).all():
        raise UserError(f"{entry}: act returned actions that are not finite")
    return action.astype(np.float64)


def _provenance(entry: str, pack: int, wall_s: float) -> Provenance:
    return Provenance(
        **provenance.made_here("cpu"),
        entry=entry,
        backend="outside, acts only",
        precision="float32",
        pack=pack,
        wall_s=round(wall_s, 3),
        train_s=0.0,
        tuning={"how": OUTSIDE, "tried": None, "source": "trained outside offbench"},
    )
