"""Densities against torch.distributions, in float64."""

import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from offbench import rng
from offbench.nn.distributions import gaussian_log_prob, tanh_gaussian_sample

MEAN, LOG_STD, NOISE = (rng.normal(rng.key(i), (50, 3), torch.float64) for i in range(3))
NARROW = LOG_STD.clamp(max=0) - 1  # samples away from the bounds
BASE = Independent(Normal(MEAN, LOG_STD.exp()), 1)


def test_the_gaussian_density_is_torchs():
    assert torch.allclose(gaussian_log_prob(MEAN, LOG_STD, NOISE), BASE.log_prob(NOISE), atol=1e-12)


def test_a_squashed_sample_has_the_density_of_the_transformed_distribution():
    action, log_prob = tanh_gaussian_sample(0.3 * MEAN, NARROW, NOISE)
    base = Independent(Normal(0.3 * MEAN, NARROW.exp()), 1)
    want = TransformedDistribution(base, [TanhTransform()]).log_prob(action)
    assert torch.allclose(log_prob, want, atol=1e-8)


def test_far_out_densities_and_their_gradients_stay_finite():
    mean = torch.full((1, 3), 30.0, requires_grad=True)
    _, log_prob = tanh_gaussian_sample(mean, torch.zeros(3), torch.zeros(1, 3))
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and mean.grad.isfinite().all()


def test_a_narrow_samples_density_keeps_its_gradient():
    """With std e^-20, float32 cannot hold mean + std * noise, and (u - mean) / std would be wrong."""
    mean = torch.full((1, 1), 0.5, requires_grad=True)
    action, log_prob = tanh_gaussian_sample(mean, torch.full((1, 1), -20.0), torch.ones(1, 1))
    log_prob.sum().backward()
    assert torch.allclose(mean.grad, 2 * action, atol=1e-5)  # only the slope of tanh depends on it
    slope = torch.log(1 - action.detach().square()).sum()
    assert abs(log_prob.item() - (-0.5 + 20 - 0.918939 - slope.item())) < 1e-4
