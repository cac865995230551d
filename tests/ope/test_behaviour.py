"""Cloned behaviour policies: densities of recorded actions, and ratios of others to them."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from support.mdps import random_mdp, random_policy, walks
from support.mutants import finds, mutated_module

from offbench.data.replay import Episode, from_episodes
from offbench.ope import behaviour
from offbench.ope.behaviour import clone
from offbench.ope.fqe import FQE
from offbench.ope.weighted import wis
from offbench.training import fitting

SETTINGS = FQE(n_updates=1000, hidden=(32,), lr=3e-3, batch_size=256)
STD = np.array([0.1, 0.15])


def mean_at(obs: np.ndarray) -> np.ndarray:
    """(S, 2) what the behaviour does on average; observations lie around 50."""
    x = (obs - 50) / 20
    return np.concatenate([0.5 * np.sin(3 * x), 0.2 - 0.1 * x], 1)


def noisy(n: int = 4000):
    """Episodes of two steps: a third of the rows is a last observation, whose action is 0."""
    generator = np.random.default_rng(0)
    obs = 50 + 20 * generator.uniform(-1, 1, (n + n // 2, 1))
    action = mean_at(obs) + STD * generator.normal(size=(len(obs), 2))
    parts = [
        Episode(obs[i : i + 3], action[i : i + 2], np.zeros(2), np.zeros(2, bool))
        for i in range(0, len(obs), 3)
    ]
    return from_episodes(parts)


def test_densities_of_continuous_actions_are_those_they_were_drawn_with(code=behaviour):
    data = noisy()
    found = code.clone(data, SETTINGS, discrete=False)
    rows = data.valid
    action, mean = data.action[rows].numpy(), mean_at(data.obs[rows].numpy())
    density = lambda away: stats.norm(mean + away, STD).logpdf(action).sum(1)
    assert found.log_std.exp().numpy() == pytest.approx(STD, rel=0.03)
    assert np.abs(found.log_prob[rows].numpy() - density(0)).mean() < 0.12
    # the behaviour itself has ratios of 1, a shifted one those of the normal distribution
    same = torch.as_tensor(mean_at(data.obs.numpy()))[None]
    assert found.log_ratio(data.action, same)[rows].abs().mean() < 0.12
    moved = found.log_ratio(data.action, same + 0.1)[rows].numpy()
    assert np.abs(moved - (density(0.1) - density(0))).mean() < 0.15
    # of two draws the density is their mean
    two = found.log_ratio(data.action, torch.cat([same, same + 0.1]))[rows].numpy()
    both = np.logaddexp(density(0), density(0.1)) - math.log(2) - density(0)
    assert np.abs(two - both).mean() < 0.12


def test_probabilities_of_choices_are_those_they_were_drawn_with(code=behaviour):
    mu = random_policy(1)
    data, _ = walks(random_mdp(0), mu, 1500, 3)
    found = code.clone(data, SETTINGS, discrete=True)
    state, choice = data.obs[data.valid].argmax(1), data.action[data.valid].argmax(1)
    assert found.log_std is None
    assert np.abs(found.log_prob[data.valid].exp().numpy() - mu[state, choice]).mean() < 0.02


def test_ratios_are_those_of_the_draws(code=behaviour):
    """By hand: two rows, three draws of one action."""
    action = torch.tensor([[0.5], [0.0]])
    decided = torch.tensor([[[0.5], [0.2]], [[0.3], [0.0]], [[0.5], [-0.2]]])
    log_mu = torch.tensor([-0.7, 0.4])
    found = code.Behaviour(log_mu, torch.tensor([math.log(0.1)])).log_ratio(action, decided)
    pi = stats.norm(decided[..., 0].numpy(), 0.1).pdf(action[:, 0].numpy()).mean(0)
    assert found.numpy() == pytest.approx(np.log(pi) - log_mu.numpy(), abs=1e-5)
    # of choices the share of draws that are the recorded one, none of the second row
    action = torch.eye(3)[torch.tensor([1, 2])]
    decided = torch.eye(3)[torch.tensor([[1, 0], [1, 1], [0, 1]])]
    found = code.Behaviour(log_mu, None).log_ratio(action, decided)
    assert found.tolist() == pytest.approx([math.log(2 / 3) + 0.7, -math.inf])


def test_an_action_that_never_varies_has_a_density_all_the_same(code=behaviour):
    obs, action = np.ones((201, 1)), np.full((200, 1), 0.5)
    data = from_episodes([Episode(obs, action, np.zeros(200), np.zeros(200, bool))])
    found = code.clone(data, SETTINGS, discrete=False)
    assert float(found.log_std.exp()) == pytest.approx(1e-3, rel=1e-3)
    assert found.log_prob[data.valid].isfinite().all()


def test_the_mean_of_two_actions_is_neither_of_them(code=behaviour):
    """Three of four times 0.6, else -0.2: a mean of 0.4, with a deviation of 0.2 sqrt(3)."""
    obs, action = np.ones((201, 1)), np.where(np.arange(200) % 4 > 0, 0.6, -0.2)[:, None]
    data = from_episodes([Episode(obs, action, np.zeros(200), np.zeros(200, bool))])
    few = FQE(n_updates=300, hidden=(8,), lr=1e-2, batch_size=256)
    found = code.clone(data, few, discrete=False)
    want = stats.norm(0.4, 0.2 * 3**0.5).logpdf(action[:, 0])
    assert found.log_prob[data.valid].numpy() == pytest.approx(want, abs=0.02)


def test_wis_with_cloned_choices_is_what_the_policy_earns():
    mdp, pi = random_mdp(0), random_policy(2)
    data, _ = walks(mdp, random_policy(1), 4000, 3)
    found = clone(data, SETTINGS, discrete=True)
    # 64 draws in the proportions of the policy
    draws = [np.repeat(np.arange(3), _counts(p)) for p in pi]
    decided = torch.eye(3)[torch.as_tensor(np.stack(draws))][data.obs.argmax(1)].transpose(0, 1)
    made = wis(data, found.log_ratio(data.action, decided), 0.9)
    v = np.zeros(4)
    for _ in range(3):
        v = (pi * (mdp.reward + 0.9 * v[mdp.successor[..., 0]])).sum(1)
    assert float(made.terms.mean()) == pytest.approx(v.mean(), abs=0.06)
    assert made.effective > 300


def _counts(p: np.ndarray) -> np.ndarray:
    counts = np.round(64 * p).astype(int)
    counts[counts.argmax()] += 64 - counts.sum()
    return counts


CHECKS = (
    test_ratios_are_those_of_the_draws,
    test_densities_of_continuous_actions_are_those_they_were_drawn_with,
    test_probabilities_of_choices_are_those_they_were_drawn_with,
    test_an_action_that_never_varies_has_a_density_all_the_same,
    test_the_mean_of_two_actions_is_neither_of_them,
)

MUTANTS = {
    "all choices alike": ("(decided * action).sum(-1)", "decided.sum(-1)"),
    "probabilities for their logarithms": ("sum(-1).double().log()", "sum(-1).double()"),
    "a density of one dimension": (
        "gaussian_log_prob(decided.double(), self.log_std.double(), action.double())",
        "gaussian_log_prob(decided[..., :1].double(), self.log_std.double()[:1],"
        " action[..., :1].double())",
    ),
    "the mean of logarithms": ("torch.logsumexp(own, 0)", "own.mean(0) + math.log(len(decided))"),
    "the likeliest draw": ("torch.logsumexp(own, 0)", "own.amax(0)"),
    "a sum over draws": (" - math.log(len(decided))", ""),
    "no behaviour": (" - self.log_prob.double()", ""),
    "times the behaviour": (" - self.log_prob.double()", " + self.log_prob.double()"),
    "raw observations are learned from": ("ObsNorm.fit(data).data(data)", "data"),
    "raw observations are asked about": ("for obs in seen.obs.split", "for obs in data.obs.split"),
    "rows without an action": ("make_sampler(data.valid)", "make_sampler(data.valid | True)"),
    "the unlikeliest choices": (
        "return -(out.log_softmax(-1) * action)",
        "return (out.log_softmax(-1) * action)",
    ),
    "scores for likelihoods": (
        "return -(out.log_softmax(-1) * action)",
        "return -(out.softmax(-1) * action)",
    ),
    "absolute errors": ("torch.square(out - action).sum(-1)", "(out - action).abs().sum(-1)"),
    "errors of one dimension": (
        "torch.square(out - action).sum(-1)",
        "torch.square(out - action)[..., 0]",
    ),
    "actions of the wrong sign": ("torch.square(out - action)", "torch.square(out + action)"),
    "hardly any rate": ("lr=settings.lr", "lr=0.01 * settings.lr"),
    "hardly any updates": (
        "run(step, start, settings.n_updates)",
        "run(step, start, settings.n_updates // 20)",
    ),
    "another network": (
        "net = unstack(run(step, start, settings.n_updates).net, 0)",
        "net = nets.mlp_init(key, sizes)",
    ),
    "scores of choices": (
        "Behaviour((out.log_softmax(-1) * data.action)",
        "Behaviour((out * data.action)",
    ),
    "deviations of rows without an action": (
        "(out - data.action)[data.valid]",
        "(out - data.action)",
    ),
    "deviations of all dimensions": (".square().mean(0).sqrt()", ".square().mean().sqrt()"),
    "absolute deviations": (".square().mean(0).sqrt()", ".abs().mean(0)"),
    "variances": (".square().mean(0).sqrt()", ".square().mean(0)"),
    "no least deviation": (".clamp(min=1e-3)", ""),
    "deviations for their logarithms": ("clamp(min=1e-3).log()", "clamp(min=1e-3)"),
    "densities around the actions": (
        "Behaviour(gaussian_log_prob(out, log_std, data.action)",
        "Behaviour(gaussian_log_prob(data.action, log_std, data.action)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_found(name):
    assert finds(mutated_module(behaviour, *MUTANTS[name]), CHECKS)


OF_THE_FIT = {
    "nothing is learned": ("polyak(self.net, stepped, rate)", "self.net"),
    "a full rate to the end": ("polyak(self.net, stepped, rate)", "stepped"),
    "a rate that rises": ("(1 - self.opt.count / n_updates)", "(self.opt.count / n_updates)"),
    "half of the updates": (
        "while engine.step < n_updates",
        "n_updates //= 2\n    while engine.step < n_updates",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_THE_FIT)
def test_a_mistake_in_the_fit_is_found(name):
    code = mutated_module(behaviour, "import math", "import math")
    fit = mutated_module(fitting, *OF_THE_FIT[name])
    code.regression, code.run, code.Fit = fit.regression, fit.run, fit.Fit
    assert finds(code, CHECKS)
