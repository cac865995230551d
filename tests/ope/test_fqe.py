"""Fitted Q evaluation held to exact values of small MDPs."""

import inspect
import sys
import types
from functools import cache

import numpy as np
import pytest
import torch
from support.mdps import (
    acting,
    greedy,
    plan_values,
    random_mdp,
    random_policy,
    single_steps,
    table_policy,
    walks,
)

from offbench import rng
from offbench.errors import UserError
from offbench.ope import fqe as module
from offbench.ope.decisions import DRAWS, ROWS, Decisions, decide, stacked
from offbench.ope.fqe import FQE, fit, measure

GAMMA = 0.9
SMALL = FQE(gamma=GAMMA, n_updates=1200, hidden=(32,), lr=3e-3, batch_size=64, polyak_rate=0.15)
UNIFORM = np.full((4, 3), 1 / 3)
FIRST, SECOND = greedy([0, 1, 2, 0]), greedy([2, 2, 1, 1])
EXACT = 1e-2


def keys(n: int) -> torch.Tensor:
    return torch.stack([rng.key(i) for i in range(n)])


def chosen(policies: np.ndarray, data) -> Decisions:
    """The decisions of deterministic tabular policies, each state's action in one draw."""
    action = torch.as_tensor(policies, dtype=torch.float32)[:, data.obs.argmax(1)]
    return Decisions(action[:, None], None)


@cache
def case(name: str):
    """(data, decisions, exact values at the starts (N, E))"""
    mdp = {
        "one policy's own walks": random_mdp(0),
        "walks of another policy, cut after 5 steps": random_mdp(0),
        "walks with terminals": random_mdp(1, terminals=True),
        "chance": random_mdp(2, k=4),
        "chance and terminals": random_mdp(3, k=4, terminals=True),
        "a policy that draws": random_mdp(4, k=2, terminals=True),
    }[name]
    policies = np.stack([FIRST, SECOND])
    if name == "one policy's own walks":
        data, starts = walks(mdp, FIRST, 4, 40)
        policies = FIRST[None]
    elif "walks" in name:
        data, starts = walks(mdp, UNIFORM, 200, 5)
    else:
        data, starts = single_steps(mdp)
    decisions = chosen(policies, data)
    if name == "a policy that draws":
        # half of the draws one action, half another
        policies = (FIRST + SECOND)[None] / 2
        decisions = Decisions(decisions.action.transpose(0, 1), None)
    want = np.stack([mdp.start_values(p, GAMMA, starts) for p in policies])
    return data, decisions, want


CASES = (
    "one policy's own walks",
    "walks of another policy, cut after 5 steps",
    "walks with terminals",
    "chance",
    "chance and terminals",
    "a policy that draws",
)


def error(name: str, fit=fit, fqe=SMALL) -> float:
    data, decisions, want = case(name)
    found = fit(fqe, data, decisions, keys=keys(len(want)))
    return float(np.abs(found.start_values.numpy() - want).max())


@pytest.mark.parametrize("name", CASES)
def test_values_at_the_starts_are_exact(name):
    assert error(name) < EXACT


def test_a_time_limit_taken_for_a_terminal_is_far_off():
    name = "walks of another policy, cut after 5 steps"
    data, decisions, want = case(name)
    ended = torch.arange(len(data.last)) == data.last - 1
    found = fit(SMALL, data._replace(terminal=ended), decisions, keys=keys(2))
    assert np.abs(found.start_values.numpy() - want).min() > 10 * EXACT


