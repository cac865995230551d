"""Synthetic sub-trajectories as a data source of any method: `synthetic=pgd`, `synthetic=world_model`.

A source is trained on the recorded episodes before the method is, once for all methods and seeds, and writes the pool of every
seed (`offbench.training.mixing`) before the first update and after every `every` of them, from that seed's
policy at the time.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.func import vmap

from offbench import rng
from offbench.data.pipeline import Pipeline
from offbench.data.replay import ReplayData, fingerprint
from offbench.data.views import NStep
from offbench.errors import UserError
from offbench.ope.fqe import FQE
from offbench.ope.model import Model, follow, problem
from offbench.ranges import Count, Fraction, NonNegative, Positive, Widths, check_ranges
from offbench.synthetic import diffusion
from offbench.synthetic.diffusion import Denoiser
from offbench.synthetic.kept import trained_once
from offbench.synthetic.rollouts import Actions, Rollouts, transitions
from offbench.training.fitting import NEVER, Stops, run
from offbench.training.loop import Refresh
from offbench.training.mixing import Mixed
from offbench.training.step import Carry, Swept, bind, to_device
from offbench.types import Policy, Spec, TimeStep

# separates the keys of rollouts from those of updates
_ROLLOUTS = 0x5D6E


class Source(Protocol):
    """Draws rollouts of N seeds with keys (N,) and their policies; `learned`: these have been updated."""

    def __call__(self, keys: Tensor, policy: Actions, learned: bool) -> Rollouts: ...


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """What all sources have: how much a method learns from them, and how often they are asked anew."""

    # settings that a source's training does not depend on
    of_draws: ClassVar[tuple[str, ...]] = ("every", "share", "rollouts")

    # updates of one pool
    every: Count = 10_000
    # of a minibatch: 240 of 256
    share: Fraction = 0.9375
    # sub-trajectories of a pool, for each seed
    rollouts: Count = 8192
    # observations of one
    length: Count = 32
    # of the model that they come from
    n_updates: Count = 100_000

    def mix(self, method: Any) -> Mixed:
        """The method on minibatches that are part synthetic."""
        size = self.rollouts * (self.length - 1)
        return Mixed(method=method, share=self.share, size=size)

    def check(self, pipeline: Pipeline, spec: Spec, name: str) -> None:
        """Raises UserError where the elements that a method learns from are no transitions; `name` is the data's."""
        if not isinstance(pipeline.view, NStep):
            raise UserError("synthetic sub-trajectories are cut into transitions; use view=nstep")
        if spec.discrete:
            raise UserError(
                "synthetic actions are continuous; use synthetic=none for discrete ones"
            )
        view, size = pipeline.view, pipeline.batch_size
        # of the shortest element that is sure to exist: its steps, and the action after them
        least = 1 + (1 if view.pad and not pipeline.extras else view.n) + bool(pipeline.extras)
        if self.length < least:
            raise UserError(
                f"synthetic.length={self.length} must be at least {least}: a transition of this method spans"
                f" {least} observations"
            )
        if not 0 < round(self.share * size) < size:
            raise UserError(
                f"synthetic.share={self.share:g} of batch_size={size} is {round(self.share * size)}: a minibatch has"
                " synthetic and recorded elements"
            )

    def source(self, data: ReplayData, folder: Path, stops: Stops = NEVER) -> Source:
        """Trains on raw data where they are, or reads from `folder` what was. Raises Interrupted."""
        raise NotImplementedError

    def kept(self, data: ReplayData, folder: Path) -> Path:
        """The file of the network of these data and settings; it need not exist yet."""
        trained = {k: v for k, v in asdict(self).items() if k not in self.of_draws}
        what = f"{type(self).__module__}.{type(self).__qualname__}"
        about = json.dumps({"of": what, "data": fingerprint(data), **trained}, sort_keys=True)
        return folder / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.safetensors"


@dataclass(frozen=True, kw_only=True)
class PolicyGuidedDiffusion(Synthetic, Denoiser):
    """A diffusion model of sub-trajectories, guided to the policy that learns (`offbench.synthetic.diffusion`).

    Before the first update nothing is guided. `coefficient=0` never does: SynthER (Lu et al., 2023) on
    sub-trajectories.
    """

    of_draws = (*Synthetic.of_draws, "steps", "second_order", "coefficient")
    # of guidance; the authors give no value
    coefficient: NonNegative = 0.25

    def check(self, pipeline: Pipeline, spec: Spec, name: str) -> None:
        super().check(pipeline, spec, name)
        diffusion.check_length(self, pipeline.data, name)

    def source(self, data: ReplayData, folder: Path, stops: Stops = NEVER) -> Source:
        empty = diffusion.untrained(self, data)
        train = lambda stops: diffusion.train(self, data, stops=stops).net
        net = trained_once(self.kept(data, folder), empty.net, train, stops)
        model = empty._replace(net=to_device(net, data.obs.device))

        def roll(keys: Tensor, policy: Actions, learned: bool) -> Rollouts:
            strength = self.coefficient if learned else 0.0
            return model.rollouts(keys, self.rollouts, policy=policy, coefficient=strength)

        return roll


