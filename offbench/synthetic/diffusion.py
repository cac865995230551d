"""A diffusion model of recorded sub-trajectories, sampled towards a policy: policy-guided diffusion.

Jackson et al. (2024), https://arxiv.org/abs/2404.06356; EDM of Karras et al. (2022), https://arxiv.org/abs/2206.00364.

    window      x = (s_t, atanh a_t, r_t, d_t) for T steps of one episode, every number standardised
    denoiser    D(x; sigma) = x / (1 + sigma^2) + sigma / sqrt(1 + sigma^2) F(x / sqrt(1 + sigma^2), log(sigma) / 4)
    loss        (1 + 1 / sigma^2) |D(x + sigma n; sigma) - x|^2,  log sigma ~ N(-1.2, 1.2^2),  n ~ N(0, 1)
    guidance    at step i of N, before it: a <- a + c (1 - i/N + 0.3 sin(pi (i + 1)/N)) grad_a log N(a; pi(s), 1)
    decoded     next state = the next step's; terminal where d > 1/2

With c = 0 samples are like the data (SynthER of Lu et al., 2023, on sub-trajectories); a larger c moves actions
towards those of the policy pi, and states follow in later steps of denoising.

Differs from the authors' code (EmptyJackson/policy-guided-diffusion):

  - A window may end with an episode's last observation, followed by zeros, so that the step into a terminal state
    is learned; theirs cuts the last step of every window, which is the only one that can be terminal, when it
    decodes. Any step begins a window; theirs takes every eighth.
  - The first half of a Heun step begins where its noise was added; theirs before it.
  - Decoded numbers are kept within the recorded range. Rollouts have the length that was learned; theirs are asked
    for four times as many steps.
  - Every method is guided to N(pi(s), 1) around its evaluation action, as theirs guides deterministic policies.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from offbench import rng
from offbench.data.replay import ReplayData
from offbench.data.sampling import make_sampler
from offbench.errors import UserError
from offbench.nn import unet
from offbench.nn.optim import polyak
from offbench.ranges import Count, Fraction, Positive, check_ranges
from offbench.synthetic.rollouts import Actions, Rollouts
from offbench.training.fitting import NEVER, Fit, Stops, begin, run
from offbench.training.step import Carry, Draw, Input, Step, unstack
from offbench.types import Metrics

# of log sigma in training
_MEAN, _STD = -1.2, 1.2
_SIGMA_MIN, _SIGMA_MAX, _RHO = 0.002, 80.0, 7.0
# noise added while sampling, at noise levels in between: of all steps together, and its scale
_CHURN, _CHURN_FROM, _CHURN_TO, _NOISE = 80.0, 0.05, 50.0, 1.003
# actions at the bounds
_LARGEST_ACTION = 0.999
# windows of a seed that are denoised together; a number of the stack's would tie a seed's draws to the others
TOGETHER = 256


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Settings of the model: network, training, and how it is sampled."""

    # steps of a window, a multiple of 2 ** (levels - 1)
    length: Count = 32
    features: Count = 1024
    levels: Count = 3
    # the authors count epochs; this is our choice
    n_updates: Count = 100_000
    batch_size: Count = 32
    lr: Positive = 2e-3
    # the average of the weights that samples: share kept at every tenth update
    average: Fraction = 0.995
    # noise levels of a sample
    steps: Count = 256
    # two evaluations for a noise level instead of one
    second_order: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, "synthetic")
        if self.features % unet.GROUPS:
            raise UserError(
                f"synthetic.features={self.features} must be a multiple of {unet.GROUPS}"
            )
        if self.length % (halves := 2 ** (self.levels - 1)):
            raise UserError(
                f"synthetic.length={self.length} must be a multiple of {halves}, as synthetic.levels={self.levels}"
            )


