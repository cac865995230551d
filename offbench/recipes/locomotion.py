"""Locomotion sets of mixed quality: episodes of shipped policy snapshots and of random actions.

Every episode has a seed of its own, drawn from the recipe's; it seeds the reset and the action
noise, so an episode does not depend on those before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offbench.io import sha256_of
from offbench.recipes import Progress, unwatched
from offbench.recipes.policy import Policy, load_policy
from offbench.recipes.store import Collected, Episode, versions

if TYPE_CHECKING:
    import gymnasium as gym


ENVS = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5"}
_REFERENCE_EPISODES = 100
_REFERENCE_SEED = 20_000

Act = Callable[[NDArray[np.floating], np.random.Generator], NDArray[np.float32]]


def replay(
    *, name: str, rows: int, last: int, seed: int, root: Path, progress: Progress = unwatched
) -> Collected:
    """Equal shares of steps from every snapshot up to ``last``, in training order, actions sampled.

    Whole episodes are kept, so the set is longer than ``rows`` by less than an episode.
    """
    steps = [int(path.stem) for path in sorted(policy_folder(root, name).glob("[0-9]*.npz"))]
    steps = [step for step in steps if step <= last]
    how = (
        "Whole episodes, in training order, of the snapshots of one training run up to step "
        f"{last}; each snapshot gives about the same share of the steps, its actions sampled."
    )
    made = snapshots(name=name, rows=rows, steps=steps, seed=seed, root=root, progress=progress)
    return dataclasses.replace(made, how=how)


def snapshots(
    *,
    name: str,
    rows: int,
    steps: Sequence[int],
    seed: int,
    root: Path,
    progress: Progress = unwatched,
) -> Collected:
    """Equal shares of ``rows`` from the snapshots after ``steps`` training steps, one after the
    other, actions sampled.

    Whole episodes are kept, so the set is longer than ``rows`` by less than an episode.
    """
    folder = policy_folder(root, name)
    env = _make(ENVS[name])
    numbers = seeds(seed)
    episodes: list[Episode] = []
    policies = []
    done = 0
    for i, step in enumerate(steps):
        path = folder / f"{step:07d}.npz"
        policy, first, before = load_policy(path), len(episodes), done
        while done < rows * (i + 1) / len(steps):
            episodes.append(rollout(env, policy.act, next(numbers)))
            done += len(episodes[-1].rewards)
            progress(done, rows)
        policies.append(
            _source(path)
            | {"sampled": True, "episodes": len(episodes) - first, "rows": done - before}
        )
    return Collected(
        episodes=episodes,
        env=ENVS[name],
        max_episode_steps=_limit(env),
        terminal_inside=False,
        algorithm=f"snapshots of {'TRPO' if name == 'hopper' else 'SAC'}, sampled",
        how=(
            f"Whole episodes, actions sampled, of the snapshots after {' and '.join(map(str, steps))} "
            "training steps, in this order and in equal shares of the steps."
        ),
        seeds={"recipe": seed, "episodes": "first 31-bit words of SeedSequence(recipe), in order"},
        policies=policies,
        score=reference(name, root),
    )


def rare_expert(
    *,
    name: str,
    random: int,
    expert: int,
    seed: int,
    root: Path,
    progress: Progress = unwatched,
) -> Collected:
    """``random`` episodes of uniform actions and ``expert`` of the last snapshot, in seeded
    random order."""
    path = expert_path(root, name)
    policy = load_policy(path)
    env = _make(ENVS[name])
    numbers = seeds(seed)
    episodes: list[Episode] = []
    done, limit = 0, _limit(env)
    for act in [uniform(policy.act_dim)] * random + [policy.act] * expert:
        episodes.append(rollout(env, act, next(numbers)))
        done += len(episodes[-1].rewards)
        progress(done, limit * (random + expert))
    order = np.random.default_rng(seed).permutation(len(episodes))
    places = [int(i) for i in np.flatnonzero(order >= random)]
    expert_rows = sum(len(e.rewards) for e in episodes[random:])
    return Collected(
        episodes=[episodes[i] for i in order],
        env=ENVS[name],
        max_episode_steps=limit,
        terminal_inside=False,
        algorithm="uniform random actions and a trained expert, sampled",
        how=(
            f"{random} episodes of actions uniform in [-1, 1] and {expert} of the last snapshot "
            "with sampled actions, in an order shuffled by the recipe's seed."
        ),
        seeds={
            "recipe": seed,
            "episodes": "first 31-bit words of SeedSequence(recipe), before shuffling",
        },
        policies=[
            {"policy": "uniform", "episodes": random, "rows": done - expert_rows},
            _source(path)
            | {"sampled": True, "episodes": expert, "rows": expert_rows, "episode_ids": places},
        ],
        score=reference(name, root),
    )


def rollout(env: gym.Env, act: Act, seed: int) -> Episode:
    """One episode; observations are stored in float32, the policy sees them in full."""
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    observations, actions, rewards = [obs], [], []
    stop = cut = False
    while not (stop or cut):
        action = act(obs, rng)
        obs, reward, stop, cut, _ = env.step(action)
        observations.append(obs)
        actions.append(action)
        rewards.append(reward)
    ends = np.zeros((2, len(rewards)), np.bool_)
    ends[:, -1] = stop, cut
    return Episode(
        observations=np.asarray(observations, np.float32),
        actions=np.asarray(actions, np.float32),
        rewards=np.asarray(rewards, np.float32),
        terminations=ends[0],
        truncations=ends[1],
        seed=seed,
    )


def uniform(act_dim: int) -> Act:
    """Policy that ignores the observation and draws every action component from [-1, 1]."""
    return lambda obs, rng: rng.uniform(-1.0, 1.0, act_dim).astype(np.float32)


def seeds(seed: int | tuple[int, ...]) -> Iterator[int]:
    """Endless stream of episode seeds, a pure function of ``seed``."""
    sequence = np.random.SeedSequence(seed)
    while True:
        (child,) = sequence.spawn(1)
        yield int(child.generate_state(1)[0] >> 1)


def policy_folder(root: Path, name: str) -> Path:
    """Folder of the snapshots: under ``root``, else those of the checkout."""
    from offbench.recipes import DATASETS

    for base in (root, DATASETS):
        folder = base / "policies" / name
        if any(folder.glob("[0-9]*.npz")):
            return folder
    raise FileNotFoundError(
        f"no policy snapshots for {name!r} in {root / 'policies' / name}; "
        f"train them: python -m offbench.recipes.behaviour {name} --out {root / 'policies'}"
    )


def expert_path(root: Path, name: str) -> Path:
    """File of the last snapshot."""
    return max(policy_folder(root, name).glob("[0-9]*.npz"))


def reference(name: str, root: Path) -> dict[str, Any]:
    """Score scale of an environment: mean return of uniform actions (0) and of the
    deterministic expert (100).

    Measured once over 100 episodes each and kept in ``policies/<name>/reference.yaml``;
    measured anew when the expert or a version that decides the dynamics is another.
    """
    import yaml

    path = expert_path(root, name)
    found = versions()
    key = {
        "env": ENVS[name],
        "expert": sha256_of(path),
        "versions": {k: found[k] for k in ("numpy", "gymnasium", "mujoco")},
    }
    for folder in (root / "policies" / name, path.parent):
        if (folder / "reference.yaml").exists():
            kept = yaml.safe_load((folder / "reference.yaml").read_text(encoding="utf-8"))
            if all(kept.get(k) == v for k, v in key.items()):
                return kept["score"]
    score = _measure(ENVS[name], load_policy(path))
    kept = root / "policies" / name / "reference.yaml"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(yaml.safe_dump(key | {"score": score}, sort_keys=False), encoding="utf-8")
    return score


def uniform_return(env_id: str) -> tuple[float, float]:
    """Mean return of uniform actions over 100 episodes, and its standard error: the 0 of a score."""
    env: Any = _make(env_id)
    return _mean_return(env, uniform(env.action_space.shape[0]))


def _mean_return(env: gym.Env, act: Any) -> tuple[float, float]:
    returns = [
        float(np.sum(rollout(env, act, _REFERENCE_SEED + i).rewards, dtype=np.float64))
        for i in range(_REFERENCE_EPISODES)
    ]
    error = np.std(returns, ddof=1) / np.sqrt(len(returns))
    return round(float(np.mean(returns)), 4), round(float(error), 4)


def _measure(env_id: str, expert: Policy) -> dict[str, Any]:
    score: dict[str, Any] = {"kind": "return"}
    score["ref_min"], score["ref_min_standard_error"] = uniform_return(env_id)
    score["ref_max"], score["ref_max_standard_error"] = _mean_return(
        _make(env_id), lambda obs, rng: expert.act(obs)
    )
    return score | {
        "episodes": _REFERENCE_EPISODES,
        "first_seed": _REFERENCE_SEED,
        "ref_min_policy": "uniform",
        "ref_max_policy": "last snapshot, deterministic",
    }


def _make(env_id: str) -> gym.Env:
    import gymnasium as gym

    return gym.make(env_id)


def _limit(env: gym.Env) -> int:
    assert env.spec is not None and env.spec.max_episode_steps is not None
    return env.spec.max_episode_steps


def _source(path: Path) -> dict[str, Any]:
    return {"policy": f"{path.parent.name}/{path.name}", "sha256": sha256_of(path)}
