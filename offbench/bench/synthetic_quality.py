"""How good synthetic sub-trajectories are: likely under a policy, and true to the simulator.

Every kept policy meets every source, so sources are compared on the same policies. A step is true where the
environment, set to its observation, goes where the step says: the error is the mean squared difference of the next
observations, each number in units of its standard deviation in the data.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from offbench import rng
from offbench.bench.policy import load
from offbench.data.replay import ReplayData
from offbench.data.views import NStep
from offbench.errors import UserError
from offbench.synthetic.diffusion import window_starts
from offbench.synthetic.rollouts import Actions, Rollouts
from offbench.synthetic.sources import PolicyGuidedDiffusion, Synthetic, policies
from offbench.tasks.consistency import Simulator
from offbench.training.fitting import NEVER, Stops
from offbench.training.imperative import Imperative

# of a source and a policy
ROLLOUTS = 200
# steps repeated in the simulator
STEPS = 400
# of the coefficient of guidance
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)

Draw = Callable[[Tensor, Actions], Rollouts]


def draws(
    sources: Mapping[str, Synthetic], data: ReplayData, folder: Path, stops: Stops = NEVER
) -> Iterator[tuple[str, float | None, Draw]]:
    """(name, coefficient, function that draws): recorded windows, then each source, guided more and more.

    Recorded windows are as long as the longest sub-trajectories, where an episode is.

    Args:
        sources: settings by name; they are trained on the data, or read from `folder`.
    """
    longest = int(torch.bincount(data.episode).max())
    length = min(longest, max((own.length for own in sources.values()), default=32))
    yield "data", None, lambda keys, policy: recorded(data, length)
    for name, settings in sources.items():
        few = replace(settings, rollouts=ROLLOUTS)
        variants: list[tuple[float | None, Synthetic]] = [(None, few)]
        if isinstance(few, PolicyGuidedDiffusion):
            own = few.coefficient or 1.0
            variants = [(c * own, replace(few, coefficient=c * own)) for c in STRENGTHS]
        for coefficient, variant in variants:
            roll = variant.source(data, folder, stops)
            yield name, coefficient, partial(roll, learned=True)


def recorded(data: ReplayData, length: int) -> Rollouts:
    """Windows of the data in the place of imagined ones, the same at every call."""
    starts = window_starts(data, length).nonzero().squeeze(1)
    chosen = starts[rng.randint(rng.key(0), (ROLLOUTS,), len(starts))]
    row = chosen[None, :, None] + torch.arange(length)
    return Rollouts(data.obs[row], data.action[row], data.reward[row], data.terminal[row])


def acting(kept: Path) -> Actions:
    """The evaluation actions of a kept policy, as of a stack of one.

    UserError where it cannot be read, or is not a function of single observations.
    """
    loaded = load(kept)
    if isinstance(loaded.method, Imperative) or not isinstance(loaded.pipeline.view, NStep):
        raise UserError(
            f"synthetic data are measured with functional methods of single observations, and {loaded.run.method}"
            " is none: leave it out of methods=[...]"
        )
    own, key = policies(loaded.method, loaded.pipeline), rng.key(0)[None]
    return lambda obs, number: own(loaded.state, obs, rng.fold(key, number))


def measure(
    draw: Draw, policy: Actions, data: ReplayData, simulator: Simulator
) -> dict[str, float]:
    """Quality of a source's rollouts with one policy.

    log_likelihood: mean of log N(action; policy's action, 1), per step. state_error: mean squared error of next
    observations; of the first and of the last quarter of the steps; its median over steps.
    """
    with torch.no_grad():
        rollouts = draw(rng.key(1)[None], policy)
        wanted = policy(rollouts.obs.flatten(1, 2), 0).unflatten(1, rollouts.obs.shape[1:3])
    distance = (rollouts.action - wanted).square().sum(-1)[0]
    inside = torch.arange(distance.shape[1]) < rollouts.lengths[0][:, None]
    constant = 0.5 * data.action.shape[1] * math.log(2 * math.pi)
    steps = errors(rollouts, data, simulator)
    n = rollouts.obs.shape[2] - 1
    first, last = steps["step"] < n / 4, steps["step"] >= 3 * n / 4
    return {
        "log_likelihood": float(-0.5 * distance[inside].mean() - constant),
        "state_error": steps["error"].mean(),
        "state_error_median": steps["error"].median(),
        "state_error_first": steps.loc[first, "error"].mean(),
        "state_error_last": steps.loc[last, "error"].mean(),
        "steps": len(steps),
    }


def errors(rollouts: Rollouts, data: ReplayData, simulator: Simulator) -> pd.DataFrame:
    """(step, error) of sampled transitions, repeated in the simulator."""
    spread = data.obs[data.valid].std(0, correction=0).numpy()
    moves = spread > 1e-6
    inside = torch.arange(rollouts.obs.shape[2]) < rollouts.lengths[0][:, None]
    which = np.random.default_rng(0).permutation(inside.nonzero().numpy())[:STEPS]
    rows: list[dict[str, Any]] = []
    for i, t in which:
        obs, action, said = (
            x.numpy()
            for x in (rollouts.obs[0, i, t], rollouts.action[0, i, t], rollouts.obs[0, i, t + 1])
        )
        true = simulator(obs, action)
        off = ((true - said) / np.where(moves, spread, 1.0))[moves]
        rows.append({"step": int(t), "error": float(np.square(off).mean())})
    return pd.DataFrame(rows)
