"""ODICE learns on the point mass; with the true gradient, or with one mistake, it does not."""

import dataclasses

import pytest
import torch
from support.mutants import mutated
from support.point_mass import SEEDS, SPEC, halfway, record, returns_of

from offbench.data.pipeline import make_pipeline
from offbench.data.replay import episode_returns
from offbench.data.views import NStep
from offbench.methods.odice import ODICE
from offbench.training.loop import train

METHOD = ODICE(hidden=(32, 32), actor_hidden=(32, 32), lr=2e-3, polyak_rate=0.05, dual_weight=0.5)


def learned(method) -> torch.Tensor:
    """(seeds,) mean return after training."""
    pipeline = make_pipeline(record(), view=NStep(1, SPEC.gamma), batch_size=64)
    (point,) = train(method, pipeline, SPEC, seeds=SEEDS, n_updates=800, backend="eager")
    return returns_of(method, point.state, pipeline)


@pytest.mark.parametrize("gradient", ["orthogonal", pytest.param("semi", marks=pytest.mark.slow)])
def test_every_seed_beats_the_behaviour_clearly(gradient):
    assert (learned(dataclasses.replace(METHOD, gradient=gradient)) > halfway()).all()


@pytest.mark.slow
def test_both_gradients_as_they_are_cancel_and_teach_no_better_than_the_behaviour():
    true = learned(dataclasses.replace(METHOD, gradient="true"))
    assert (true < float(episode_returns(record()).mean())).all()


BROKEN = {
    "projected the wrong way": ("one - share", "one + share"),
    "not projected": ("one - share", "one"),
    "weights of the disadvantage": ("residual.clamp(min=0)", "(-residual).clamp(min=0)"),
    "V pushed up": ("(1 - self.dual_weight) * v", "(self.dual_weight - 1) * v"),
    "likelihood minimised": ("return -(weight", "return (weight"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_learning_finds_what_is_broken(name):
    broken = mutated(ODICE, *BROKEN[name])(**dataclasses.asdict(METHOD))
    assert not (learned(broken) > halfway()).any()
