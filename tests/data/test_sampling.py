"""Draws follow their distribution, and trajectory weights equal the paper's formulas written out in numpy.

The statistical tests use a fixed seed; each would fail by chance for one seed in 10 000.
"""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import vmap

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, episode_returns, from_episodes
from offbench.data.sampling import (
    Categorical,
    Uniform,
    advantage_weights,
    make_sampler,
    return_weights,
    top_fraction,
)
from offbench.data.views import Chunk, NStep
from offbench.errors import UserError

ERROR_RATE = 1e-4


def follows(rows: torch.Tensor, p: torch.Tensor) -> bool:
    """A chi-square test of draws against probabilities; rows of probability 0 must not occur at all."""
    p, count = p.double(), torch.bincount(rows, minlength=len(p)).double()
    if count[p == 0].any():
        return False
    expected = p[p > 0] / p.sum() * len(rows)
    assert expected.min() > 5, "too few draws for a chi-square test"
    return stats.chisquare(count[p > 0].numpy(), expected.numpy()).pvalue > ERROR_RATE


def by_hand(lengths, returns_per_step, first_obs=None):
    """Episodes with chosen lengths and constant rewards."""
    r = np.random.default_rng(0)
    episodes = []
    for i, (n, reward) in enumerate(zip(lengths, returns_per_step, strict=True)):
        obs = r.normal(size=(n + 1, 2))
        if first_obs is not None:
            obs[0] = first_obs[i]
        episodes.append(
            Episode(obs, np.zeros((n, 1)), np.full(n, float(reward)), np.zeros(n, bool))
        )
    return from_episodes(episodes)


def probabilities(data, weights) -> np.ndarray:
    """Of each transition, from row weights."""
    w = weights.double()[data.valid].numpy()
    return w / w.sum()


def reference(data, temperature: float, baseline: bool) -> np.ndarray:
    """Probability of each transition by Hong et al. (2023): scores, min-max, softmax over transitions."""
    score, length, first = [], [], []
    for i in range(data.n_episodes):
        rows = (data.episode == i).nonzero().squeeze(1)
        score.append(sum(float(x) for x in data.reward[rows[:-1]]))
        length.append(len(rows) - 1)
        first.append(data.obs[rows[0]].double().numpy())
    score = np.array(score)
    if baseline:  # ordinary least squares with an intercept, by the normal equations
        x = np.column_stack([np.array(first), np.ones(len(first))])
        score = score - x @ np.linalg.solve(x.T @ x, x.T @ score)
    scaled = (score - score.min()) / (score.max() - score.min())
    per_transition = np.repeat(np.exp(scaled / temperature), length)
    return per_transition / per_transition.sum()


# --- draws


def test_uniform_draws_cover_the_support_evenly(data):
    view = NStep()
    sampler = make_sampler(view.support(data))
    assert isinstance(sampler, Uniform)
    assert follows(sampler(rng.key(0), 100_000), view.support(data).double())


def test_weighted_draws_follow_the_product_of_support_and_weights(data):
    view = Chunk(3)
    weights = return_weights(data, temperature=0.5)
    sampler = make_sampler(view.support(data), weights, torch.linspace(1, 2, len(data.last)))
    p = view.support(data) * weights * torch.linspace(1, 2, len(data.last))
    assert follows(sampler(rng.key(1), 400_000), p)


def test_the_chi_square_test_can_fail(data):
    rows = make_sampler(NStep().support(data))(rng.key(0), 100_000)
    slightly_off = NStep().support(data) * torch.linspace(1, 1.2, len(data.last))
    assert not follows(rows, slightly_off) and not follows(rows, Chunk(2).support(data).double())


def test_several_boolean_weights_are_intersected_and_stay_uniform(data):
    sampler = make_sampler(
        NStep().support(data), top_fraction(data, fraction=0.5), Chunk(2).support(data)
    )
    assert isinstance(sampler, Uniform)
    want = NStep().support(data) & top_fraction(data, fraction=0.5) & Chunk(2).support(data)
    table = want.nonzero().squeeze(1)
    assert torch.equal(sampler(rng.key(5), 500), table[rng.randint(rng.key(5), (500,), len(table))])


