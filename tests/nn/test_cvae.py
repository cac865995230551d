"""The VAE of actions: bounds, its parts against torch's, and two modes that it keeps apart."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.modules import double, load, net
from torch.distributions import Independent, Normal, kl_divergence
from torch.func import grad, grad_and_value

from offbench import rng
from offbench.nn import cvae
from offbench.nn.optim import Adam

OBS, ACT, LATENT = 3, 2, 4
S, A = rng.normal(rng.key(1), (50, OBS)), rng.normal(rng.key(2), (50, ACT)).tanh()


def params(seed: int = 0, hidden: tuple[int, ...] = (8, 8)) -> cvae.Params:
    return cvae.init(rng.key(seed), OBS, ACT, hidden)


@given(scale=st.floats(0.1, 1e4), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_whatever_is_decoded_is_an_action(scale, seed):
    z = scale * rng.normal(rng.key(seed), (50, LATENT))
    made = cvae.decode(params(seed), scale * S, z)
    assert made.shape == (50, ACT) and made.abs().max() <= 1
    for action in (
        cvae.sample(params(seed), S, rng.key(seed)),
        cvae.reconstruct(params(seed), S, A, rng.key(3))[0],
    ):
        assert action.shape == (50, ACT) and action.abs().max() <= 1


def test_a_reconstruction_is_that_of_two_plain_networks():
    p = double(params())
    s, a = S.double(), A.double()
    encoder, decoder = net((OBS + ACT, 8, 8, 2 * LATENT)), net((OBS + LATENT, 8, 8, ACT))
    load(p["encoder"], encoder), load(p["decoder"], decoder)
    out = encoder(torch.cat([s, a], 1))
    z = out[:, :LATENT] + out[:, LATENT:].exp() * rng.normal(rng.key(3), (50, LATENT), s.dtype)
    got, mean, log_std = cvae.reconstruct(p, s, a, rng.key(3))
    assert torch.allclose(got, torch.tanh(decoder(torch.cat([s, z], 1))), atol=1e-12)
    assert torch.equal(mean, cvae.encode(p, s, a)[0])
    assert torch.allclose(torch.cat([mean, log_std], 1), out, atol=1e-12)


def test_the_deviation_is_clipped_and_the_mean_is_not():
    p = params()
    p["encoder"][-1]["b"] = torch.cat([torch.full((1, LATENT), x) for x in (-99.0, 99.0)], 1)
    mean, log_std = cvae.encode(p, S, A)
    assert (log_std == 15).all() and (mean < -90).all()
    p["encoder"][-1]["b"] = torch.full((1, 2 * LATENT), -99.0)
    assert (cvae.encode(p, S, A)[1] == -4).all()


def test_latents_of_the_prior_are_clipped_and_encoded_ones_are_not():
    p = params(hidden=())
    # decodes the first two numbers of z
    p["decoder"] = [{"w": torch.eye(OBS + LATENT, ACT).roll(OBS, 0), "b": torch.zeros(1, ACT)}]
    prior = cvae.sample(p, S, rng.key(3)).atanh()
    assert abs(prior.abs().max() - 0.5) < 1e-5 and (prior.abs() < 0.49).any()
    # 62 % of a standard normal lie beyond
    assert 0.5 < (prior.abs() > 0.499).float().mean() < 0.75
    assert cvae.reconstruct(p, S, A, rng.key(3))[0].atanh().abs().max() > 1


def test_the_divergence_is_torchs_as_a_mean_over_latents():
    mean, log_std = rng.normal(rng.key(4), (50, LATENT)), rng.normal(rng.key(5), (50, LATENT))
    of = lambda m, s: Independent(Normal(m, s), 1)
    whole = kl_divergence(
        of(mean, log_std.exp()), of(torch.zeros_like(mean), torch.ones_like(mean))
    )
    assert torch.allclose(cvae.kl(mean, log_std), whole / LATENT, rtol=1e-5)
    assert cvae.kl(mean * 0, mean * 0).abs().max() == 0


def test_an_action_gets_a_gradient_through_its_reconstruction():
    of_action = lambda a: cvae.reconstruct(params(), S, a, rng.key(3))[0].sum()
    slope = grad(of_action)(A)
    step = 1e-3 * rng.normal_like(rng.key(6), A)
    moved = of_action(A + step) - of_action(A - step)
    assert slope.abs().max() > 1e-3
    assert torch.allclose(moved, 2 * (slope * step).sum(), rtol=1e-2, atol=1e-5)


def two_modes(key) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations (256, 1), and actions (256, 2) near one of two corners, whatever the observation."""
    k_side, k_noise, k_obs = rng.split(key, 3)
    side = (rng.uniform(k_side, (256, 1)) < 0.5).float() * 2 - 1
    action = 0.7 * side + 0.05 * rng.normal(k_noise, (256, 2))
    return rng.normal(k_obs, (256, 1)), action


def trained(use=cvae.reconstruct, steps: int = 400):
    """The parameters, and the squared error of every step."""
    p = cvae.init(rng.key(0), 1, 2, (32, 32))
    adam, errors = Adam(3e-3), []
    opt = adam.init(p)

    def loss(p, s, a, key):
        recon, mean, log_std = use(p, s, a, key)
        error = torch.square(recon - a).mean()
        return error + 0.05 * cvae.kl(mean, log_std).mean(), error

    for key in rng.split(rng.key(1), steps):
        k_batch, k_noise = rng.split(key)
        grads, (_, error) = grad_and_value(loss, has_aux=True)(p, *two_modes(k_batch), k_noise)
        p, opt = adam.step(grads, opt, p)
        errors.append(float(error))
    return p, errors


def test_two_modes_are_learned_and_both_are_kept():
    p, errors = trained()
    assert sum(errors[-20:]) < 0.1 * sum(errors[:20])
    s, a = two_modes(rng.key(9))
    recon, _, _ = cvae.reconstruct(p, s, a, rng.key(10))
    assert ((recon.sign() == a.sign()).all(1)).float().mean() > 0.98
    # nothing between them, and the prior has both although its latents are clipped
    drawn = cvae.sample(p, s, rng.key(11)).mean(1)
    near = [((drawn - mode).abs() < 0.25).float().mean() for mode in (-0.7, 0.7)]
    assert min(near) > 0.2 and sum(near) > 0.6


def test_a_decoder_that_is_told_nothing_of_the_action_learns_neither_mode():
    def told_nothing(p, s, a, key):
        mean, log_std = cvae.encode(p, s, a)
        return cvae.decode(p, s, 0 * mean), mean, log_std

    _, errors = trained(told_nothing)
    assert sum(errors[-20:]) > 0.8 * sum(errors[:20])