MUTANTS = {
    "bootstrap subtracted": ("batch.reward + batch.discount", "batch.reward - batch.discount"),
    "the action of the same state": (
        'batch.extras["next_row"]\n            chosen',
        "row_of(batch)\n            chosen",
    ),
    "another policy's action": (
        "self.decided(state.policy, k",
        "self.decided(0 * state.policy, k",
    ),
    "no bootstrap": ("batch.discount * next_q", "0 * batch.discount * next_q"),
    "a bootstrap after a terminal": ("batch.discount * next_q", "self.gamma * next_q"),
    "the recorded next action": ("for action in next_action]", "for action in [batch.action]]"),
    "values in another unit": (
        "return self.scale * _by_blocks(lambda part: many",
        "return _by_blocks(lambda part: many",
    ),
    "the target never moves": ("polyak(state.target, critic, self.polyak_rate)", "state.target"),
    "bounds of half the horizon": (
        "horizon = scale * (1 - gamma)",
        "horizon = 4 * scale * (1 - gamma)",
    ),
    "rewards in their own unit": ("reward=data.reward / scale", "reward=data.reward"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_found(name):
    old, new = MUTANTS[name]
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{old!r} is no longer in the source once"
    mutant = types.ModuleType("offbench.ope.mutant")
    mutant.row_of = lambda batch: batch.extras["next_row"] - 1
    sys.modules[mutant.__name__] = mutant
    try:
        exec(source.replace(old, new), mutant.__dict__)
    finally:
        del sys.modules[mutant.__name__]
    own = mutant.FQE(**vars(SMALL))
    assert any(error(name, mutant.fit, own) > 5 * EXACT for name in (CASES[2], CASES[1]))


# --- plans --------------------------------------------------------------------------------------

PLANS = np.array([[0, 1, 2], [2, 2, 0], [1, 0, 1], [0, 0, 2]])


@pytest.mark.parametrize("lengths", [[3, 3, 3, 3], [1, 3, 2, 2]])
def test_a_plan_is_worth_what_its_executed_steps_are(lengths):
    mdp, lengths = random_mdp(5, terminals=True), np.array(lengths)
    data, starts = walks(mdp, UNIFORM, 400, 9)
    policy, state = table_policy(PLANS, None if (lengths == 3).all() else lengths)
    decisions = decide(policy, state, data, keys=keys(1), steps=3)
    assert (decisions.length is None) == bool((lengths == 3).all())
    more = FQE(gamma=GAMMA, n_updates=1500, hidden=(64, 64), lr=3e-3, polyak_rate=0.3)
    found = fit(more, data, decisions, keys=keys(1)).start_values[0].numpy()
    want = plan_values(mdp, PLANS, lengths, GAMMA)[starts]
    assert np.abs(found - want).max() < EXACT
    # the steps of a plan that are not executed are worth nothing
    all_three = plan_values(mdp, PLANS, np.full(4, 3), GAMMA)[starts]
    assert (lengths == 3).all() or np.abs(found - all_three).max() > 10 * EXACT


# --- decisions ----------------------------------------------------------------------------------


def test_decisions_are_those_of_the_policy_at_each_row_whatever_the_block():
    obs = torch.eye(4)[torch.arange(ROWS + 7) % 4]
    data = case("chance")[0]._replace(obs=obs)
    policy, state = acting(np.stack([FIRST, SECOND]))
    # it needs the key for nothing
    sure = policy._replace(act=lambda s, step, m, key: (step.obs @ s, m))
    found = decide(sure, state, data, keys=keys(2), steps=1)
    assert found.action.shape == (2, 1, ROWS + 7, 3) and found.length is None
    want = torch.stack(
        [torch.as_tensor(p, dtype=torch.float32)[obs.argmax(1)] for p in (FIRST, SECOND)]
    )
    assert torch.equal(found.action[:, 0], want)


def test_a_policy_that_draws_is_asked_several_times_and_draws_as_it_says():
    policies = np.stack([random_policy(0), random_policy(1)])
    data, _ = walks(random_mdp(0), UNIFORM, 150, 5)
    policy, state = acting(policies)
    found = decide(policy, state, data, keys=keys(2), steps=1)
    assert found.draws == DRAWS
    where = data.obs.argmax(1)
    share = np.stack([found.action[:, :, where == s].mean((1, 2)).numpy() for s in range(4)], 1)
    assert np.abs(share - policies).max() < 0.06
    assert not torch.equal(found.action[:, 0], found.action[:, 1])


def test_policies_of_one_draw_and_of_several_go_into_one_stack():
    one = Decisions(torch.rand(2, 1, 5, 3), None, 3)
    several = Decisions(torch.rand(1, 4, 5, 3), torch.full((1, 4, 5), 2), 3)
    both = stacked([one, several])
    assert both.action.shape == (3, 4, 5, 3) and both.length.shape == (3, 4, 5)
    assert (both.length[:2] == 3).all() and (both.length[2] == 2).all()
    assert torch.equal(both.action[0, 3], one.action[0, 0])
    assert stacked([one, one]).length is None


def test_a_policy_is_worth_the_same_alone_and_in_a_stack():
    data, decisions, _ = case("chance")
    both = fit(SMALL, data, decisions, keys=keys(2)).start_values
    alone = fit(SMALL, data, Decisions(decisions.action[1:], None), keys=keys(2)[1:])
    assert torch.allclose(both[1:], alone.start_values, atol=1e-3)


def test_a_decision_that_is_not_finite_is_refused():
    policy, state = acting(FIRST[None])
    broken = policy._replace(act=lambda s, step, m, key: (step.obs[..., :3] * torch.nan, m))
    with pytest.raises(UserError, match="not finite"):
        decide(broken, state, case("chance")[0], keys=keys(1), steps=1)


# --- bounds, settings ---------------------------------------------------------------------------


def test_bounds_are_those_of_rewards_like_the_recorded_ones():
    data, _ = single_steps(random_mdp(2, k=4))
    scale, (low, high) = measure(data, GAMMA)
    rewards = data.reward[data.valid]
    assert low * scale == pytest.approx(float(rewards.min()) / (1 - GAMMA), rel=1e-5)
    assert high * scale == pytest.approx(float(rewards.max()) / (1 - GAMMA), rel=1e-5)
    above = data._replace(reward=torch.where(data.valid, data.reward + 5, 0.0))
    assert measure(above, GAMMA)[1][0] > 0
    # an episode may end before any reward
    ended = above._replace(terminal=data.valid & (torch.arange(len(data.last)) == data.last - 1))
    assert measure(ended, GAMMA)[1][0] == 0
    assert measure(data, 1.0)[1] == (-np.inf, np.inf)


def test_a_fit_that_is_to_stop_stops():
    data, decisions, _ = case("chance")
    steps = []
    assert (
        fit(SMALL, data, decisions, keys=keys(2), pause=lambda n: steps.append(n) or n >= 3) is None
    )
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("name, value", [("gamma", 1.5), ("n_updates", 0), ("lr", -1.0)])
def test_a_setting_out_of_range_is_refused(name, value):
    with pytest.raises(UserError, match=f"fqe.{name}"):
        FQE(**{name: value})