@pytest.mark.parametrize("p", [0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("n", [1, 2, 300])
def test_rows_found_in_runs_are_those_of_a_table_of_all_rows(n, p):
    mask = torch.from_numpy(np.random.default_rng(n).random(n) <= p)
    mask[n // 2] = True
    table, sampler = mask.nonzero().squeeze(1), make_sampler(mask)
    assert torch.equal(
        sampler(rng.key(n), 4000), table[rng.randint(rng.key(n), (4000,), len(table))]
    )
    with pytest.MonkeyPatch.context() as patch:  # every row is reached
        patch.setattr(rng, "randint", lambda key, shape, high: torch.arange(high))
        assert torch.equal(sampler(rng.key(0), 1), table)


def test_rows_of_weight_zero_are_never_drawn_at_either_end():
    sampler = make_sampler(torch.tensor([0.0, 0.0, 1.0, 0.0, 2.0, 0.0]))
    u = torch.tensor([0.5 * 2.0**-52, 1 / 3, 1 - 2.0**-53], dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rng, "uniform", lambda key, shape, dtype: u)
        assert sampler(rng.key(0), 3).tolist() == [2, 4, 4]


def test_the_largest_draw_stays_inside_for_any_total():
    u = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    totals = np.random.default_rng(0).uniform(0, 1e6, 200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rng, "uniform", lambda key, shape, dtype: u)
        for total in totals:
            sampler = make_sampler(torch.tensor([total, 0.0], dtype=torch.float64))
            assert sampler(rng.key(0), 1).tolist() == [0]


def test_draws_are_possible_above_the_limit_of_multinomial():
    n = 2**24 + 10
    sampler = Categorical(torch.arange(1, n + 1, dtype=torch.float64))
    rows = sampler(rng.key(0), 1000)
    assert rows.max() < n and abs(rows.double().mean() / n - 0.5) < 4 / np.sqrt(12 * 1000)


@pytest.mark.parametrize("weighted", [False, True])
def test_seeds_in_a_stack_draw_the_rows_they_draw_alone(data, weighted):
    weights = [return_weights(data, temperature=0.2)] * weighted
    sampler = make_sampler(NStep().support(data), *weights)
    keys = torch.stack([rng.key(s) for s in range(3)])
    assert torch.equal(
        vmap(lambda k: sampler(k, 50))(keys), torch.stack([sampler(k, 50) for k in keys])
    )


@pytest.mark.parametrize(
    "weights, words",
    [
        ([torch.zeros(3, dtype=torch.bool)], "no row of the dataset can start"),
        ([torch.zeros(3)], "not all zero"),
        ([torch.tensor([1.0, -1.0, 1.0])], ">= 0"),
        ([torch.tensor([1.0, float("nan"), 1.0])], "finite"),
        ([torch.tensor([1.0, float("inf"), 1.0])], "finite"),
    ],
)
def test_weights_that_are_no_distribution_are_refused(weights, words):
    with pytest.raises(UserError, match=words):
        make_sampler(*weights)


# --- trajectory weights


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_return_weights_equal_the_formula(data, temperature):
    got = probabilities(data, return_weights(data, temperature=temperature))
    assert np.allclose(got, reference(data, temperature, baseline=False), rtol=1e-9, atol=0)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_advantage_weights_equal_the_formula_with_normal_equations(data, temperature):
    got = probabilities(data, advantage_weights(data, temperature=temperature))
    assert np.allclose(got, reference(data, temperature, baseline=True), rtol=1e-7, atol=0)


@pytest.mark.parametrize("weights", [return_weights, advantage_weights])
def test_the_units_of_reward_do_not_matter(weights):
    """Trap 1: without min-max, a change of reward units changes the weights."""
    a = weights(by_hand([5] * 8, range(8)), temperature=0.1)
    b = weights(by_hand([5] * 8, [1000 * i - 7 for i in range(8)]), temperature=0.1)
    assert torch.allclose(a, b, rtol=1e-6) and np.isclose(
        float(a.max() / a.min()), np.exp(10), rtol=1e-6
    )


@pytest.mark.parametrize("weights", [return_weights, advantage_weights, top_fraction])
def test_data_without_rewards_cannot_be_weighed_by_returns(weights):
    """Otherwise `gcivl+rw` would be `gcivl`, and a tenth of the episodes an arbitrary tenth."""
    with pytest.raises(UserError, match="every reward of the dataset is 0"):
        weights(by_hand([5] * 3, [0, 0, 0]))


def test_probabilities_are_not_the_softmax_of_raw_returns():
    """Trap 2: that collapses to the best trajectory."""
    data = by_hand([10, 10], [1, 100])
    p = probabilities(data, return_weights(data, temperature=1.0))
    assert np.isclose(p[:10].sum(), 1 / (1 + np.e), rtol=1e-6)


def test_a_trajectorys_mass_grows_with_its_length():
    data = by_hand([30, 10], [1, 3])  # returns are equal, so only length differs
    p = probabilities(data, return_weights(data, temperature=0.1))
    assert np.isclose(p[:30].sum(), 0.75)


def test_one_very_bad_trajectory_flattens_the_others():
    """Trap 3, kept on purpose: it is the published method."""
    w = return_weights(by_hand([5] * 3, [1, 2, -1e6]), temperature=0.1)
    assert np.isclose(float(w[0] / w[6]), 1, atol=1e-4)


def test_sparse_success_outweighs_failure_by_the_whole_temperature():
    """Trap 4: returns of 0 and 1 differ by exp(1 / 0.1)."""
    w = return_weights(by_hand([4, 4, 1], [0, 0, 1]), temperature=0.1)
    assert np.isclose(float(w[-2] / w[0]), np.exp(10), rtol=1e-6)


def test_equal_returns_give_equal_weights():
    w = return_weights(by_hand([4, 8], [2, 1]), temperature=0.1)
    assert torch.equal(w, torch.full_like(w, float(w[0])))


def test_the_last_reward_of_an_episode_counts_and_padding_does_not():
    data = by_hand([2, 2, 2], [0, 0, 0])
    data = data._replace(
        reward=data.reward.index_put((torch.tensor([1, 5]),), torch.tensor([1.0, 50.0]))
    )
    w = return_weights(data, temperature=0.1)  # row 1 ends episode 0; row 5 is padding of episode 1
    assert w[0] > w[3] and w[3] == w[6]


def test_advantage_removes_what_the_first_observation_explains():
    first = np.random.default_rng(1).normal(size=(40, 2))
    noise = np.random.default_rng(2).normal(size=40)
    lucky = 3 * first[:, 0] - 2 * first[:, 1] + 5  # a return that the start explains completely
    data = by_hand([1] * 40, lucky + 1e-3 * noise, first)
    w = torch.log(advantage_weights(data, temperature=1.0)[data.valid]).numpy()
    assert abs(np.corrcoef(w, first[:, 0])[0, 1]) < 0.01 and np.corrcoef(w, noise)[0, 1] > 0.9


def test_advantage_is_defined_when_first_observations_repeat():
    data = by_hand([3, 3, 3], [1, 2, 3], [[1.0, 1.0]] * 3)
    assert torch.allclose(
        advantage_weights(data, temperature=0.1), return_weights(data, temperature=0.1)
    )


def test_weights_see_rewards_as_recorded_whatever_the_transforms(data):
    keep = lambda d: top_fraction(d, fraction=0.3)
    for weight in (return_weights, advantage_weights, keep):
        plain = make_pipeline(data, weights=[weight])
        changed = make_pipeline(
            data,
            weights=[weight],
            transforms={"reward_affine": {"scale": -3.0, "shift": 1.0}, "obs_norm": None},
        )
        a, b = (p.sampler(rng.key(0), 500) for p in (plain, changed))
        assert torch.equal(a, b)
        assert not torch.equal(plain.data.reward, changed.data.reward)


@pytest.mark.parametrize("weights", [return_weights, advantage_weights])
def test_temperatures_and_single_trajectories_are_refused_in_words(weights, data):
    with pytest.raises(UserError, match="temperature must be > 0"):
        weights(data, temperature=0.0)
    with pytest.raises(UserError, match="at least two trajectories"):
        weights(by_hand([5], [1]), temperature=0.1)


# --- the best episodes


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 1.0])
def test_the_best_trajectories_are_kept_by_count(data, fraction):
    returns = episode_returns(data).numpy()
    best = sorted(range(len(returns)), key=lambda i: -returns[i])[
        : max(1, int(np.ceil(fraction * len(returns) - 1e-9)))
    ]
    want = torch.tensor([int(e) in best for e in data.episode])
    assert torch.equal(top_fraction(data, fraction=fraction), want)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 1.0])
