"""ACSAC trained where all lengths are truly equal: `python tests/learned_chunk_bias.py`.

Writes results/chunk_bias/learned.csv in three minutes of one core. On a line of 30 steps each action, two
random numbers, leads one step on; a second number of the observation means nothing. So every prefix of every
chunk is worth the same up to the state that it ends on, and V is known. The same task has two rewards:

    cost    -0.1 for each step: V is -2.6 at the start, and values begin near 0, too high
    prize   0.1 more: nothing for a step, 9.9 for the last one (10, one step later); V is 10 more, and values
            begin too low

Columns, for each reward, update and seed: share_1 ... share_5 of the lengths in maxima, and their mean;
start_bias and end_bias (how much V is too high at the start and six steps before the end, in steps of 0.1);
over_proposals and over_lengths (standard deviations, in steps, of the errors of the smaller critic: among the
proposals of a state, and among lengths of their means over proposals); alike (correlation of the two critics'
errors, less each critic's mean in a state).
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, ReplayData, from_episodes
from offbench.data.views import Chunk
from offbench.methods.acsac import ACSAC
from offbench.nn import flow
from offbench.training.loop import train
from offbench.training.step import unstack
from offbench.types import Spec

HERE = Path(__file__).resolve().parents[1] / "results/chunk_bias"
STEPS, H, GAMMA = 30, 5, 0.99
SPEC = Spec(obs_dim=2, action_dim=2, gamma=GAMMA, max_episode_steps=STEPS)
METHOD = ACSAC(hidden=(64, 64), width=32, layers=1, heads=2, flow_steps=3, lr=1e-3)
# of a step's reward
SCALE = 0.1
# draws of proposals for each state
DRAWS = 64


def line(n_episodes: int, prize: bool) -> ReplayData:
    """Episodes that differ only in what does not matter."""
    draw, end = np.random.default_rng(0), np.arange(STEPS) == STEPS - 1
    reward = np.where(end, 10 * GAMMA, 0) if prize else np.full(STEPS, -SCALE)
    episodes = []
    for _ in range(n_episodes):
        obs = np.stack([np.linspace(0, 1, STEPS + 1), np.full(STEPS + 1, draw.normal())], 1)
        action = np.tanh(draw.normal(size=(STEPS, 2)))
        columns = (obs, action, reward)
        episodes.append(Episode(*(x.astype(np.float32) for x in columns), end))
    return from_episodes(episodes)


def value_of(left: Any, prize: bool) -> Any:
    """V, in steps, of a state with so many steps left."""
    return (100 if prize else 0) - (1 - GAMMA**left) / (1 - GAMMA)


def measured(state, method: ACSAC, prize: bool) -> dict[str, float]:
    """What the critics of one seed say in states that are six steps or more before the end."""
    left = np.arange(STEPS, H, -1)
    place = torch.tensor(1 - left / STEPS, dtype=torch.float32).repeat_interleave(DRAWS)
    noise = rng.normal(rng.key(5), (len(place),))
    obs, n = torch.stack([place, noise], 1), method.n_proposals
    _, chunks = flow.propose(state.flow, obs, rng.key(6), n, method.flow_steps)
    q = method._q(state.critic, obs, chunks.unflatten(0, (len(obs), n))).numpy()
    truth = value_of(left, prize)
    # (critics, states, draws, proposals, lengths)
    error = q.reshape(2, len(left), DRAWS, n, H) / SCALE - truth[:, None, None, None]
    smaller = error.min(0)
    prefixes = smaller.reshape(len(left), DRAWS, n * H)
    share = np.bincount((prefixes.argmax(-1) % H).ravel(), minlength=H) / prefixes[..., 0].size
    bias = prefixes.max(-1).mean(1)
    apart = error - error.mean((3, 4), keepdims=True)
    found = {f"share_{k}": x for k, x in enumerate(share, 1)}
    return found | {
        "mean_length": share @ np.arange(1, H + 1),
        "start_bias": bias[0],
        "end_bias": bias[-1],
        "over_proposals": smaller.std(2).mean(),
        "over_lengths": smaller.mean(2).std(-1).mean(),
        "alike": np.corrcoef(apart[0].ravel(), apart[1].ravel())[0, 1],
    }


def learned(method: ACSAC, prize: bool, updates: int, seeds: list[int]) -> list[dict]:
    """Rows of learned.csv."""
    data, view = line(100, prize), Chunk(H, GAMMA, pad=True)
    pipeline = make_pipeline(data, view=view, batch_size=64, needs=method.needs)
    stops, rows = [updates // 30, updates // 10, updates // 3, updates], []
    for point in train(method, pipeline, SPEC, seeds=seeds, n_updates=updates, stop_at=stops):
        for i, seed in enumerate(seeds):
            row = {"reward": "prize" if prize else "cost", "update": point.update, "seed": seed}
            rows.append(row | measured(unstack(point.state, i), method, prize))
    return rows


def main() -> None:
    """Trains and writes the table."""
    parser = argparse.ArgumentParser(description="ACSAC trained where all lengths are equal")
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--to", type=Path, default=HERE / "learned.csv")
    args = parser.parse_args()
    rows = []
    for prize in (False, True):
        rows += learned(METHOD, prize, args.updates, [0, 1])
        pd.DataFrame(rows).to_csv(args.to, index=False, float_format="%.3g", lineterminator="\n")


if __name__ == "__main__":
    main()