class Scale(NamedTuple):
    """Mean, deviation and range of the D = O + A + 2 numbers of a step, (D,) each."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def standardised(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def raw(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean


class State(NamedTuple):
    fit: Fit
    # weights averaged over updates
    average: unet.Params


class Model(NamedTuple):
    """A trained denoiser of a dataset."""

    net: unet.Params
    scale: Scale
    settings: Denoiser
    obs_dim: int

    def rollouts(
        self, keys: Tensor, n: int, *, policy: Actions | None = None, coefficient: float = 0.0
    ) -> Rollouts:
        """n sub-trajectories for each of N seeds, guided by `coefficient` to the actions of `policy`.

        Args:
            keys: (N,); a seed's rollouts are a function of its key and its policy.
        """

        def part(done: int) -> Tensor:
            guide = None
            if policy and coefficient:
                guide = self.guide(lambda obs: policy(obs, done), coefficient)
            return self.sample(rng.fold(keys, done), min(TOGETHER, n - done), guide)

        return self.decode(torch.cat([part(done) for done in range(0, n, TOGETHER)], 1))

    def sample(
        self, keys: Tensor, n: int, guide: "Callable[[Tensor, int], Tensor] | None" = None
    ) -> Tensor:
        """(N, n, T, D) standardised windows; `guide(x, i)` moves them before step i."""
        settings, shape = self.settings, [n, self.settings.length, len(self.scale.mean)]
        sigmas = noise_levels(settings.steps)
        noise = lambda i: rng.normal_formula(rng.fold(keys, i), shape, self.scale.mean.dtype)
        x = sigmas[0] * noise(settings.steps)
        most = min(_CHURN / settings.steps, math.sqrt(2) - 1)
        for i, (sigma, following) in enumerate(pairwise(sigmas)):
            if guide and i < settings.steps - 1:
                x = guide(x, i)
            if _CHURN_FROM <= sigma <= _CHURN_TO:
                raised = sigma * (1 + most)
                x = x + math.sqrt(raised**2 - sigma**2) * _NOISE * noise(i)
                sigma = raised
            x = self._step(x, sigma, following)
        return x

    def _step(self, x: Tensor, sigma: float, following: float) -> Tensor:
        """From one noise level to the next, by Euler's or Heun's method."""
        slope = (x - denoise(self.net, x, sigma)) / sigma
        end = x + (following - sigma) * slope
        if not (self.settings.second_order and following):
            return end
        there = (end - denoise(self.net, end, following)) / following
        return x + (following - sigma) * (slope + there) / 2

    def guide(
        self, policy: Callable[[Tensor], Tensor], coefficient: float
    ) -> Callable[[Tensor, int], Tensor]:
        """Moves actions of noised windows (N, n, T, D) along the gradient of the policy's log-likelihood."""
        steps, a = self.settings.steps, slice(self.obs_dim, len(self.scale.mean) - 2)
        std = self.scale.std[a]

        def move(x: Tensor, i: int) -> Tensor:
            strength = 1 - i / steps + 0.3 * math.sin(math.pi * (i + 1) / steps)
            raw = self.scale.raw(x)
            wanted = policy(raw[..., : self.obs_dim].flatten(1, 2)).unflatten(1, x.shape[1:3])
            action = raw[..., a].tanh()
            # of log N(tanh(mean + std x); wanted, 1)
            gradient = (wanted - action) * (1 - action.square()) * std
            parts = [x[..., : a.start], x[..., a] + coefficient * strength * gradient]
            return torch.cat([*parts, x[..., a.stop :]], -1)

        return move

    def decode(self, x: Tensor) -> Rollouts:
        """Standardised windows (N, R, T, D) as rollouts of T - 1 transitions."""
        obs, action, reward, end = _split(self.scale.raw(x), self.obs_dim)
        low, high = (_split(side, self.obs_dim) for side in (self.scale.low, self.scale.high))
        return Rollouts(
            obs.clamp(low[0], high[0]),
            action.tanh(),
            reward.clamp(low[2], high[2])[..., 0],
            end.clamp(low[3], high[3])[..., 0] > 0.5,
        )


def denoise(net: unet.Params, x: Tensor, sigma: Tensor | float) -> Tensor:
    """The denoised window (..., T, D) at noise level sigma, a number or (...)."""
    if not isinstance(sigma, Tensor):
        # filled on the device, without a copy from the host
        sigma = torch.full((), sigma, dtype=x.dtype, device=x.device)
    level = sigma.expand(x.shape[:-2])
    wide = level[..., None, None]
    scale = torch.rsqrt(1 + wide.square())
    return x * scale.square() + wide * scale * unet.apply(net, x * scale, level.log() / 4)


def noise_levels(steps: int) -> list[float]:
    """Of a sample: `steps` from 80 to 0.002, then 0 (Karras et al., equation 5)."""
    ends = [side ** (1 / _RHO) for side in (_SIGMA_MAX, _SIGMA_MIN)]
    share = [i / max(steps - 1, 1) for i in range(steps)]
    return [*((ends[0] + s * (ends[1] - ends[0])) ** _RHO for s in share), 0.0]


def loss(net: unet.Params, window: Tensor, key: Tensor) -> Tensor:
    """() weighted denoising error of standardised windows (B, T, D)."""
    k_sigma, k_noise = rng.split(key)
    sigma = (_MEAN + _STD * rng.normal(k_sigma, window.shape[:1], window.dtype)).exp()
    noised = window + sigma[:, None, None] * rng.normal_like(k_noise, window)
    error = torch.square(denoise(net, noised, sigma) - window)
    return (error * (1 + sigma**-2)[:, None, None]).mean()


