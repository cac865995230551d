"""The methods of flows and chunks learn: from blocks of steps of all skills they put the skilled ones together.

The point mass of test_learning.py, where here every four steps of a recording have a skill of their own, so
that good actions are recorded everywhere and never for long: a clone wanders, and stays where it is. The
reward is what the point was paid less what it is paid on average, so that the critics need not learn an offset.
"""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from support.mutants import mutated
from support.point_mass import HORIZON, SPEC, move, returns_of, skilled

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, from_episodes
from offbench.data.views import Chunk, NStep
from offbench.methods.acsac import ACSAC
from offbench.methods.cgq import CGQ
from offbench.methods.dqc import DQC
from offbench.methods.fql import FQL
from offbench.methods.ifql import IFQL
from offbench.methods.qc import QC
from offbench.methods.qgf import QGF
from offbench.training.loop import train

GAMMA, EPISODES, UPDATES, SEEDS = 0.7, 120, 220, [0, 1]
SMALL = {"hidden": (32, 32), "lr": 4e-3, "polyak_rate": 0.2, "flow_steps": 3}
TINY = {"width": 16, "layers": 1, "heads": 1}
STEPS, CHUNKS = NStep(1, GAMMA), Chunk(3, GAMMA, pad=True)
METHODS = {
    "fql": (FQL(**SMALL, distill_weight=0.5), STEPS),
    "qc_fql": (FQL(**SMALL, distill_weight=0.5), CHUNKS),
    "bfn": (QC(**SMALL, n_proposals=8), STEPS),
    "qc": (QC(**SMALL, n_proposals=16), CHUNKS),
    "ifql": (IFQL(**SMALL, n_proposals=16), STEPS),
    "acsac": (ACSAC(**SMALL, **TINY, n_proposals=8), Chunk(2, GAMMA, pad=True)),
    "qgf": (QGF(**SMALL, guidance_weight=2.0), CHUNKS),
    "dqc": (DQC(**SMALL, n_proposals=16), CHUNKS),
    "cgq": (CGQ(**SMALL, chunk_distill_weight=0.5, distill_weight=0.5, anchor_weight=0.1), CHUNKS),
}


@functools.cache
def record():
    k_start, k_skill, k_noise = rng.split(rng.key(0), 3)
    s = 2 * rng.uniform(k_start, (EPISODES, 2)) - 1
    obs, action, reward = [s], [], []
    for i, k in enumerate(rng.split(k_noise, HORIZON)):
        skill = 2 * rng.uniform(rng.fold(k_skill, i // 4), (EPISODES, 1)) - 1
        a = (torch.tanh(-3 * skill * s) + 0.3 * rng.normal(k, (EPISODES, 2))).clamp(-1, 1)
        reward.append(3 * (0.7 - s.norm(dim=1)))  # of the state before the action, as in OGBench
        s = move(s, a)
        obs.append(s), action.append(a)
    columns = [torch.stack(x, 1).numpy() for x in (obs, action, reward)]
    no_end = np.zeros(HORIZON, bool)
    return from_episodes([Episode(o, a, r, no_end) for o, a, r in zip(*columns, strict=True)])


def enough() -> float:
    """A quarter of the way from the mean of the data (-13) to driving straight to the origin (-1)."""
    data = record()
    mean = HORIZON * (float(data.reward[data.valid].mean()) / 3 - 0.7)
    return mean + (skilled() - mean) / 4


def learned(method, view) -> torch.Tensor:
    """(seeds,) mean return after training."""
    pipeline = make_pipeline(record(), view=view, batch_size=64, needs=method.needs)
    (point,) = train(method, pipeline, SPEC, seeds=SEEDS, n_updates=UPDATES, backend="eager")
    return returns_of(method, point.state, pipeline, len(SEEDS))


def one_quick(names) -> list:
    """Q-chunking in `make test`, the others in `make test-all` alone."""
    return [n if n == "qc" else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", one_quick(METHODS))
def test_every_seed_puts_the_good_steps_together(name):
    assert (learned(*METHODS[name]) > enough()).all()


BROKEN = {
    "qc_fql": ("distill_loss - scale * actor_q", "distill_loss + scale * actor_q"),
    "qc": ("flow.first_argmax(q)", "flow.first_argmax(-q)"),
    "ifql": ("batch.reward + batch.discount", "batch.reward - batch.discount"),
    "qgf": ("v + self.guidance_weight", "v - self.guidance_weight"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", one_quick(BROKEN))
def test_a_broken_one_does_not(name):
    method, view = METHODS[name]
    broken = mutated(type(method), *BROKEN[name])(**dataclasses.asdict(method))
    assert not (learned(broken, view) > enough()).all()
