"""Gaussian mixture policies: densities and gradients of the formulas, and two ways to act that stay two."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from support.mutants import mutated
from torch.func import grad

from offbench import rng
from offbench.methods.awac import AWAC
from offbench.methods.bc import BC
from offbench.methods.bc_mix import BCMix
from offbench.methods.td3_bc import TD3BC
from offbench.methods.td3_bc_mix import TD3BCMix
from offbench.nn import mixture, nets
from offbench.types import Batch, Spec

SPEC = Spec(2, 1, 0.0, 1)
SMALL = {"hidden": (16,), "lr": 3e-2}


def some_policy(b: int = 5, k: int = 3, a: int = 2) -> mixture.Mixture:
    keys = rng.split(rng.key(3), 3)
    weight = rng.normal(keys[0], (b, k)).double().softmax(-1)
    mean = 0.3 * rng.normal(keys[1], (b, k, a)).double()
    return mixture.Mixture(weight.log(), mean, 0.2 * rng.normal(keys[2], (k, a)).double() - 2)


def test_the_density_is_the_weighted_sum_of_normal_densities():
    policy = some_policy()
    action = torch.linspace(-0.5, 0.5, 10, dtype=torch.float64).view(5, 2)
    weight, std = policy.log_weight.exp().numpy(), policy.log_std.exp().numpy()
    want = [
        sum(
            weight[b, k] * np.prod(stats.norm.pdf(action[b].numpy(), policy.mean[b, k], std[k]))
            for k in range(3)
        )
        for b in range(5)
    ]
    np.testing.assert_allclose(mixture.log_prob(policy, action).exp().numpy(), want, rtol=1e-12)


def test_samples_follow_the_density():
    policy = some_policy(b=1, a=1)
    # so narrow that nothing is clipped
    policy = policy._replace(log_std=policy.log_std - 1)
    many = mixture.Mixture(
        policy.log_weight.expand(20_000, -1), policy.mean.expand(20_000, -1, -1), policy.log_std
    )
    drawn = mixture.sample(many, rng.key(0))[:, 0].numpy()
    weight, std = policy.log_weight.exp()[0].numpy(), policy.log_std.exp()[:, 0].numpy()
    mean = policy.mean[0, :, 0].numpy()
    cdf = lambda x: sum(w * stats.norm.cdf(x, m, s) for w, m, s in zip(weight, mean, std))
    assert stats.kstest(drawn, cdf).pvalue > 1e-4


def test_the_gradient_of_the_expectation_is_that_of_the_sum_over_components():
    """Of weights and means, against differences of E[Q] computed by quadrature."""
    q = lambda a: torch.sin(3 * a[..., 0]) + a[..., 0] ** 2
    nodes, areas = np.polynomial.hermite_e.hermegauss(40)
    nodes, areas = torch.tensor(nodes), torch.tensor(areas / areas.sum())

    def exact(logit: torch.Tensor, mean: torch.Tensor, std: float) -> torch.Tensor:
        each = (q((mean[:, None] + std * nodes)[..., None]) * areas).sum(-1)
        return (logit.softmax(-1) * each).sum()

    logit = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64)
    mean, std, n = torch.tensor([-0.5, 0.1, 0.6], dtype=torch.float64), 0.1, 50_000

    def estimated(logit: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        policy = mixture.Mixture(
            logit.log_softmax(-1).expand(n, -1),
            mean[None, :, None].expand(n, -1, -1),
            torch.full((3, 1), np.log(std), dtype=torch.float64),
        )
        return mixture.expected(policy, q, mixture.actions(policy, rng.key(1))).mean()

    want = grad(exact, argnums=(0, 1))(logit, mean, std)
    got = grad(estimated, argnums=(0, 1))(logit, mean)
    # the standard error of 50,000 draws is below 1e-3
    torch.testing.assert_close(got, want, rtol=0, atol=5e-3)
    assert want[0].abs().max() > 0.05 and want[1].abs().max() > 0.3


def test_every_component_keeps_a_share_and_starts_at_a_place_of_its_own():
    params = mixture.init(rng.key(0), (2, 16, 3), 4)
    policy = mixture.at(params, torch.zeros(1, 2))
    assert torch.pdist(policy.mean[0]).min() > 0.1
    extreme = params.net[-1]["b"].clone()
    extreme[..., -4:] = torch.tensor([100.0, 0, 0, 0])
    pushed = params._replace(net=[*params.net[:-1], params.net[-1] | {"b": extreme}])
    least = mixture.at(pushed, torch.zeros(1, 2)).log_weight.exp().amin()
    assert torch.isclose(least, torch.tensor(mixture.FLOOR / 4))


def batch_of(n: int = 64, seed: int = 0) -> Batch:
    keys = rng.split(rng.key(seed), 5)
    obs, next_obs = (rng.normal(k, (n, 2)).double() for k in keys[:2])
    action = (2 * rng.uniform(keys[2], (n, 1)) - 1).double()
    reward, discount = rng.normal(keys[3], (n,)).double(), 0.9 * torch.ones(n).double()
    return Batch(obs, action, reward, discount, next_obs, ())


def test_one_component_is_td3_bc():
    """The loss and its gradient, with the same network behind both."""
    batch = batch_of()
    plain = TD3BC(hidden=(8,)).init(rng.key(1), SPEC)
    double = lambda tree: torch.utils._pytree.tree_map(lambda x: x.double(), tree)
    actor, critic = double(plain.actor), double(plain.critic)
    # a second output, the logit of the only component, changes nothing
    last = {k: torch.cat([x, torch.ones_like(x)], -1) for k, x in actor[-1].items()}
    mixed = mixture.Params([*actor[:-1], last], torch.zeros(1, 1, dtype=torch.float64))
    ours = TD3BCMix(components=1, hidden=(8,))
    one = grad(lambda p: ours._actor_loss(p, critic, batch)[0])(mixed)
    two = grad(lambda p: TD3BC(hidden=(8,))._actor_loss(p, critic, batch)[0])(actor)
    torch.testing.assert_close(one.net[0], two[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(one.net[1]["w"][:, :1], two[1]["w"], rtol=1e-12, atol=1e-14)


def test_targets_are_expectations_over_the_components():
    batch, method = batch_of(), TD3BCMix(components=3, hidden=(8,), policy_noise=0.0)
    state = torch.utils._pytree.tree_map(
        lambda x: x.double() if x.is_floating_point() else x, method.init(rng.key(1), SPEC)
    )
    policy = mixture.at(state.target_actor, batch.next_obs)
    want = torch.zeros(2, 64, dtype=torch.float64)
    for b in range(64):
        for k in range(3):
            x = torch.cat([batch.next_obs[b], policy.mean[b, k]])[None]
            q = nets.mlp(state.target_critic, x)[:, 0, 0]
            want[:, b] += policy.log_weight[b, k].exp() * q
    target = batch.reward + batch.discount * want.amin(0)
    q = nets.mlp(state.critic, torch.cat([batch.obs, batch.action], -1)).squeeze(-1)
    expected = ((q - target) ** 2).mean(-1).sum()
    got, _ = method._critic_loss(state.critic, state, batch, rng.key(0))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


# --- a bandit of two actions


def bandit(method, paid=(1.0, 1.0), n_updates: int = 150) -> mixture.Mixture | torch.Tensor:
    """The policy after training on actions near -0.7 and 0.7, as often, which pay `paid`, at one state."""
    keys = rng.split(rng.key(7), 2)
    n = 64
    right = torch.arange(n) % 2 == 1
    action = torch.where(right, 0.7, -0.7)[:, None] + 0.05 * rng.normal(keys[0], (n, 1))
    reward = torch.where(right, paid[1], paid[0])
    obs = torch.zeros(n, 2)
    batch = Batch(obs, action, reward, torch.zeros(n), obs, ())
    if hasattr(method, "minibatches"):
        batch = torch.utils._pytree.tree_map(lambda x: torch.stack([x, x]), batch)
    state = method.init(rng.key(0), SPEC)
    for i in range(n_updates):
        state, _ = method.update(state, batch, rng.fold(keys[1], i))
    act = method.act(state, obs, keys[1])
    assert act.shape == (n, 1)
    return mixture.at(state.actor, obs) if isinstance(state.actor, mixture.Params) else act


TWO = {
    "bc_mix": BCMix(**SMALL),
    "awac": AWAC(**SMALL, components=4),
    "td3_bc_mix": TD3BCMix(**SMALL, alpha=0.1),
}


def shares(policy: mixture.Mixture) -> tuple[float, float]:
    """Weights of the components that act on the left, and on the right, as far as the data do."""
    weight, mean = policy.log_weight.exp(), policy.mean[..., 0]
    left, right = ((mean < -0.55) * weight).sum(-1), ((mean > 0.55) * weight).sum(-1)
    return float(left.mean()), float(right.mean())


@pytest.mark.parametrize("name", TWO)
def test_two_ways_to_act_are_kept_and_one_of_them_is_taken(name):
    policy = bandit(TWO[name])
    left, right = shares(policy)
    assert min(left, right) > 0.3
    assert (mixture.best(policy).abs() > 0.5).all()


def test_one_gaussian_acts_between_them():
    assert (bandit(BC(**SMALL, gaussian=True)).abs() < 0.2).all()


@pytest.mark.parametrize("name", ["awac", "td3_bc_mix"])
@pytest.mark.parametrize("better", [0, 1])
def test_the_way_that_pays_is_taken(name, better):
    paid = (1.0, 0.0) if better == 0 else (0.0, 1.0)
    method = dataclasses.replace(TWO[name], **({"alpha": 1.0} if name == "td3_bc_mix" else {}))
    policy = bandit(method, paid)
    assert ((mixture.best(policy) > 0) == bool(better)).all()
    assert shares(policy)[better] > 0.6


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # the mean of all components is cloned
        (
            "- error / wide).logsumexp(-1)",
            "* 0 - error.mean(-1, keepdim=True) / wide).logsumexp(-1)",
        ),
        ("bc_error = -wide", "bc_error = wide"),
    ],
)
def test_a_broken_loss_does_not_keep_two_ways(old, new):
    broken = mutated(TD3BCMix, old, new)
    policy = bandit(broken(**SMALL, alpha=0.1))
    assert not (min(shares(policy)) > 0.3 and (mixture.best(policy).abs() > 0.5).all())


def test_weights_learn_from_values(monkeypatch):
    """Without the derivative of the weights the component of the larger value is hardly preferred."""
    learner = TD3BCMix(**SMALL, alpha=1.0)
    right = shares(bandit(learner, (0.0, 1.0)))[1]
    expected = mixture.expected
    frozen = lambda policy, of, a: expected(
        policy._replace(log_weight=policy.log_weight.detach()), of, a
    )
    monkeypatch.setattr(mixture, "expected", frozen)
    assert right > shares(bandit(learner, (0.0, 1.0)))[1] + 0.1
