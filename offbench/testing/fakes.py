"""Fake data, batches and specs: what a method is tested on without a dataset or an environment."""

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from offbench import rng
from offbench.data.goals import GOAL_EXTRAS, Goal
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, ReplayData, from_episodes
from offbench.data.views import Chunk, NStep, View, Window
from offbench.errors import UserError
from offbench.types import Batch, Method, Spec

SPEC = Spec(obs_dim=5, action_dim=2, gamma=0.99, max_episode_steps=100)
# small: a contract is about meaning, not about learning
BATCH = 16


def fake_batch(
    spec: Spec = SPEC,
    *,
    size: int = BATCH,
    minibatches: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    needs: Sequence[str] = (),
) -> Batch:
    """A batch of random transitions, none of them terminal.

    Args:
        spec: sizes, gamma, and whether actions are one-hot; with a chunked spec those of a chunk.
        size: B, the transitions of a minibatch.
        minibatches: K; above 1 every tensor has a leading axis, (K, B, ...).
        seed: equal seeds give equal batches.
        dtype: of all real numbers.
        needs: names of batch extras; with them the batch is drawn from fake data through the view
            (n-step, chunks, windows) that they ask for.

    Returns:
        obs and next_obs (B, O), action (B, A) in [-1, 1], reward and discount (B,), discount = gamma.
    """
    if needs:
        data = _same_data(environment_spec(spec), seed, dtype)
        view = view_for(needs, spec)
        pipeline = make_pipeline(data, view=view, batch_size=size, needs=needs)
        batch = pipeline.sample(rng.key(seed), minibatches)
        return batch._replace(discount=torch.full_like(batch.discount, spec.gamma))
    lead = (size,) if minibatches == 1 else (minibatches, size)
    k = rng.split(rng.key(seed), 4)
    return Batch(
        obs=rng.normal(k[0], (*lead, spec.obs_dim), dtype),
        action=_fake_action(k[1], (*lead, spec.action_dim), dtype, spec),
        reward=rng.normal(k[2], lead, dtype),
        discount=torch.full(lead, spec.gamma, dtype=dtype),
        next_obs=rng.normal(k[3], (*lead, spec.obs_dim), dtype),
    )


def _fake_action(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype, spec: Spec) -> Tensor:
    draws = rng.normal(key, shape, dtype)
    if spec.discrete:
        return torch.nn.functional.one_hot(draws.argmax(-1), shape[-1]).to(dtype)
    return draws.tanh()


def environment_spec(spec: Spec) -> Spec:
    """The environment's spec, one action for each step and no goal, of a spec that a method meets."""
    obs_dim, action_dim = spec.obs_dim - spec.goal_dim, spec.action_dim // spec.chunk
    return spec._replace(obs_dim=obs_dim, action_dim=action_dim, chunk=1, goal_dim=0)


def sized(cls: type, hidden: tuple[int, ...]) -> Any:
    """A method of this class with networks of these widths, whatever it calls them, and no warm-up."""
    small = {
        "hidden": hidden,
        "rep_hidden": hidden,
        "actor_hidden": hidden,
        "cvae_hidden": hidden,
        "latent_dim": 16,
        "width": hidden[0],
        "layers": len(hidden),
        "heads": 1,
        "warmup": 1,
    }
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in small.items() if name in names})


SMALL = {
    "hidden": (16,),
    "rep_hidden": (16,),
    "actor_hidden": (16,),
    "cvae_hidden": (16,),
    "latent_dim": 16,
    "width": 16,
    "layers": 1,
    "heads": 1,
    "flow_steps": 2,
    "n_proposals": 2,
}


def small(method: Any) -> Any:
    """The method with small networks and few repetitions, where its fields have the names that ours have.

    What a contract says does not depend on them, and what it costs does. A method that refuses them
    stays as it is.
    """
    names = {field.name for field in dataclasses.fields(method)}
    try:
        return dataclasses.replace(method, **{k: v for k, v in SMALL.items() if k in names})
    except (UserError, ValueError):
        return method


def spec_for(method: Method, spec: Spec = SPEC) -> Spec:
    """The spec a method meets: discrete, or chunked, where that is what it learns from."""
    if getattr(method, "actions", "continuous") == "discrete":
        spec = spec._replace(discrete=True, action_dim=max(spec.action_dim, 3))
    return view_for(getattr(method, "needs", ()), spec).spec(spec)


_SHORT_GOAL = Goal(subgoal_steps=3, option_steps=3)


def view_for(
    needs: Sequence[str],
    spec: Spec = SPEC,
    *,
    chunk: int = 3,
    window: int = 5,
    goal: Goal = _SHORT_GOAL,
) -> View | Window | Goal:
    """A view that has what the extras in `needs` are made of, of `chunk` or `window` steps."""
    if GOAL_EXTRAS.keys() & set(needs):
        return goal._replace(gamma=spec.gamma).for_needs(needs)
    if {"valid", "prefixes"} & set(needs):
        return Chunk(chunk, spec.gamma, pad=True)
    return Window(window, spec.gamma) if "context" in needs else NStep(1, spec.gamma)


def fake_data(
    spec: Spec = SPEC,
    *,
    episodes: int = 40,
    longest: int = 30,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> ReplayData:
    """Random episodes of 1 to `longest` steps, every second one ended by a terminal, the others truncated.

    Args:
        spec: sizes, and max_episode_steps where it is below `longest`.
        episodes: how many; later ones have larger rewards, so returns differ.
        longest: steps of the longest possible episode.
        seed: equal seeds give equal data.
        dtype: of observations, actions and rewards.
    """

    def episode(i: int) -> Episode:
        k = rng.split(rng.fold(rng.key(seed), i), 4)
        n = 1 if i == 0 else 1 + int(rng.randint(k[0], (), min(longest, spec.max_episode_steps)))
        terminal = torch.zeros(n, dtype=torch.bool)
        terminal[-1] = i % 2 == 0
        obs = rng.normal(k[1], (n + 1, spec.obs_dim), torch.float32)
        action = _fake_action(k[2], (n, spec.action_dim), torch.float32, spec)
        reward = rng.normal(k[3], (n,), torch.float32) + i / episodes
        return Episode(obs.numpy(), action.numpy(), reward.numpy(), terminal.numpy())

    data = from_episodes(map(episode, range(episodes)), name="fake data")
    return data._replace(
        obs=data.obs.to(dtype), action=data.action.to(dtype), reward=data.reward.to(dtype)
    )


@lru_cache(maxsize=8)
def _same_data(spec: Spec, seed: int, dtype: torch.dtype) -> ReplayData:
    """`fake_data`, drawn once for the many batches of one method's checks; never to be written to."""
    return fake_data(spec, seed=seed, dtype=dtype)
