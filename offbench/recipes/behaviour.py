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
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from offbench.recipes.policy import Policy, load_policy, policy_digest, save_policy

__all__ = ["ENVS", "SNAPSHOTS", "evaluate", "main", "train_halfcheetah", "train_hopper"]

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
    out: Path,
    *,
    seed: int = 0,
    snapshots: tuple[int, ...] | None = None,
    hidden: int = 128,
    batch: int = 256,
    warmup: int = 5_000,
    burst: int = 50,
    gamma: float = 0.99,
    rate: float = 1e-3,
    tau: float = 0.005,
) -> None:
    """Soft actor-critic: ``burst`` environment steps in Python, then as many updates in one
    compiled scan."""
    import gymnasium as gym
    import jax
    import jax.numpy as jnp

    marks = [1000 * k for k in (snapshots or SNAPSHOTS["halfcheetah"])]
    env = gym.make(ENVS["halfcheetah"])
    obs_dim, act_dim = env.observation_space.shape[0], env.action_space.shape[0]
    rng = np.random.default_rng(seed)

    def layers(sizes: tuple[int, ...], copies: int | None = None) -> list[dict[str, Any]]:
        lead = () if copies is None else (copies,)
        made = []
        for fan_in, fan_out in pairwise(sizes):
            bound = 1.0 / np.sqrt(fan_in)
            weight = rng.uniform(-bound, bound, (*lead, fan_in, fan_out)).astype(np.float32)
            made.append(
                {"w": jnp.asarray(weight), "b": jnp.zeros((*lead, 1, fan_out), jnp.float32)}
            )
        return made

    def mlp(net: list[dict[str, Any]], x: Any) -> Any:
        for layer in net[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ net[-1]["w"] + net[-1]["b"]

    def sample(actor: list[dict[str, Any]], obs: Any, noise: Any) -> tuple[Any, Any]:
        mean, log_std = jnp.split(mlp(actor, obs), 2, axis=-1)
        log_std = jnp.clip(log_std, -20.0, 2.0)
        raw = mean + jnp.exp(log_std) * noise
        gauss = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
        # log(1 - tanh(u)^2) in the form that does not underflow
        squash = 2.0 * (jnp.log(2.0) - raw - jax.nn.softplus(-2.0 * raw))
        return jnp.tanh(raw), jnp.sum(gauss - squash, axis=-1)

    def q_values(critic: list[dict[str, Any]], obs: Any, act: Any) -> Any:
        return mlp(critic, jnp.concatenate([obs, act], axis=-1))[..., 0]

    def adam(
        params: Any, grads: Any, state: tuple[Any, Any, Any]
    ) -> tuple[Any, tuple[Any, Any, Any]]:
        first, second, count = state
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
        fix1, fix2 = 1.0 - 0.9**count, 1.0 - 0.999**count
        new = jax.tree.map(
            lambda p, m, v: p - rate * (m / fix1) / (jnp.sqrt(v / fix2) + 1e-8),
            params,
            first,
            second,
        )
        return new, (first, second, count)

    def update(state: dict[str, Any], batch_: tuple[Any, ...]) -> tuple[dict[str, Any], None]:
        obs, act, rew, nxt, stop, eps_next, eps_now = batch_
        alpha = jnp.exp(state["log_alpha"])
        next_act, next_logp = sample(state["actor"], nxt, eps_next)
        next_q = q_values(state["target"], nxt, next_act).min(axis=0) - alpha * next_logp
        goal = rew + gamma * (1.0 - stop) * next_q

        def critic_loss(critic: Any) -> Any:
            return jnp.mean((q_values(critic, obs, act) - goal) ** 2, axis=-1).sum()

        critic, critic_opt = adam(
            state["critic"], jax.grad(critic_loss)(state["critic"]), state["critic_opt"]
        )

        def actor_loss(actor: Any) -> tuple[Any, Any]:
            new_act, logp = sample(actor, obs, eps_now)
            return jnp.mean(alpha * logp - q_values(critic, obs, new_act).min(axis=0)), logp.mean()

        grads, logp = jax.grad(actor_loss, has_aux=True)(state["actor"])
        actor, actor_opt = adam(state["actor"], grads, state["actor_opt"])
        # The target entropy is minus the number of action dimensions.
        log_alpha, alpha_opt = adam(state["log_alpha"], -(logp - act_dim), state["alpha_opt"])
        target = jax.tree.map(lambda t, c: t + tau * (c - t), state["target"], critic)
        return {
            "actor": actor,
            "critic": critic,
            "target": target,
            "log_alpha": log_alpha,
            "actor_opt": actor_opt,
            "critic_opt": critic_opt,
            "alpha_opt": alpha_opt,
        }, None

    run_burst = jax.jit(lambda state, data: jax.lax.scan(update, state, data)[0])
    act_once = jax.jit(lambda actor, obs, noise: sample(actor, obs, noise)[0])

    def fresh(params: Any) -> tuple[Any, Any, Any]:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros, jnp.zeros(())

    actor = layers((obs_dim, hidden, hidden, 2 * act_dim))
    critic = layers((obs_dim + act_dim, hidden, hidden, 1), copies=2)
    log_alpha = jnp.zeros(())
    state: dict[str, Any] = {
        "actor": actor,
        "critic": critic,
        "target": critic,
        "log_alpha": log_alpha,
        "actor_opt": fresh(actor),
        "critic_opt": fresh(critic),
        "alpha_opt": fresh(log_alpha),
    }

    total = marks[-1]
    store = {
        "obs": np.zeros((total, obs_dim), np.float32),
        "act": np.zeros((total, act_dim), np.float32),
        "rew": np.zeros(total, np.float32),
        "nxt": np.zeros((total, obs_dim), np.float32),
        "stop": np.zeros(total, np.float32),
    }
    obs, _ = env.reset(seed=seed)
    for step in range(total + 1):
        if marks and step >= marks[0]:
            save_sac(out / f"{marks.pop(0):07d}.npz", state["actor"])
        if step == total:
            break
        if step < warmup:
            action = rng.uniform(-1.0, 1.0, act_dim).astype(np.float32)
        else:
            noise = rng.standard_normal((1, act_dim)).astype(np.float32)
            action = np.asarray(act_once(state["actor"], obs[None].astype(np.float32), noise))[0]
        nxt, rew, stop, cut, _ = env.step(action)
        for name, value in zip(store, (obs, action, rew, nxt, float(stop)), strict=True):
            store[name][step] = value
        obs = env.reset()[0] if stop or cut else nxt
        if step >= warmup and (step + 1) % burst == 0:
            rows = rng.integers(0, step + 1, (burst, batch))
            noises = rng.standard_normal((2, burst, batch, act_dim)).astype(np.float32)
            state = run_burst(state, (*(store[n][rows] for n in store), *noises))


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
    for path in sorted(folder.glob("*.npz")):
        policy = load_policy(path)
        row: dict[str, Any] = {"step": int(path.stem), "sha256": policy_digest(path)}
        for name, stochastic in (("deterministic", False), ("stochastic", True)):
            returns = evaluate(policy, env_id, stochastic=stochastic)
            row[name] = round(float(np.mean(returns)), 1)
            row[f"{name}_std"] = round(float(np.std(returns)), 1)
        rows.append(row)
    return rows


def versions() -> dict[str, str]:
    """Versions of what took part, those not installed left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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
            "versions": versions(),
        }
        record.write_text(yaml.safe_dump(report, sort_keys=False), encoding="utf-8")
    report["evaluation"] = {"episodes": _EVAL_EPISODES, "first_seed": _EVAL_SEED}
    report["snapshots"] = measure(folder, ENVS[args.env])
    record.write_text(yaml.safe_dump(report, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