@dataclass(frozen=True, kw_only=True)
class WorldModel(Synthetic):
    """An ensemble that imagines step after step with the policy, from recorded states (`offbench.ope.model`).

    The autoregressive source that policy-guided diffusion is compared with. Each sub-trajectory follows one
    member. Nothing is penalised.
    """

    of_draws = (*Synthetic.of_draws, "length")
    hidden: Widths = (256, 256)
    batch_size: Count = 256
    lr: Positive = 1e-3

    def __post_init__(self) -> None:
        check_ranges(self, "synthetic")

    @property
    def fit(self) -> FQE:
        """Networks and budget, as those of an evaluation."""
        own = ("hidden", "n_updates", "batch_size", "lr")
        return FQE(**{name: getattr(self, name) for name in own})

    def source(self, data: ReplayData, folder: Path, stops: Stops = NEVER) -> Source:
        empty, step, start = problem(data, self.fit)
        train = lambda stops: run(step, start, self.n_updates, stops=stops).net
        net = trained_once(self.kept(data, folder), empty.net, train, stops)
        model = empty._replace(net=to_device(net, data.obs.device))
        starts = data.valid.nonzero().squeeze(1)

        def roll(keys: Tensor, policy: Actions, learned: bool) -> Rollouts:
            del learned
            rows = start_rows(keys, self.rollouts, len(starts))
            return imagine(model, data.obs[starts[rows]], policy, self.length)

        return roll


def start_rows(keys: Tensor, n: int, high: int) -> Tensor:
    """(N, n) int64 in [0, high), drawn with keys (N,).

    float32 has 2**23 numbers between 0 and 1: fewer than the rows of a large set, of which some would never be
    drawn, and one beyond the last by rounding.
    """
    dtype = torch.float32 if high <= 1 << 23 else torch.float64
    return (rng.uniform(keys[:, None], (1, n), dtype) * high).long()


def imagine(model: Model, obs: Tensor, policy: Actions, length: int) -> Rollouts:
    """Sub-trajectories of a learned model from observations (N, R, O), of `length` observations."""
    steps = []
    for t in range(length):
        action = policy(obs, t)
        following, paid, end = follow(model, obs, action)
        steps.append((obs, action, paid, end > 0.5))
        obs = following
    return Rollouts(*(torch.stack(column, 2) for column in zip(*steps, strict=True)))


def refresh(settings: Synthetic, source: Source, method: Any, pipeline: Pipeline) -> Refresh:
    """Writes the pool of every seed from its policy; `method` is one of `Synthetic.mix`."""
    policy = policies(method, pipeline)

    def pool(carry: Carry) -> Carry:
        keys = rng.fold(rng.fold(carry.key, _ROLLOUTS), carry.step)
        acting = lambda obs, number: policy(carry.state, obs, rng.fold(keys, number))
        with torch.no_grad():
            rollouts = source(keys, acting, int(carry.step) > 0)
            elements, filled = transitions(rollouts, pipeline, method.needs)
        swept = isinstance(carry.state, Swept)
        own = carry.state.state if swept else carry.state
        own = own._replace(pool=elements, filled=filled)
        return carry._replace(state=carry.state._replace(state=own) if swept else own)

    return Refresh(settings.every, pool)


def policies(method: Any, pipeline: Pipeline) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """(states of N seeds, raw observations (N, B, O), keys (N,)) -> evaluation actions (N, B, A)."""

    def one(state: Any, obs: Tensor, key: Tensor) -> Tensor:
        bound: Any
        bound, inner = bind(method, state)
        return bound.act(inner, obs, key).clamp(-1, 1)

    def act(state: Any, step: TimeStep, memory: Any, key: Tensor) -> tuple[Tensor, Any]:
        return vmap(one)(state, step.obs, key), memory

    policy = pipeline.policy(Policy(lambda n_seeds, n_envs: None, act))

    def actions(state: Any, obs: Tensor, keys: Tensor) -> Tensor:
        return policy.act(state, TimeStep.begin(obs), None, keys)[0]

    return actions
