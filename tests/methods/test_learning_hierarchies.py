"""Hierarchies over goals reach further, along a corridor that is longer than a value's horizon.

A place on the corridor is seen by bumps along it, so it says where it is and not how far that is from elsewhere.
Episodes walk mostly one way and turn now and then; steps are noisy. With a discount of 0.95 a value of steps has faded
after some 60 of them: it is then lower than the errors of a network. Over options of eight it has not.
"""

import dataclasses

import numpy as np
import pytest
import torch
from support.mutants import mutated
from torch.func import vmap

from offbench import rng
from offbench.data.goals import Goal
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, from_episodes
from offbench.methods.gcivl import GCIVL
from offbench.methods.hiql import HIQL
from offbench.methods.ota import OTA
from offbench.nn import hierarchy
from offbench.training.loop import train
from offbench.types import Spec

LENGTH, EPISODES, STEPS, GAMMA = 160, 100, 150, 0.95
WIDTH, CENTRES = 6.0, torch.arange(0, LENGTH + 1, 8.0)
SPEC = Spec(obs_dim=len(CENTRES), action_dim=1, gamma=GAMMA, max_episode_steps=2 * LENGTH)
GOAL = Goal(GAMMA, geometric=False, actor_goals=(0.0, 0.5, 0.5), subgoal_steps=15, option_steps=8)
SEEDS = [0, 1]
SMALL = {"hidden": (64, 64), "lr": 1e-3, "polyak_rate": 0.02}
NEAR, FAR = 50, 100


def seen(place: torch.Tensor) -> torch.Tensor:
    """The observation of a place in [0, LENGTH]: (...,) -> (..., O)."""
    return torch.exp(-0.5 * torch.square((place[..., None] - CENTRES) / WIDTH))


def walked(place: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return (place + action.clamp(-1, 1)).clamp(0, LENGTH)


def record():
    k = rng.split(rng.key(0), 3)
    place = LENGTH * rng.uniform(k[0], (EPISODES,))
    way = torch.where(rng.uniform(k[1], (EPISODES,)) < 0.5, -1.0, 1.0)
    places, actions = [place], []
    for step in rng.split(k[2], STEPS):
        k_turn, k_noise = rng.split(step, 2)
        way = torch.where(rng.uniform(k_turn, (EPISODES,)) < 0.01, -way, way)
        action = (way + 0.4 * rng.normal(k_noise, (EPISODES,))).clamp(-1, 1)
        place = walked(place, action)
        places.append(place), actions.append(action)
    obs, action = seen(torch.stack(places, 1)).numpy(), torch.stack(actions, 1)[..., None].numpy()
    nothing, no_end = np.zeros(STEPS, np.float32), np.zeros(STEPS, bool)
    return from_episodes([Episode(o, a, nothing, no_end) for o, a in zip(obs, action)])


def trained(method, n_updates: int = 2500):
    """The stacked states of SEEDS."""
    pipeline = make_pipeline(record(), view=GOAL, batch_size=128, needs=method.needs)
    (point,) = train(method, pipeline, SPEC, seeds=SEEDS, n_updates=n_updates, backend="eager")
    return point.state


def reached(method, state, distance: float, n: int = 40) -> torch.Tensor:
    """(seeds,) share of n starts from which a goal this far away is reached in three times as many steps."""
    u = torch.linspace(0, 1, n // 2)
    low = u * (LENGTH - distance)
    start, goal = torch.cat([low, low + distance]), torch.cat([low + distance, low])
    place, goal = start.expand(len(SEEDS), n), goal.expand(len(SEEDS), n)
    done = torch.zeros(len(SEEDS), n, dtype=torch.bool)
    keys = torch.zeros(len(SEEDS), dtype=torch.long)
    act = vmap(method.act)
    for _ in range(int(3 * distance)):
        obs = torch.cat([seen(place), seen(goal)], -1)
        place = walked(place, act(state, obs, keys)[..., 0])
        done |= (place - goal).abs() < 3
    return done.float().mean(1)


def values(state, name: str) -> torch.Tensor:
    """(seeds, 151) values of a name along the corridor, from 150 steps before the goal to the goal."""
    place = torch.arange(0, 151.0) + 5
    obs = torch.cat([seen(place), seen(place[-1:]).expand(151, -1)], -1)

    def of_seed(goal_rep, value):
        return hierarchy.values(value, [obs], [hierarchy.represent(goal_rep, obs)])[0].mean(0)

    return vmap(of_seed)(state.goal_rep, getattr(state, name))


def ordered(v: torch.Tensor) -> torch.Tensor:
    """(seeds,) share of places 70 to 150 steps before the goal from which a sub-goal has a larger value."""
    k = GOAL.subgoal_steps
    return (v[:, k:] > v[:, :-k])[:, :80].float().mean(1)


@pytest.fixture(scope="module")
def states():
    methods = {cls.__name__: cls(**SMALL) for cls in (GCIVL, HIQL, OTA)}
    return {name: (method, trained(method)) for name, method in methods.items()}


@pytest.mark.slow
def test_two_levels_reach_further_than_one(states):
    near = {name: reached(*pair, NEAR) for name, pair in states.items()}
    assert (near["HIQL"] > near["GCIVL"] + 0.15).all() and (near["OTA"] > 0.6).all(), near


@pytest.mark.slow
def test_a_value_over_options_reaches_further_than_one_of_steps(states):
    far = {name: reached(*pair, FAR) for name, pair in states.items()}
    assert (far["OTA"] > 0.5).all(), far
    assert (far["HIQL"] < 0.25).all() and (far["GCIVL"] < 0.25).all(), far


@pytest.mark.slow
def test_a_value_over_options_rises_above_the_noise_where_one_of_steps_does_not(states):
    high, low = (values(states["OTA"][1], name) for name in ("high_value", "low_value"))
    # far from the goal a value of steps is a constant and the errors of the network
    noise = low[:, :75].std(1)
    assert (high[:, 75] - high[:, 0] > 5 * noise).all()
    assert (ordered(high) > 0.8).all() and (ordered(low) < 0.7).all()


BROKEN = {
    "options of one step": ("            option,\n", "            step,\n"),
    "the low level's value for both": (
        "(before.low_value, before.high_value)",
        "(before.low_value, before.low_value)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_learning_finds_an_abstraction_that_is_missing(name):
    method = mutated(OTA, *BROKEN[name])(**dataclasses.asdict(OTA(**SMALL)))
    assert (reached(method, trained(method), FAR) < 0.3).all()
