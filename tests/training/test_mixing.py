"""Minibatches that are part synthetic: which elements a method sees, when pools are written, what a stop leaves."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, from_episodes
from offbench.errors import UserError
from offbench.methods.cql import CQL
from offbench.methods.rebrac import ReBRAC
from offbench.methods.td3_bc import TD3BC
from offbench.training.held_out import Validation
from offbench.training.loop import Refresh, train
from offbench.training.mixing import Mixed
from offbench.training.step import initial_carry
from offbench.types import Batch, Spec

SPEC = Spec(obs_dim=2, action_dim=1, gamma=0.9, max_episode_steps=20)
SMALL = {"hidden": (8,)}


class Seen(NamedTuple):
    batch: Batch


class Spy:
    """A method that keeps its last minibatch."""

    minibatches = 2

    def init(self, key, spec):
        column = torch.zeros(2, 8)
        wide = torch.zeros(2, 8, 2)
        return Seen(Batch(wide, column[..., None], column, column, wide))

    def update(self, state, batch, key):
        return Seen(batch), {}


def recorded(seed=0):
    g = np.random.default_rng(seed)
    episode = lambda: Episode(
        g.normal(size=(11, 2)), g.uniform(-1, 1, (10, 1)), g.normal(size=10), np.zeros(10, bool)
    )
    return from_episodes([episode() for _ in range(4)])


def pool(n, size, *, needs=()):
    """Elements told from recorded ones: rewards of 100, 101, ..."""
    rows = lambda *shape: torch.zeros(n, size, *shape)
    extras = {"next_action": rows(1)} if needs else ()
    reward = 100.0 + torch.arange(size).expand(n, size)
    return Batch(rows(2), rows(1), reward, rows() + 0.9, rows(2), extras)


def test_a_share_of_every_minibatch_is_drawn_from_what_the_pool_holds():
    mixed = Mixed(method=Spy(), share=0.75, size=6)
    state = mixed.init(rng.key(0), SPEC)
    state = state._replace(pool=tree_map(lambda x: x[0], pool(1, 6)), filled=torch.tensor(4))
    data = recorded()
    pipeline = make_pipeline(data, batch_size=8)
    met = set()
    for i in range(30):
        batch = pipeline.sample(rng.key(i), 2)
        seen = mixed.update(state, batch, rng.key(100 + i))[0].inner.batch
        assert seen.reward.shape == (2, 8)
        synthetic = seen.reward >= 100
        assert synthetic.sum(1).tolist() == [6, 6]
        assert torch.equal(seen.obs[~synthetic].flatten(), batch.obs[:, :2].flatten())
        met |= {*seen.reward[synthetic].tolist()}
    assert met == {100.0, 101.0, 102.0, 103.0}


def refresh(every, log, needs=()):
    def make(carry):
        log.append(int(carry.step))
        filled = torch.full((len(carry.key),), 5)
        # a function of the state, as sources are
        shift = sum(x.double().mean() for x in tree_leaves(carry.state.inner)).float()
        elements = pool(len(carry.key), 6, needs=needs)
        elements = elements._replace(reward=elements.reward / 100 + shift)
        return carry._replace(state=carry.state._replace(pool=elements, filled=filled))

    return Refresh(every, make)


def trained(method, n, *, log=None, every=6, **options):
    pipeline = make_pipeline(recorded(), batch_size=8, needs=method.needs)
    made = refresh(every, [] if log is None else log, method.needs)
    return list(train(method, pipeline, SPEC, seeds=[0, 1], n_updates=n, refresh=made, **options))


def same(a, b, atol=0.0):
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.allclose(x.double(), y.double(), rtol=0, atol=atol) for x, y in pairs)


def test_pools_are_written_before_the_first_update_and_after_every_so_many():
    log = []
    method = Mixed(method=TD3BC(**SMALL), share=0.5, size=6)
    points = trained(method, 20, log=log, stop_at=[4, 12])
    # two minibatches a step
    assert log == [0, 3, 6, 9] and [p.update for p in points] == [4, 12, 20]
    plain = trained(method, 20)
    assert [p.update for p in plain] == [20] and same(plain[-1].carry, points[-1].carry)
    assert all(p.metrics for p in points)


@pytest.mark.parametrize("stop", [6, 14])
def test_training_that_goes_on_from_a_stop_ends_in_the_same_bits(stop):
    method = Mixed(method=ReBRAC(hidden=(8,)), share=0.5, size=6)
    whole = trained(method, 20)
    there = trained(method, 20, stop_at=[stop])[0]
    assert there.update == stop
    again = trained(method, 20, resume=there.carry)
    assert same(whole[-1].carry, again[-1].carry)


def test_a_complete_training_gets_no_other_pool():
    method, log = Mixed(method=TD3BC(**SMALL), share=0.5, size=6), []
    whole = trained(method, 12)[-1].carry
    (again,) = trained(method, 12, log=log, resume=whole)
    assert again.update == 12 and not log and same(whole, again.carry)


def test_backends_agree():
    method = Mixed(method=TD3BC(**SMALL), share=0.5, size=6)
    eager, vmapped = (trained(method, 20, backend=b)[-1].carry for b in ("eager", "vmap"))
    assert same(eager, vmapped, atol=1e-5)


def test_hyper_parameters_are_stacked():
    method = Mixed(method=TD3BC(**SMALL), share=0.5, size=6)
    pipeline = make_pipeline(recorded(), batch_size=8)
    values = [{"alpha": 1.0}, {"alpha": 4.0}]

    def make(carry):
        elements = pool(2, 6)
        own = carry.state.state._replace(pool=elements, filled=torch.tensor([5, 5]))
        return carry._replace(state=carry.state._replace(state=own))

    points = list(
        train(
            method,
            pipeline,
            SPEC,
            seeds=[0, 0],
            values=values,
            n_updates=8,
            refresh=Refresh(100, make),
        )
    )
    first, second = (tree_leaves(points[-1].carry.seed(i).state.state.inner.actor) for i in (0, 1))
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_validation_is_of_held_out_rows_alone():
    plain = TD3BC(**SMALL)
    mixed = Mixed(method=plain, share=0.5, size=6)
    pipeline, held_out = make_pipeline(recorded(), batch_size=8), recorded(1)
    found = []
    for method in (plain, mixed):
        carry = initial_carry(plain, SPEC, [0])
        state = carry.state
        if method is mixed:
            state = initial_carry(mixed, SPEC, [0]).state._replace(inner=state)
            state = state._replace(pool=pool(1, 6), filled=torch.tensor([6]))
        found.append(Validation(method, pipeline, held_out, discrete=False)(state))
    assert found[0].keys() == found[1].keys()
    assert same(found[0], found[1], atol=1e-5)


def test_a_wrapper_has_what_its_method_has():
    mixed = Mixed(method=CQL(**SMALL), share=0.5, size=6)
    state = mixed.init(rng.key(0), SPEC)
    obs = torch.randn(3, 2)
    for name in ("gaussian_policy",):
        assert same(getattr(mixed, name)(state, obs), getattr(mixed.method, name)(state.inner, obs))
    action = mixed.act(state, obs, rng.key(1))
    assert torch.equal(action, mixed.method.act(state.inner, obs, rng.key(1)))
    assert torch.equal(
        mixed.value(state, obs, action), mixed.method.value(state.inner, obs, action)
    )
    assert not hasattr(mixed, "act_for") and not hasattr(mixed, "check")


def test_methods_that_read_more_than_transitions_are_refused():
    class Needy(Spy):
        needs = ("return_to_go",)

    with pytest.raises(UserError, match="Needy reads return_to_go of a batch, which synthetic"):
        Mixed(method=Needy(), share=0.5, size=6)
