"""What the pessimistic methods are for, seen on the point mass of test_learning.py: they learn, and
their values err on the side that their papers say."""

import dataclasses

import pytest
import torch
from support.point_mass import SPEC, halfway, move, record, returns_of
from torch.func import vmap

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.views import NStep
from offbench.methods.cql import CQL
from offbench.methods.sac_n import SACN
from offbench.training.loop import train

SEEDS = [0, 1, 2]
SMALL = {"hidden": (32,), "actor_lr": 4e-3, "critic_lr": 4e-3, "polyak_rate": 0.05}
METHODS = {
    "cql": CQL(**SMALL, conservative_weight=0.5, n_actions=3),
    "cal_ql": CQL(**SMALL, conservative_weight=0.5, n_actions=3, calibrated=True),
    "sac_n": SACN(**SMALL, n_critics=10),
    "one critic": SACN(**SMALL, n_critics=1),
    "edac": SACN(**SMALL, n_critics=5, diversity_weight=0.3),
}


def trained(method, data=None, n_updates: int = 700):
    pipeline = make_pipeline(
        record() if data is None else data,
        view=NStep(1, SPEC.gamma),
        batch_size=64,
        needs=getattr(method, "needs", ()),
    )
    (point,) = train(method, pipeline, SPEC, seeds=SEEDS, n_updates=n_updates, backend="eager")
    return pipeline, point


def true_q(method, state, data, n_steps: int = 60) -> torch.Tensor:
    """(seeds,) mean discounted return of the recorded actions followed by the learned policy."""
    rows = data.valid.nonzero().squeeze(1)[::10]
    s = move(data.obs[rows], data.action[rows]).expand(len(SEEDS), -1, -1)
    total, key = -s.norm(dim=-1), rng.split(rng.key(0), len(SEEDS))
    for t in range(1, n_steps):
        s = move(s, vmap(method.act)(state, s, key))
        total = total - SPEC.gamma**t * s.norm(dim=-1)
    return total.mean(-1)


@pytest.fixture(scope="module")
def runs():
    """name -> (mean returns of the policies, estimates and truth of Q at the data), each (seeds,)."""
    data, found = record(), {}
    for name, method in METHODS.items():
        pipeline, point = trained(method)
        returns = returns_of(method, point.state, pipeline)
        found[name] = (returns, point.metrics["q"], true_q(method, point.state, data))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cql", "cal_ql", "sac_n", "edac"])
def test_every_seed_beats_the_behaviour_clearly(name, runs):
    assert (runs[name][0] > halfway()).all()


@pytest.mark.slow
def test_values_of_cql_lie_below_the_true_returns_and_those_of_cal_ql_are_closer(runs):
    """Kumar et al. (2020), theorem 3.2; Nakamoto et al. (2023), figure 1."""
    _, cql, truth = runs["cql"]
    assert (cql < truth - 1).all()
    _, calibrated, truth_of_calibrated = runs["cal_ql"]
    assert ((truth_of_calibrated - calibrated) < (truth - cql)).all()


@pytest.mark.slow
def test_one_critic_estimates_higher_above_the_truth_than_many(runs):
    """An et al. (2021), section 3: the minimum over more critics is more pessimistic."""
    error = {name: runs[name][1] - runs[name][2] for name in ("one critic", "sac_n")}
    assert (error["one critic"] > error["sac_n"] + 0.5).all()


def test_the_multiplier_grows_while_the_gap_is_above_its_target_and_shrinks_below():
    batch = make_pipeline(record(), view=NStep(1, SPEC.gamma), batch_size=16).sample(rng.key(0))
    for target, grows in ((0.0, True), (20.0, False)):
        method = dataclasses.replace(METHODS["cql"], lagrange=True, target_gap=target)
        state = method.init(rng.key(0), SPEC)
        new, metrics = method.update(state, batch, rng.key(1))
        assert bool(metrics["conservative_gap"] > target) == grows
        assert bool(new.log_multiplier > state.log_multiplier) == grows


@pytest.mark.parametrize("name", ["cql", "edac"])
def test_swept_numbers_train_as_they_do_alone(name):
    """Every number that a sweep may stack is used as a tensor there."""
    method = dataclasses.replace(METHODS[name], **{"clip_diff_min": 1.0} if name == "cql" else {})
    pipeline = make_pipeline(record(), view=NStep(1, SPEC.gamma), batch_size=16)
    numbers = [
        f.name for f in dataclasses.fields(method) if isinstance(getattr(method, f.name), float)
    ]
    values = [{k: x * getattr(method, k) for k in numbers} for x in (1.0, 0.5)]
    (stack,) = train(
        method, pipeline, SPEC, seeds=[0, 1], values=values, n_updates=10, backend="vmap"
    )
    for i, (seed, value) in enumerate(zip([0, 1], values, strict=True)):
        alone = dataclasses.replace(method, **value)
        (point,) = train(alone, pipeline, SPEC, seeds=[seed], n_updates=10, backend="vmap")
        for key, got in stack.metrics.items():
            assert got[i].item() == pytest.approx(point.metrics[key].item(), rel=1e-3, abs=1e-4), (
                key
            )
