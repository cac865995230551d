"""A transform changes the data once and the policy to match; a pipeline puts the parts in order."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from offbench import rng
from offbench.data import transforms
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, blocks, episode_returns, from_episodes
from offbench.data.sampling import return_weights
from offbench.data.transforms import ObsNorm, RewardAffine, fit_transform
from offbench.data.views import Chunk, NStep
from offbench.errors import UserError
from offbench.testing.contract import SPEC
from offbench.types import Policy, TimeStep

KEY = torch.zeros(1, 1, dtype=torch.int64)
FIRST = torch.ones(1, 1, dtype=torch.bool)


def echo() -> Policy:
    """Acts by its observation."""
    return Policy(
        lambda n_seeds, n_envs: "carry", lambda state, step, carry, key: (step.obs, carry)
    )


def seen(obs: torch.Tensor, first: bool = True) -> TimeStep:
    return TimeStep(obs, torch.zeros(1, 1), FIRST if first else ~FIRST)


def test_observations_get_zero_mean_and_unit_variance_over_transitions(data):
    new = fit_transform(data, "obs_norm", eps=0.0).data(data)
    obs = new.obs[data.valid].double()
    assert obs.mean(0).abs().max() < 1e-6 and (obs.std(0, unbiased=False) - 1).abs().max() < 1e-5


def test_the_statistics_ignore_last_observations_but_those_are_normalised_too():
    e = Episode(
        np.array([[0.0], [2.0], [1000.0]]), np.zeros((2, 1)), np.zeros(2), np.zeros(2, bool)
    )
    data = from_episodes([e])
    norm = ObsNorm.fit(data)
    assert norm.mean.item() == 1 and np.isclose(norm.std.item(), 1 + 1e-3)
    assert torch.allclose(norm.data(data).obs[:, 0] * 1.001, torch.tensor([-1.0, 1.0, 999.0]))


def test_a_constant_feature_does_not_blow_up(data):
    data = data._replace(obs=torch.cat([data.obs, torch.full((len(data.obs), 1), 5.0)], 1))
    assert ObsNorm.fit(data).data(data).obs[:, -1].abs().max() < 1e-3
    with pytest.raises(UserError, match="feature 5 of the observations never changes"):
        fit_transform(data, "obs_norm", eps=0)
    with pytest.raises(UserError, match=r"transforms.obs_norm.eps=-1 must be at least 0"):
        fit_transform(data, "obs_norm", eps=-1)


@pytest.mark.parametrize("size", [1, 7, 100, 10**6])
def test_statistics_made_in_blocks_are_those_of_all_rows(size, data64, monkeypatch):
    monkeypatch.setattr(transforms, "blocks", partial(blocks, size=size))
    shifted = data64._replace(obs=data64.obs + 1e4)  # a sum of squares would lose eight digits
    norm, obs = ObsNorm.fit(shifted, eps=0.0), shifted.obs[shifted.valid]
    assert torch.allclose(norm.mean, obs.mean(0), rtol=1e-13)
    assert torch.allclose(norm.std, obs.std(0, unbiased=False), rtol=1e-8)


@pytest.mark.parametrize("view", [NStep(), NStep(3), Chunk(3)], ids=str)
def test_lazy_transforms_give_the_batches_of_eager_ones_bit_for_bit(view, data):
    named = {"reward_affine": {"scale": 2.0, "shift": -1.0}, "obs_norm": None, "reward_range": None}
    eager, lazy = (
        make_pipeline(data, view=view, transforms=named, needs=["next_action"], lazy=x)
        for x in (False, True)
    )
    assert lazy.data.obs._obs is data.obs and eager.data.obs.shape == lazy.data.obs.shape
    a, b = (tree_leaves(p.sample(rng.key(3))) for p in (eager, lazy))
    assert len(a) == 6 and all(map(torch.equal, a, b))
    assert str(eager.transforms) == str(lazy.transforms)


def test_observations_are_normalised_twice_in_order_when_lazy(data):
    twice = ObsNorm(torch.ones(5), torch.full((5,), 4.0))
    for lazy in (False, True):
        obs = twice.data(ObsNorm.fit(data).data(data, lazy=lazy), lazy=lazy).obs
        want = (ObsNorm.fit(data)._apply(data.obs) - 1) / 4
        assert torch.equal(obs[torch.arange(9)], want[:9]) and torch.equal(obs[2:5], want[2:5])


def test_the_policy_sees_observations_as_the_method_did(data):
    norm = ObsNorm.fit(data)
    action, carry = norm.policy(echo()).act(None, seen(data.obs[:3]), "mine", KEY)
    assert torch.equal(action, norm.data(data).obs[:3]) and carry == "mine"


def test_rewards_change_per_step_and_padding_stays_zero(data):
    new = RewardAffine(2.0, -1.0).data(data)
    assert torch.equal(new.reward[data.valid], 2 * data.reward[data.valid] - 1)
    assert not new.reward[~data.valid].any()


def test_a_shift_is_right_under_n_steps(data):
    rows = Chunk(3).support(data).nonzero().squeeze(1)
    view = NStep(3, 0.5)
    raw, new = (
        view.batch(data, rows).reward,
        view.batch(RewardAffine(1.0, -1.0).data(data), rows).reward,
    )
    assert torch.allclose(new - raw, torch.full_like(raw, -(1 + 0.5 + 0.25)), atol=1e-5)


def test_the_return_range_becomes_the_scale(data):
    returns = episode_returns(fit_transform(data, "reward_range", scale=10.0).data(data))
    assert np.isclose(float(returns.max() - returns.min()), 10, rtol=1e-5)


def test_equal_returns_have_no_range_and_scale_nothing():
    e = Episode(np.zeros((2, 1)), np.zeros((1, 1)), np.ones(1), np.zeros(1, bool))
    with pytest.raises(UserError, match="every trajectory has the return 1, so there is no range"):
        fit_transform(from_episodes([e, e]), "reward_range")


def test_standard_rewards_have_zero_mean_and_unit_variance_over_transitions(data):
    new = fit_transform(data, "reward_standard").data(data)
    reward = new.reward[data.valid].double()
    assert abs(reward.mean()) < 1e-6 and abs(reward.std(unbiased=False) - 1) < 1e-5
    assert not new.reward[~data.valid].any()  # rows without a step do not count and are not shifted


def test_equal_rewards_have_no_deviation():
    e = Episode(np.zeros((3, 1)), np.zeros((2, 1)), np.full(2, 4.0), np.zeros(2, bool))
    with pytest.raises(UserError, match="every reward is 4, so there is no deviation"):
        fit_transform(from_episodes([e]), "reward_standard")


def test_a_misspelt_transform_names_the_nearest(data):
    with pytest.raises(UserError, match="did you mean 'obs_norm'"):
        fit_transform(data, "obs_nrom")


def test_transforms_apply_in_order_each_fitted_on_the_one_before(data):
    options = {"reward_affine": {"scale": 5.0}, "reward_range": {"scale": 1.0}}
    forward = make_pipeline(data, transforms=options).data
    backward = make_pipeline(data, transforms=dict(reversed(options.items()))).data
    spread = lambda d: float(episode_returns(d).max() - episode_returns(d).min())
    assert np.isclose(spread(forward), 1, rtol=1e-4) and np.isclose(spread(backward), 5, rtol=1e-4)


def test_names_alone_are_options_enough(data):
    a, b = (
        make_pipeline(data, transforms=["obs_norm"]),
        make_pipeline(data, transforms={"obs_norm": None}),
    )
    assert torch.equal(a.data.obs, b.data.obs) and len(a.transforms) == 1


def test_the_data_given_are_not_changed(data):
    before = [x.clone() for x in data]
    pipeline = make_pipeline(
        data, weights=[return_weights], transforms=["obs_norm", "reward_range"]
    )
    pipeline.sample(rng.key(0))
    assert all(torch.equal(a, b) for a, b in zip(before, data, strict=True))


def test_a_pipeline_acts_with_transforms_inside_and_the_view_outside(data):
    """The method plans from normalised observations; the environment gets single raw-size actions."""
    pipeline = make_pipeline(data, view=Chunk(2), transforms=["obs_norm"])
    asked = []

    def act(state, step, carry, key):
        asked.append(step.obs)
        return torch.arange(4.0).expand(1, 1, 4), carry

    policy = pipeline.policy(Policy(lambda n_seeds, n_envs: None, act))
    carry, obs, actions = policy.init(1, 1), data.obs[:1][None], []
    for t in range(3):
        action, carry = policy.act(None, seen(obs, t == 0), carry, KEY)
        actions.append(action.flatten().tolist())
    assert actions == [[0, 1], [2, 3], [0, 1]]
    assert len(asked) == 2 and torch.equal(asked[0][0], pipeline.data.obs[:1])


def test_transforms_are_asked_at_every_step(data):
    """They stand between the environment and the view, which may keep what it has seen of each step."""
    calls = []

    class Counting(ObsNorm):
        def _apply(self, obs):
            calls.append(1)
            return obs

    norm = Counting(*ObsNorm.fit(data))
    pipeline = make_pipeline(data, view=Chunk(2))._replace(transforms=(norm,))
    policy = pipeline.policy(
        Policy(lambda n, e: None, lambda s, step, c, k: (torch.zeros(1, 1, 4), c))
    )
    carry = policy.init(1, 1)
    for t in range(4):
        _, carry = policy.act(None, seen(data.obs[:1][None], t == 0), carry, KEY)
    assert len(calls) == 4


def test_two_transforms_of_the_observation_reach_the_policy_in_training_order(data):
    doubled = ObsNorm(torch.zeros(5), torch.full((5,), 0.5))
    shifted = ObsNorm(torch.ones(5), torch.ones(5))
    pipeline = make_pipeline(data)._replace(transforms=(doubled, shifted))
    action, _ = pipeline.policy(echo()).act(None, seen(torch.ones(1, 1, 5)), None, KEY)
    assert action.unique().tolist() == [1]  # 2 * 1 - 1, not 2 * (1 - 1)


def test_a_pipeline_draws_batches_and_counts_minibatches_in_front(data):
    pipeline = make_pipeline(data, view=Chunk(2), batch_size=8)
    assert pipeline.spec(SPEC).action_dim == 2 * SPEC.action_dim
    one, two = pipeline.sample(rng.key(0)), pipeline.sample(rng.key(0), 2)
    assert one.obs.shape == (8, 5) and one.action.shape == (8, 4) and one.reward.shape == (8,)
    assert (
        two.obs.shape == (2, 8, 5)
        and two.action.shape == (2, 8, 4)
        and two.discount.shape == (2, 8)
    )
    assert two.extras == ()
    sixteen = make_pipeline(data, view=Chunk(2), batch_size=16).sample(rng.key(0))
    assert torch.equal(two.obs.flatten(0, 1), sixteen.obs)


def test_a_policy_sees_rewards_as_its_data_had_them_and_none_at_the_start():
    policy = Policy(lambda n, e: None, lambda state, step, carry, key: (step.reward, carry))
    step = TimeStep(torch.zeros(1, 2, 1), torch.tensor([[3.0, 3.0]]), torch.tensor([[True, False]]))
    reward, _ = RewardAffine(2.0, -1.0).policy(policy).act(None, step, None, KEY)
    assert reward.tolist() == [[0.0, 5.0]]
