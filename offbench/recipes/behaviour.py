"""Training of the behaviour policies whose snapshots the locomotion recipes collect with.

    python -m offbench.recipes.behaviour hopper --out datasets/policies
    python -m offbench.recipes.behaviour halfcheetah --out datasets/policies

Hopper is learnt by TRPO (``sb3-contrib``), HalfCheetah by a soft actor-critic of our own in
JAX: on one core each is the quickest of what was tried. Both libraries are needed here and
nowhere else; the snapshots that ship are plain arrays.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from offbench.io import sha256_of, versions
from offbench.recipes.policy import Policy, load_policy, save_policy

ENVS = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5"}
SNAPSHOTS = {
    "hopper": (0, 10, 20, 30, 40, 50, 60, 70, 80, 100, 200, 300),
    "halfcheetah": (0, 10, 14, 18, 20, 22, 24, 60, 120),
}
"""Thousands of environment steps after which a snapshot is written; the last is the expert."""

_PACKAGES = ("numpy", "gymnasium", "mujoco", "torch", "stable-baselines3", "sb3-contrib", "jax")
_EVAL_SEED = 10_000
_EVAL_EPISODES = 10


def train_hopper(out: Path, *, seed: int = 0, snapshots: tuple[int, ...] | None = None) -> None:
    """TRPO on two copies of Hopper-v5 with running normalisation of observations and rewards."""
    import torch
    from sb3_contrib import TRPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    marks = [1000 * k for k in (snapshots or SNAPSHOTS["hopper"])]
    venv = VecNormalize(make_vec_env(ENVS["hopper"], n_envs=2, seed=seed), gamma=0.99)
    model = TRPO(
        "MlpPolicy",
        venv,
        n_steps=1024,
        batch_size=128,
        cg_max_steps=25,
        cg_damping=0.1,
        n_critic_updates=20,
        learning_rate=1e-3,
        gae_lambda=0.95,
        gamma=0.99,
        seed=seed,
        device="cpu",
    )

    class Keep(BaseCallback):
        """Write a snapshot at the first update boundary at or past each mark."""

        def __init__(self) -> None:
            super().__init__()
            self.left = list(marks)

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            self.keep()

        def keep(self) -> None:
            while self.left and self.num_timesteps >= self.left[0]:
                save_trpo(out / f"{self.left.pop(0):07d}.npz", model.policy, venv.obs_rms)

    keep = Keep()
    model.learn(total_timesteps=marks[-1], callback=keep)
    keep.num_timesteps = model.num_timesteps
    keep.keep()


def save_trpo(path: Path, policy: Any, obs_rms: Any) -> None:
    """Write a Stable-Baselines3 actor and the statistics of its observations."""
    layers = [m for m in policy.mlp_extractor.policy_net if hasattr(m, "weight")]
    arrays: dict[str, np.ndarray] = {
        "obs_mean": obs_rms.mean,
        "obs_scale": np.sqrt(obs_rms.var + 1e-8),
        "obs_clip": np.asarray(10.0),
        "log_std": policy.log_std.detach().numpy(),
    }
    for i, layer in enumerate([*layers, policy.action_net]):
        arrays[f"w{i}"] = layer.weight.detach().numpy().T
        arrays[f"b{i}"] = layer.bias.detach().numpy()
    save_policy(path, arrays, activation="tanh", squash=False)


def train_halfcheetah(
    out: Path, *, seed: int = 0, snapshots: tuple[int, ...] | None = None, **settings: Any
) -> None:
    """Soft actor-critic on HalfCheetah-v5.

    Args:
        out: folder of the snapshots.
        seed: of the environment, the weights and the noise.
        snapshots: thousands of environment steps, None: those that are published.
        settings: hyperparameters other than `offbench.recipes.sac.Settings` has them.
    """
    import gymnasium as gym

    from offbench.recipes import sac

    marks = [1000 * k for k in (snapshots or SNAPSHOTS["halfcheetah"])]
    save = lambda step, actor: save_sac(out / f"{step:07d}.npz", actor)
    env = gym.make(ENVS["halfcheetah"])
    sac.train(env, sac.Settings(**settings), seed=seed, marks=marks, save=save)


def save_sac(path: Path, actor: list[dict[str, Any]]) -> None:
    """Write a soft actor-critic's actor; its observations are not normalised."""
    obs_dim = actor[0]["w"].shape[0]
    arrays: dict[str, np.ndarray] = {
        "obs_mean": np.zeros(obs_dim),
        "obs_scale": np.ones(obs_dim),
        "obs_clip": np.asarray(np.inf),
    }
    for i, layer in enumerate(actor):
        arrays[f"w{i}"] = np.asarray(layer["w"])
        arrays[f"b{i}"] = np.asarray(layer["b"])[0]
    save_policy(path, arrays, activation="relu", squash=True)


def evaluate(policy: Policy, env_id: str, *, stochastic: bool) -> list[float]:
    """Returns of the evaluation episodes, one reset seed each."""
    import gymnasium as gym

    env = gym.make(env_id)
    returns = []
    for seed in range(_EVAL_SEED, _EVAL_SEED + _EVAL_EPISODES):
        rng = np.random.default_rng(seed) if stochastic else None
        obs, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            obs, reward, stop, cut, _ = env.step(policy.act(obs, rng))
            total += float(reward)
            done = stop or cut
        returns.append(total)
    env.close()
    return returns


def measure(folder: Path, env_id: str) -> list[dict[str, Any]]:
    """Deterministic and stochastic mean returns of every snapshot in ``folder``."""
    rows = []
    for path in sorted(folder.glob("[0-9]*.npz")):
        policy = load_policy(path)
        row: dict[str, Any] = {"step": int(path.stem), "sha256": sha256_of(path)}
        for name, stochastic in (("deterministic", False), ("stochastic", True)):
            returns = evaluate(policy, env_id, stochastic=stochastic)
            row[name] = round(float(np.mean(returns)), 1)
            row[f"{name}_std"] = round(float(np.std(returns)), 1)
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Train one environment's policies, measure them, and write ``training.yaml`` beside them."""
    import yaml

    trainers: dict[str, Callable[..., None]] = {
        "hopper": train_hopper,
        "halfcheetah": train_halfcheetah,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", choices=sorted(ENVS))
    parser.add_argument("--out", type=Path, default=Path("datasets/policies"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="only measure what is there")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    folder = args.out / args.env
    record = folder / "training.yaml"
    if args.measure:
        report = yaml.safe_load(record.read_text(encoding="utf-8"))
    else:
        start = time.perf_counter()
        trainers[args.env](folder, seed=args.seed)
        report = {
            "env": ENVS[args.env],
            "algorithm": "trpo" if args.env == "hopper" else "sac",
            "function": f"offbench.recipes.behaviour:{trainers[args.env].__name__}",
            "seed": args.seed,
            "wall_seconds": round(time.perf_counter() - start, 1),
            "versions": versions(_PACKAGES),
        }
        record.write_text(yaml.safe_dump(report, sort_keys=False), encoding="utf-8")
    report["evaluation"] = {"episodes": _EVAL_EPISODES, "first_seed": _EVAL_SEED}
    report["snapshots"] = measure(folder, ENVS[args.env])
    record.write_text(yaml.safe_dump(report, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
