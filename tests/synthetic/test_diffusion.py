"""Policy-guided diffusion: the loss against its formula, the sampler where the best denoiser is known, what is learned."""

import inspect
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.data.replay import Episode, from_episodes
from offbench.errors import UserError
from offbench.synthetic import diffusion
from offbench.synthetic.diffusion import Denoiser
from offbench.training.step import to_device, unstack

SMALL = Denoiser(
    length=8, features=32, levels=2, n_updates=800, batch_size=32, lr=5e-3, average=0.8, steps=24
)


def dataset(n=12, steps=20, *, terminal=True):
    """A point pushed to the right by its action: s' = s + a / 4, reward s, at whose end the world ends."""
    g = np.random.default_rng(0)
    episodes = []
    for _ in range(n):
        action = g.uniform(-0.5, 0.9, (steps, 1))
        obs = np.concatenate([g.normal(0, 1, (1, 1)), action / 4]).cumsum(0)
        obs = np.concatenate([obs, np.ones_like(obs) * 3 - obs], 1)
        ends = (np.arange(steps) == steps - 1) & terminal
        episodes.append(Episode(obs, action, obs[:-1, 0], ends))
    return from_episodes(episodes)


# --- training ------------------------------------------------------------------------------------


def test_the_loss_is_its_formula():
    model = diffusion.untrained(SMALL, dataset())
    net = tree_map(torch.Tensor.double, model.net)
    window = rng.normal(rng.key(1), (6, 8, 5), torch.float64)
    key = rng.key(3)
    k_sigma, k_noise = rng.split(key)
    sigma = torch.exp(-1.2 + 1.2 * rng.normal(k_sigma, (6,), torch.float64))
    noise = rng.normal(k_noise, (6, 8, 5), torch.float64)
    total = 0.0
    for i, s in enumerate(sigma.tolist()):
        x = window[i] + s * noise[i]
        inner = diffusion.unet.apply(
            net, x / math.sqrt(s * s + 1), torch.tensor(0.25 * math.log(s), dtype=torch.float64)
        )
        denoised = x / (s * s + 1) + s / math.sqrt(s * s + 1) * inner
        total += ((denoised - window[i]) ** 2).sum() * (s * s + 1) / s**2
    found = diffusion.loss(net, window, key)
    assert float(found) == pytest.approx(float(total / window.numel()), rel=1e-10)


def test_windows_begin_where_enough_observations_follow():
    data = dataset(n=2, steps=9)
    starts = diffusion.window_starts(data, 8).nonzero().squeeze(1).tolist()
    # ten observations: rows 0 to 9 and 10 to 19
    assert starts == [0, 1, 2, 10, 11, 12]
    assert diffusion.step_vectors(data)[8].tolist()[-1] == 1.0


def test_a_minibatch_is_standardised_windows_and_nothing_else():
    data = dataset(n=2, steps=9)
    model, step, _ = diffusion.problem(SMALL, data)
    window = step.gather(torch.tensor([[1, 12], [2, 10]]))
    assert window.shape == (2, 2, 8, 5)
    raw = model.scale.raw(window)[0, 1]
    assert torch.allclose(raw, diffusion.step_vectors(data)[12:20], atol=1e-5)
    window = diffusion.step_vectors(data)[data.valid]
    scaled = model.scale.standardised(window)
    assert torch.allclose(scaled.mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(scaled.std(0, correction=0), torch.ones(5), atol=1e-5)


def test_a_learning_rate_rises_from_a_tenth_and_falls_to_zero():
    rate = diffusion.learning_rate(torch.arange(101.0), 100).tolist()
    assert rate[0] == pytest.approx(0.1) and rate[10] == 1.0 and rate[100] == pytest.approx(0.0)
    assert rate[5] == pytest.approx(0.55) and rate[55] == pytest.approx(0.5)


@pytest.fixture(scope="module")
def trained():
    return diffusion.train(SMALL, dataset(n=60))


def test_samples_obey_the_dynamics_of_the_data(trained):
    rolled = trained.rollouts(rng.key(7)[None], 200)
    moved = rolled.obs[0, :, 1:, 0] - rolled.obs[0, :, :-1, 0]
    wanted = rolled.action[0, :, :-1, 0] / 4
    # a quarter of the spread of actions would be 0.1
    assert (moved - wanted).abs().mean() < 0.06
    assert (rolled.obs[0].sum(-1) - 3).abs().mean() < 0.08
    assert torch.corrcoef(torch.stack([moved.flatten(), wanted.flatten()]))[0, 1] > 0.7


def test_steps_into_a_terminal_are_learned(trained):
    rolled = trained.rollouts(rng.key(7)[None], 400)
    ends = rolled.terminal[0, :, :-1]
    # the last transition of one window in 14 of an episode of 21 observations
    assert 0.005 < ends.any(1).float().mean() < 0.2
    # no other was seen to end
    assert ends[:, -1].sum() > 0.7 * ends.sum()
    none = diffusion.untrained(SMALL, dataset(n=20, terminal=False))
    assert not none.rollouts(rng.key(7)[None], 100).terminal.any()


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"synthetic.length=30 must be a multiple of 4"):
        Denoiser(length=30)
    with pytest.raises(UserError, match=r"synthetic.features=12 must be a multiple of 8"):
        Denoiser(features=12)


