"""The methods learn: on a point mass steered by people of all skills they find the skilled action.

A point in the square [-1, 1]^2 is moved by up to 0.2 a step and pays its distance from the origin.
Each recorded episode has one skill between driving away from the origin and driving to it, so
copying the data (BC) goes nowhere, and the reward tells which of the recorded actions were good.
"""

import dataclasses

import pytest
import torch
from support.mutants import mutated
from support.ordinary import disagreement
from support.point_mass import SEEDS, SPEC, halfway, record, returns_of

from offbench.data.pipeline import make_pipeline
from offbench.data.replay import episode_returns
from offbench.data.views import NStep
from offbench.methods.awac import AWAC
from offbench.methods.bc import BC
from offbench.methods.iql import IQL
from offbench.methods.rebrac import ReBRAC
from offbench.methods.td3_bc import TD3BC
from offbench.methods.xql import XQL
from offbench.training.loop import train

SMALL = {"hidden": (32, 32), "lr": 2e-3}
METHODS = {
    "bc": BC(**SMALL),
    "gaussian bc": BC(**SMALL, gaussian=True),
    "iql": IQL(**SMALL, expectile=0.8, inverse_temperature=10.0, polyak_rate=0.05),
    "td3_bc": TD3BC(**SMALL, polyak_rate=0.05),
    "rebrac": ReBRAC(hidden=(32, 32), actor_lr=2e-3, critic_lr=2e-3, polyak_rate=0.05),
    "awac": AWAC(**SMALL, temperature=0.1, polyak_rate=0.05),
    "xql": XQL(**SMALL, value_temperature=0.5, inverse_temperature=10.0, polyak_rate=0.05),
}


def learned(method, n_updates: int = 800) -> torch.Tensor:
    """(seeds,) mean return after training."""
    pipeline = make_pipeline(
        record(), view=NStep(1, SPEC.gamma), batch_size=64, needs=getattr(method, "needs", ())
    )
    (point,) = train(method, pipeline, SPEC, seeds=SEEDS, n_updates=n_updates, backend="eager")
    return returns_of(method, point.state, pipeline)


# IQL and TD3+BC in `make test`, the others in `make test-all` alone
LEARNING = [
    name if name == "td3_bc" else pytest.param(name, marks=pytest.mark.slow)
    for name in METHODS
    if "bc" not in name or name == "td3_bc"
]


@pytest.mark.parametrize("name", LEARNING)
def test_every_seed_beats_the_behaviour_and_its_clone_clearly(name, clone):
    got = learned(METHODS[name])
    assert (got > halfway()).all() and (got > clone.max() + 5).all()


def test_a_clone_is_no_better_than_what_it_copies(clone):
    mean = float(episode_returns(record()).mean())
    assert (clone < mean + 1).all() and (learned(METHODS["gaussian bc"]) < mean + 1).all()


@pytest.fixture(scope="module")
def clone():
    return learned(METHODS["bc"])


# --- mutants: each has one sign or one choice turned round


MUTANTS = {
    "bc: error of the sum": (BC, "action - batch.action", "action + batch.action"),
    "td3_bc: target subtracts the future": (
        TD3BC,
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
    ),
    "td3_bc: target takes the larger twin": (
        TD3BC,
        "next_q.squeeze(-1).amin(0)",
        "next_q.squeeze(-1).amax(0)",
    ),
    "td3_bc: actor minimises Q": (
        TD3BC,
        "bc_error - scale * q.mean()",
        "bc_error + scale * q.mean()",
    ),
    "td3_bc: actor flees the data": (TD3BC, "return bc_error - scale", "return -bc_error - scale"),
    "iql: target subtracts the future": (
        IQL,
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
    ),
    "iql: expectile of the other side": (IQL, "(advantage < 0)", "(advantage > 0)"),
    "iql: weights of the disadvantage": (
        IQL,
        "self.inverse_temperature * advantage",
        "-self.inverse_temperature * advantage",
    ),
    "iql: advantage turned round": (IQL, "advantage = target_q - v", "advantage = v - target_q"),
    "iql: likelihood minimised": (IQL, "actor_loss = -(weight", "actor_loss = (weight"),
}


def mutant(name: str) -> type:
    return mutated(*MUTANTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_with_the_plain_implementation_finds_every_mutant(name, data64):
    method = mutant(name)(hidden=(16, 16))
    assert disagreement(MUTANTS[name][0](hidden=(16, 16)), data64, n=4) < 1e-10
    assert disagreement(method, data64, n=4) > 1e-6


FORGIVEN = {
    "bc: error of the sum",  # skills are symmetric about zero, so the mirrored clone does as badly
    "td3_bc: target takes the larger twin",  # overestimation does no harm in so small a space
    "iql: expectile of the other side",  # a low expectile of V still ranks the actions
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_learning_alone_finds_every_mutant_that_the_task_does_not_forgive(name, clone):
    method = METHODS[name.split(":")[0]]
    got = learned(mutant(name)(**dataclasses.asdict(method)))
    failed = (
        (got < clone.min() - 1).any() if isinstance(method, BC) else not (got > halfway()).all()
    )
    assert bool(failed) == (name not in FORGIVEN)