def train(settings: Denoiser, data: ReplayData, *, stops: Stops = NEVER) -> Model:
    """A denoiser of a dataset's sub-trajectories, trained where the data are. Raises Interrupted."""
    model, step, start = problem(settings, data)
    found = run(step, start, settings.n_updates, stops=stops)
    return model._replace(net=unstack(found.average, 0))


def problem(settings: Denoiser, data: ReplayData) -> tuple[Model, Step, Carry]:
    """The untrained model of a dataset, one step of its training and the state before the first."""
    model, steps = untrained(settings, data), step_vectors(data)
    sampler = make_sampler(window_starts(data, settings.length))

    def draw(key: Tensor) -> Draw:
        k_rows, k_update = rng.split(key)
        return Draw(sampler(k_rows, settings.batch_size), k_update)

    def gather(start: Tensor) -> Tensor:
        row = start[..., None] + torch.arange(settings.length, device=start.device)
        return model.scale.standardised(steps[row])

    def update(state: State, given: Input) -> tuple[State, Metrics]:
        return learn(settings, state, given.batch, given.key)

    start = begin([State(Fit.start(model.net), model.net)], rng.key(0, data.obs.device)[None])
    return model, Step(draw, gather, update), start


def learn(settings: Denoiser, state: State, window: Tensor, key: Tensor) -> tuple[State, Metrics]:
    """One update on standardised windows (B, T, D)."""
    rate = learning_rate(state.fit.opt.count.to(window.dtype), settings.n_updates)
    own = lambda net: loss(net, window, key)
    fit, value = state.fit.descend(own, settings.lr, rate)
    tenth = (fit.opt.count % 10 == 0).to(value.dtype)
    average = polyak(state.average, fit.net, tenth * (1 - settings.average))
    return State(fit, average), {"loss": value}


def untrained(settings: Denoiser, data: ReplayData) -> Model:
    """A denoiser of a dataset before its first update, on the CPU; its scale is where the data are."""
    n_obs = data.obs.shape[1]
    sizes = {"features": settings.features, "levels": settings.levels}
    net = unet.init(rng.key(0), n_obs + data.action.shape[1] + 2, **sizes)
    return Model(net, fit_scale(data), settings, n_obs)


def learning_rate(count: Tensor, n_updates: int) -> Tensor:
    """() share of the highest rate after `count` updates: linear from 0.1 over a tenth of them, then a cosine to 0."""
    warm = max(n_updates // 10, 1)
    rise = 0.1 + 0.9 * count / warm
    fall = (1 + torch.cos(math.pi * ((count - warm) / max(n_updates - warm, 1)).clamp(0, 1))) / 2
    return torch.where(count < warm, rise, fall)


def check_length(settings: Denoiser, data: ReplayData, name: str) -> None:
    """Raises UserError where no episode has as many observations as a window."""
    if not window_starts(data, settings.length).any():
        longest = int(torch.bincount(data.episode).max())
        raise UserError(
            f"synthetic.length={settings.length}: every episode of {name} is shorter (the longest has {longest}"
            " observations)"
        )


def window_starts(data: ReplayData, length: int) -> Tensor:
    """(S,) bool: rows from which an episode has `length` observations."""
    row = torch.arange(len(data.last), device=data.last.device)
    return row + length - 1 <= data.last


def step_vectors(data: ReplayData) -> Tensor:
    """(S, O + A + 2) observation, atanh of the action, reward and whether the environment ended the episode."""
    action = data.action.clamp(-_LARGEST_ACTION, _LARGEST_ACTION).atanh()
    ends = data.terminal.to(data.obs.dtype)
    return torch.cat([data.obs, action, data.reward[:, None], ends[:, None]], 1)


def fit_scale(data: ReplayData) -> Scale:
    """Mean, deviation and range over the recorded transitions; a number that never changes has the deviation 1.

    The range of observations is that of all of them, as the one after a terminal lies beyond the others.
    """
    steps, n_obs = step_vectors(data)[data.valid], data.obs.shape[1]
    std = steps.std(0, correction=0)
    low, high = steps.amin(0), steps.amax(0)
    low[:n_obs], high[:n_obs] = data.obs.amin(0), data.obs.amax(0)
    return Scale(steps.mean(0), torch.where(std > 0, std, 1.0), low, high)


def _split(x: Tensor, obs_dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Observation, action, reward and end of vectors (..., O + A + 2)."""
    return x[..., :obs_dim], x[..., obs_dim:-2], x[..., -2:-1], x[..., -1:]