# --- sampling, where the best denoiser of normal data is known ---------------------------------------


@pytest.fixture
def exact(monkeypatch):
    """A model of windows whose numbers are normal with mean 0.5 and deviation 0.6: D is the posterior mean."""

    def denoise(net, x, sigma):
        s2 = 0.36
        return (x * s2 + 0.5 * sigma**2) / (s2 + sigma**2)

    monkeypatch.setattr(diffusion, "denoise", denoise)
    return diffusion.untrained(SMALL, dataset())


# without noise on the way, all of a sample's spread is that of its first noise
@pytest.mark.parametrize("churn", [80.0, 0.0])
@pytest.mark.parametrize("second_order", [True, False])
def test_the_sampler_draws_from_the_distribution(exact, monkeypatch, second_order, churn):
    monkeypatch.setattr(diffusion, "_CHURN", churn)
    settings = Denoiser(
        **{**SMALL.__dict__, "steps": 64 if second_order else 512, "second_order": second_order}
    )
    x = exact._replace(settings=settings).sample(rng.key(5)[None], 400)
    assert float(x.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(x.std()) == pytest.approx(0.6, abs=0.03)


def test_noise_levels_are_those_of_karras():
    levels = diffusion.noise_levels(4)
    root = [(80 ** (1 / 7) + i / 3 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(4)]
    assert levels == pytest.approx([*root, 0.0]) and levels[3] == pytest.approx(0.002)


def likelihood(rolled, target):
    """Mean log-density of actions under N(target, 1), up to a constant."""
    return -0.5 * float((rolled.action - target).square().mean())


def test_guidance_raises_the_likelihood_of_the_policy_and_moves_nothing_else(exact):
    target = -0.7
    policy = lambda obs, number: torch.full((*obs.shape[:-1], 1), target)
    found = [
        exact.rollouts(rng.key(5)[None], 300, policy=policy, coefficient=c)
        for c in (0.0, 0.3, 1.0, 3.0)
    ]
    values = [likelihood(rolled, target) for rolled in found]
    assert values == sorted(values) and values[-1] > values[0] + 0.05
    # this denoiser treats numbers apart, so observations and rewards are those without guidance
    for rolled in found[1:]:
        assert torch.equal(rolled.obs, found[0].obs) and torch.equal(rolled.reward, found[0].reward)
    plain = exact.rollouts(rng.key(5)[None], 300)
    assert torch.equal(plain.action, found[0].action)


def test_the_gradient_of_guidance_is_that_of_the_likelihood(exact):
    model = exact._replace(scale=tree_map(torch.Tensor.double, exact.scale))
    x = rng.normal(rng.key(1), (1, 3, 8, 5), torch.float64)
    policy = lambda obs: obs[..., :1].tanh()
    action = x[..., 2:3].clone().requires_grad_()
    raw = action * model.scale.std[2] + model.scale.mean[2]
    wanted = policy(model.scale.raw(x)[..., :2])
    torch.distributions.Normal(wanted, 1.0).log_prob(raw.tanh()).sum().backward()
    i, n, c = 4, SMALL.steps, 0.7
    strength = c * (1 - i / n + 0.3 * math.sin(math.pi * (i + 1) / n))
    moved = model.guide(policy, c)(x, i)
    assert torch.allclose(moved[..., 2:3], x[..., 2:3] + strength * action.grad, atol=1e-12)
    assert torch.equal(moved[..., 3:], x[..., 3:]) and torch.equal(moved[..., :2], x[..., :2])


def test_a_seeds_rollouts_depend_on_its_key_alone(exact):
    keys = rng.split(rng.key(9), 3)
    together = exact.rollouts(keys, 20)
    for i in range(3):
        alone = exact.rollouts(keys[i : i + 1], 20)
        assert torch.allclose(together.obs[i], alone.obs[0], atol=1e-5)
    assert not torch.allclose(together.obs[0], together.obs[1])


def test_windows_that_are_denoised_one_after_another_differ(exact, monkeypatch):
    monkeypatch.setattr(diffusion, "TOGETHER", 5)
    keys = rng.split(rng.key(9), 2)
    rolled = exact.rollouts(keys, 12)
    assert rolled.obs.shape == (2, 12, 8, 2)
    assert len(rolled.obs[..., 0].flatten().unique()) == 2 * 12 * 8
    # and are the same in any stack
    alone = exact.rollouts(keys[1:], 12)
    assert torch.allclose(rolled.obs[1], alone.obs[0], atol=1e-5)


def test_windows_that_are_denoised_one_after_another_are_guided_to_other_draws(exact, monkeypatch):
    monkeypatch.setattr(diffusion, "TOGETHER", 5)
    asked = []

    def policy(obs, number):
        asked.append((number, obs.shape[1]))
        return obs[..., :1]

    exact.rollouts(rng.key(9)[None], 12, policy=policy, coefficient=1.0)
    # at every noise level but the last
    levels = SMALL.steps - 1
    wanted = [(done, 8 * n) for done, n in ((0, 5), (5, 5), (10, 2)) for _ in range(levels)]
    assert asked == wanted


def test_decoded_numbers_stay_in_the_recorded_range(exact):
    data = dataset()
    x = 30 * rng.normal(rng.key(2), (1, 50, 8, 5))
    rolled = exact.decode(x)
    assert rolled.obs.amin() >= data.obs.min() and rolled.obs.amax() <= data.obs.max()
    assert rolled.reward.amax() <= data.reward.max() and rolled.action.abs().max() <= 1


def test_an_observation_after_a_terminal_is_decoded_as_it_was_recorded():
    """It lies beyond all others, as a fallen robot does."""
    data, last = dataset(), ~dataset().valid
    # a reward and an action there are of no step
    far = data._replace(
        obs=torch.where(last[:, None], data.obs + 9, data.obs),
        reward=torch.where(last, 99.0, data.reward),
    )
    model = diffusion.untrained(SMALL, far)
    steps = diffusion.step_vectors(far)
    rolled = model.decode(model.scale.standardised(steps)[None, None])
    assert torch.allclose(rolled.obs[0, 0], far.obs, atol=1e-4)
    assert rolled.reward.max() <= data.reward[data.valid].max()
    # what is learned has the units of transitions
    for name in ("mean", "std"):
        was = getattr(diffusion.untrained(SMALL, data).scale, name)
        assert torch.equal(getattr(model.scale, name), was)


# --- on a device -----------------------------------------------------------------------------------


class Elsewhere(TorchDispatchMode):
    """Notes operations that have a tensor of the CPU, or make one there; on `meta` nothing can be read back."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        self.found += [str(func) for x in tensors if x.device.type != "meta"]
        return result


def test_nothing_of_a_sample_or_an_update_is_made_on_the_host(monkeypatch):
    data = dataset()
    model, _, start = to_device(diffusion.problem(SMALL, data), "meta")
    state = unstack(start.state, 0)
    keys = rng.split(rng.key(9, "meta"), 2)

    def copies(*given, **more):
        raise AssertionError("a number of Python is copied to the device, which waits for it")

    monkeypatch.setattr(torch, "as_tensor", copies)
    monkeypatch.setattr(torch, "tensor", copies)
    with torch.no_grad(), Elsewhere() as seen:
        policy = lambda obs, number: obs[..., :1].tanh()
        rolled = model.rollouts(keys, 3, policy=policy, coefficient=1.0)
        diffusion.learn(SMALL, state, keys.new_zeros(4, 8, 5, dtype=torch.float32), keys[0])
    assert rolled.obs.shape == (2, 3, 8, 2) and not seen.found


# --- mistakes made on purpose ------------------------------------------------------------------------


def with_noise_on_the_way(exact, monkeypatch):
    test_the_sampler_draws_from_the_distribution(exact, monkeypatch, True, 80.0)


def without_noise_on_the_way(exact, monkeypatch):
    test_the_sampler_draws_from_the_distribution(exact, monkeypatch, True, 0.0)


MISTAKES = [
    ("_MEAN, _STD = -1.2, 1.2", "_MEAN, _STD = -1.0, 1.2", test_the_loss_is_its_formula),
    ("_MEAN, _STD = -1.2, 1.2", "_MEAN, _STD = -1.2, 1.0", test_the_loss_is_its_formula),
    ("x * scale.square() +", "x * scale +", test_the_loss_is_its_formula),
    ("wide * scale * unet", "wide * unet", test_the_loss_is_its_formula),
    ("level.log() / 4", "level.log()", test_the_loss_is_its_formula),
    ("(1 + sigma**-2)", "(1 + sigma**-1)", test_the_loss_is_its_formula),
    (
        "row + length - 1 <= data.last",
        "row + length <= data.last",
        test_windows_begin_where_enough_observations_follow,
    ),
    (
        "row + length - 1 <= data.last",
        "row + length - 2 <= data.last",
        test_windows_begin_where_enough_observations_follow,
    ),
    (
        "ends = data.terminal",
        "ends = 0 * data.terminal",
        test_windows_begin_where_enough_observations_follow,
    ),
    (
        "rise = 0.1 + 0.9 * count / warm",
        "rise = count / warm",
        test_a_learning_rate_rises_from_a_tenth_and_falls_to_zero,
    ),
    (
        "max(n_updates // 10, 1)",
        "max(n_updates // 5, 1)",
        test_a_learning_rate_rises_from_a_tenth_and_falls_to_zero,
    ),
    ("[*((ends[0]", "[*((ends[1]", test_noise_levels_are_those_of_karras),
    (
        "** _RHO for s in share), 0.0]",
        "** _RHO for s in share)]",
        test_noise_levels_are_those_of_karras,
    ),
    (
        "x = sigmas[0] * noise(settings.steps)",
        "x = noise(settings.steps)",
        without_noise_on_the_way,
    ),
    ("                sigma = raised\n", "", with_noise_on_the_way),
    ("* _NOISE * noise(i)", "* 0.5 * noise(i)", with_noise_on_the_way),
    ("(slope + there) / 2", "slope", with_noise_on_the_way),
    ("0.3 * math.sin", "0.2 * math.sin", test_the_gradient_of_guidance_is_that_of_the_likelihood),
    (
        "* (1 - action.square()) * std",
        "* std",
        test_the_gradient_of_guidance_is_that_of_the_likelihood,
    ),
    (
        "* (1 - action.square()) * std",
        "* (1 - action.square())",
        test_the_gradient_of_guidance_is_that_of_the_likelihood,
    ),
    (
        "(wanted - action)",
        "(action - wanted)",
        test_guidance_raises_the_likelihood_of_the_policy_and_moves_nothing_else,
    ),
    ("action.tanh(),", "action,", test_decoded_numbers_stay_in_the_recorded_range),
    ("obs.clamp(low[0], high[0])", "obs", test_decoded_numbers_stay_in_the_recorded_range),
    (
        "reward.clamp(low[2], high[2])[..., 0]",
        "reward[..., 0]",
        test_decoded_numbers_stay_in_the_recorded_range,
    ),
    (
        "rng.normal_formula(rng.fold(keys, i)",
        "rng.normal_formula(rng.fold(keys * 0, i)",
        test_a_seeds_rollouts_depend_on_its_key_alone,
    ),
    (
        "self.sample(rng.fold(keys, done)",
        "self.sample(keys",
        test_windows_that_are_denoised_one_after_another_differ,
    ),
    (
        "for done in range(0, n, TOGETHER)",
        "for done in range(0, n, max(1, TOGETHER // len(keys)))",
        test_windows_that_are_denoised_one_after_another_differ,
    ),
]


@contextmanager
def with_source(old: str, new: str):
    """The module with one place of its source changed."""
    source, held = inspect.getsource(diffusion), dict(vars(diffusion))
    assert source.count(old) == 1, f"{old!r} is no longer in the source once"
    try:
        exec(compile(source.replace(old, new), diffusion.__file__, "exec"), vars(diffusion))
        yield
    finally:
        vars(diffusion).clear()
        vars(diffusion).update(held)


@pytest.mark.parametrize("old, new, check", MISTAKES)
def test_a_mistake_is_found(request, old, new, check):
    with with_source(old, new):
        given = {
            name: request.getfixturevalue(name) for name in inspect.signature(check).parameters
        }
        with pytest.raises(AssertionError):
            check(**given)


@pytest.mark.parametrize("check", dict.fromkeys(check for _, _, check in MISTAKES))
def test_without_a_mistake_nothing_is_found(request, check):
    with with_source("_RHO = 0.002, 80.0, 7.0", "_RHO = 0.002, 80.0, 7.0"):
        given = {
            name: request.getfixturevalue(name) for name in inspect.signature(check).parameters
        }
        check(**given)
