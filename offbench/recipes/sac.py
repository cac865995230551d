"""Soft actor-critic in JAX: environment steps in Python, updates in bursts of one compiled scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import gymnasium as gym

Net = list[dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """Hyperparameters."""

    # units of each of two layers
    hidden: int = 128
    batch: int = 256
    # steps with uniform actions, before the first update
    warmup: int = 5_000
    # environment steps between updates, and updates then
    burst: int = 50
    gamma: float = 0.99
    # of Adam
    rate: float = 1e-3
    # of the target critics' moving average
    tau: float = 0.005


def train(
    env: gym.Env,
    settings: Settings,
    *,
    seed: int,
    marks: list[int],
    save: Callable[[int, Net], None],
) -> None:
    """Train on an environment and hand over the actor at each mark.

    Args:
        env: with actions in [-1, 1].
        settings: hyperparameters.
        seed: of the environment, the weights and the noise.
        marks: environment steps, increasing; training ends at the last.
        save: called with a mark and the actor's layers.
    """
    spaces: tuple[Any, Any] = env.observation_space, env.action_space
    obs_dim, act_dim = (space.shape[0] for space in spaces)
    rng = np.random.default_rng(seed)
    state = _initial(rng, obs_dim, act_dim, settings.hidden)
    burst = jax.jit(lambda state, data: jax.lax.scan(partial(_update, settings), state, data)[0])
    act = jax.jit(lambda actor, obs, noise: _sample(actor, obs, noise)[0])
    total, left = marks[-1], list(marks)
    store = {
        "obs": np.zeros((total, obs_dim), np.float32),
        "act": np.zeros((total, act_dim), np.float32),
        "rew": np.zeros(total, np.float32),
        "nxt": np.zeros((total, obs_dim), np.float32),
        "stop": np.zeros(total, np.float32),
    }
    obs, _ = env.reset(seed=seed)
    for step in range(total + 1):
        if left and step >= left[0]:
            save(left.pop(0), state["actor"])
        if step == total:
            break
        if step < settings.warmup:
            action = rng.uniform(-1.0, 1.0, act_dim).astype(np.float32)
        else:
            noise = rng.standard_normal((1, act_dim)).astype(np.float32)
            action = np.asarray(act(state["actor"], obs[None].astype(np.float32), noise))[0]
        nxt, rew, stop, cut, _ = env.step(action)
        for name, value in zip(store, (obs, action, rew, nxt, float(stop)), strict=True):
            store[name][step] = value
        obs = env.reset()[0] if stop or cut else nxt
        if step >= settings.warmup and (step + 1) % settings.burst == 0:
            size = (settings.burst, settings.batch)
            rows = rng.integers(0, step + 1, size)
            noises = rng.standard_normal((2, *size, act_dim)).astype(np.float32)
            state = burst(state, (*(store[n][rows] for n in store), *noises))


def _initial(rng: np.random.Generator, obs_dim: int, act_dim: int, hidden: int) -> dict[str, Any]:
    """Actor, two critics, temperature, and the state of their optimisers."""

    def fresh(params: Any) -> tuple[Any, Any, Any]:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros, jnp.zeros(())

    actor = _layers(rng, (obs_dim, hidden, hidden, 2 * act_dim))
    critic = _layers(rng, (obs_dim + act_dim, hidden, hidden, 1), copies=2)
    log_alpha = jnp.zeros(())
    return {
        "actor": actor,
        "critic": critic,
        "target": critic,
        "log_alpha": log_alpha,
        "actor_opt": fresh(actor),
        "critic_opt": fresh(critic),
        "alpha_opt": fresh(log_alpha),
    }


def _layers(rng: np.random.Generator, sizes: tuple[int, ...], copies: int | None = None) -> Net:
    lead = () if copies is None else (copies,)
    net = []
    for fan_in, fan_out in pairwise(sizes):
        bound = 1.0 / np.sqrt(fan_in)
        weight = rng.uniform(-bound, bound, (*lead, fan_in, fan_out)).astype(np.float32)
        net.append({"w": jnp.asarray(weight), "b": jnp.zeros((*lead, 1, fan_out), jnp.float32)})
    return net


def _mlp(net: Net, x: Any) -> Any:
    for layer in net[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ net[-1]["w"] + net[-1]["b"]


def _sample(actor: Net, obs: Any, noise: Any) -> tuple[Any, Any]:
    """Actions (..., A) for standard normal `noise`, and their log-probabilities (...)."""
    mean, log_std = jnp.split(_mlp(actor, obs), 2, axis=-1)
    log_std = jnp.clip(log_std, -20.0, 2.0)
    raw = mean + jnp.exp(log_std) * noise
    gauss = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    # log(1 - tanh(u)^2) in the form that does not underflow
    squash = 2.0 * (jnp.log(2.0) - raw - jax.nn.softplus(-2.0 * raw))
    return jnp.tanh(raw), jnp.sum(gauss - squash, axis=-1)


def _q_values(critic: Net, obs: Any, act: Any) -> Any:
    """(2, ...) of both critics."""
    return _mlp(critic, jnp.concatenate([obs, act], axis=-1))[..., 0]


def _adam(
    params: Any, grads: Any, state: tuple[Any, Any, Any], rate: float
) -> tuple[Any, tuple[Any, Any, Any]]:
    first, second, count = state
    count = count + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
    fix1, fix2 = 1.0 - 0.9**count, 1.0 - 0.999**count

    def move(p: Any, m: Any, v: Any) -> Any:
        return p - rate * (m / fix1) / (jnp.sqrt(v / fix2) + 1e-8)

    return jax.tree.map(move, params, first, second), (first, second, count)


def _update(
    settings: Settings, state: dict[str, Any], batch: tuple[Any, ...]
) -> tuple[dict[str, Any], None]:
    obs, act, rew, nxt, stop, eps_next, eps_now = batch
    adam = partial(_adam, rate=settings.rate)
    alpha = jnp.exp(state["log_alpha"])
    next_act, next_logp = _sample(state["actor"], nxt, eps_next)
    next_q = _q_values(state["target"], nxt, next_act).min(axis=0) - alpha * next_logp
    goal = rew + settings.gamma * (1.0 - stop) * next_q

    def critic_loss(critic: Any) -> Any:
        return jnp.mean((_q_values(critic, obs, act) - goal) ** 2, axis=-1).sum()

    critic, critic_opt = adam(
        state["critic"], jax.grad(critic_loss)(state["critic"]), state["critic_opt"]
    )

    def actor_loss(actor: Any) -> tuple[Any, Any]:
        new_act, logp = _sample(actor, obs, eps_now)
        return jnp.mean(alpha * logp - _q_values(critic, obs, new_act).min(axis=0)), logp.mean()

    grads, logp = jax.grad(actor_loss, has_aux=True)(state["actor"])
    actor, actor_opt = adam(state["actor"], grads, state["actor_opt"])
    # the target entropy is minus the number of action dimensions
    log_alpha, alpha_opt = adam(state["log_alpha"], -(logp - act.shape[-1]), state["alpha_opt"])
    tau = settings.tau
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