def test_the_best_trajectories_are_kept_until_they_hold_the_steps(data, fraction):
    returns, kept, steps = episode_returns(data).numpy(), [], 0
    for i in sorted(range(len(returns)), key=lambda i: -returns[i]):
        kept.append(i)
        steps += int((data.episode == i).sum()) - 1
        if steps >= fraction * data.n_transitions:
            break
    want = torch.tensor([int(e) in kept for e in data.episode])
    assert torch.equal(top_fraction(data, fraction=fraction, by="timesteps"), want)


def test_the_two_counts_differ_when_the_best_episodes_are_long():
    data = by_hand([1] * 9 + [91], [0] * 9 + [1])
    assert top_fraction(data, fraction=0.2).sum() == 92 + 2
    assert top_fraction(data, fraction=0.2, by="timesteps").sum() == 92


def test_a_tenth_of_ten_episodes_is_one():
    assert (
        top_fraction(by_hand([2] * 10, range(10)), fraction=0.1).tolist()
        == [False] * 27 + [True] * 3
    )


def test_fractions_and_counts_that_make_no_sense_are_refused(data):
    for fraction in (0.0, -0.1, 1.5):
        with pytest.raises(UserError, match=r"fraction must be in \(0, 1\]"):
            top_fraction(data, fraction=fraction)
    with pytest.raises(UserError, match="'trajectories' or 'timesteps', not 'steps'"):
        top_fraction(data, by="steps")
