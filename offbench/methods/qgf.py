"""QGF, Q-guided flow (Zhou et al., 2026), https://arxiv.org/abs/2606.11087

A flow policy clones the data and IQL's critics never see an action outside it; nothing is trained
on the critics' advice. Only while acting does every Euler step lean towards larger values: the
critic's gradient is taken at the clean action that the step predicts, where the critic is trained, and is
not propagated through that prediction.

    ahat = clip(x_u + (1 - u) v(s, x_u, u)),  x <- x + (v + guidance_weight * dQbar(s, ahat)/dahat) / F
    L_V = mean expectile(min_k Qbar_k(s, a) - V(s)),  L_Q = mean (Q(s, a) - [r + discount * V(s')])^2

A guidance weight of 0 is behaviour cloning. It belongs to the scale of Q: the authors try nine per
domain and report the best, so tune it on seeds or tasks that do not count (`tuning=`).

Differs from the authors' code (zhouzypaul/qgf bc44a679): steps of a chunk beyond its episode are
masked in the clone's loss, theirs clones the first steps of the next episode there; the target
critic follows the critic after its step, theirs the one before it; the critics' losses are summed
before one Adam, theirs have one each (the same); the first of equal proposals is taken; the flow's
last layer starts normal, theirs normal cut at two standard deviations.
If you come from there: `flow_steps` is `denoise_steps`, `n_proposals` is `rejection_sampling`,
`polyak_rate` is `tau`, `view.h` is `horizon_length`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from offbench import rng
from offbench.nn import flow, nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, Fraction, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec

# "trunk" to the last hidden layer, which is not normalised, and "head"
Flow = dict[str, nets.Params]


class State(NamedTuple):
    # leading axis 2: the twins
    critic: nets.Params
    target_critic: nets.Params
    value: nets.Params  # leading axis 1
    flow: Flow
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class QGF:
    # 1 / temperature of the policy exp(Q / temperature) * behaviour, so in units of one over Q:
    # rescale it with the rewards and the discount
    guidance_weight: float = 0.02
    expectile: Fraction = 0.9
    # guided samples, of which the one of largest value acts
    n_proposals: Count = 1
    flow_steps: Count = 10  # F
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (1024, 1024, 1024, 1024)
    needs: ClassVar[tuple[str, ...]] = ("valid",)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_critic, k_value, k_trunk, k_head = rng.split(key, 4)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        critic = flow.critic_init(k_critic, n_obs, n_act, self.hidden)
        value = flow.critic_init(k_value, n_obs, 0, self.hidden, n=1)
        sizes = (n_obs + n_act + 16, *self.hidden)
        trunk = nets.mlp_init(k_trunk, sizes, weight="xavier", layer_norm=True)
        w = rng.normal(k_head, (sizes[-1], n_act)) / sizes[-1] ** 0.5
        velocity = {"trunk": trunk, "head": [{"w": w, "b": torch.zeros_like(w[:1])}]}
        opt = Adam(self.lr).init((critic, value, velocity))
        return State(critic, critic, value, velocity, opt)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        params = (state.critic, state.value, state.flow)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state, batch, key)
        (critic, value, velocity), opt = Adam(self.lr).step(grads, state.opt, params)
        target_critic = polyak(state.target_critic, critic, self.polyak_rate)
        return State(critic, target_critic, value, velocity, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        """The best of N guided samples by the smaller target critic: (E, O) -> (E, A)."""
        n = self.n_proposals
        repeated = obs[:, None].expand(-1, n, -1).flatten(0, 1)  # (E * N, O)
        worth = lambda a: _values(state.target_critic, repeated, a).amin(0)
        total = lambda a: worth(a).sum()
        x = rng.normal(key, (len(repeated), state.flow["head"][0]["b"].shape[-1]), obs.dtype)
        for i in range(self.flow_steps):
            time = torch.full_like(x[:, :1], i / self.flow_steps)
            v = _velocity(state.flow, repeated, x, time)
            clean = (x + (1 - time) * v).clamp(-1, 1)
            # of the input: the clip has no part in it
            slope = grad(total)(clean)
            x = x + (v + self.guidance_weight * slope) / self.flow_steps
        action, group = x.clamp(-1, 1), (len(obs), n)
        best = flow.first_argmax(worth(action).unflatten(0, group))
        return flow.chosen(action.unflatten(0, group), best)

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller Q of the target critics, which guide and choose: (E, O), (E, A) -> (E,)."""
        return _values(state.target_critic, obs, action).amin(0)

    def _loss(
        self, params: tuple, before: State, batch: Batch, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The three losses touch disjoint parameters, so their sum is one backward pass."""
        critic, value, velocity = params
        valid, action = batch.extras["valid"], batch.action  # (B, h), (B, h * A)
        last, no_action = valid[:, -1], action[:, :0]
        v = _values(value, batch.obs, no_action)[0]  # (B,)
        advantage = _values(before.target_critic, batch.obs, action).amin(0) - v
        side = (self.expectile - (advantage < 0).to(v.dtype)).abs()
        value_loss = (side * torch.square(advantage) * last).mean()

        next_v = _values(before.value, batch.next_obs, no_action)[0]
        q = _values(critic, batch.obs, action)  # (2, B)
        goal = batch.reward + batch.discount * next_v
        critic_loss = (torch.square(q - goal) * last).mean()

        k_noise, k_time = rng.split(key)
        noise = rng.normal_like(k_noise, action)
        grid = rng.randint(k_time, (len(action), 1), self.flow_steps + 1)
        time = grid.to(action.dtype) / self.flow_steps  # 0, 1 / F, ..., 1
        error = _velocity(velocity, batch.obs, (1 - time) * noise + time * action, time)
        error = (error - (action - noise)).unflatten(-1, (valid.shape[-1], -1))  # (B, h, A)
        bc_loss = (torch.square(error) * valid[..., None]).mean()
        metrics = {
            "value_loss": value_loss,
            "critic_loss": critic_loss,
            "bc_loss": bc_loss,
            "v": v.mean(),
            # guidance_weight is in units of one over this scale
            "q": q.mean(),
            "advantage_spread": advantage.std(),
        }
        return value_loss + critic_loss + bc_loss, metrics


def _values(critic: nets.Params, obs: Tensor, action: Tensor) -> Tensor:
    """(B, O), (B, A) -> (n, B); unlike in FQL's critics layers are normalised before they are activated."""
    x = torch.cat([obs, action], -1)
    return nets.mlp(critic, x, activation="gelu_tanh", layer_norm="before", eps=1e-6).squeeze(-1)


def _velocity(params: Flow, obs: Tensor, x: Tensor, time: Tensor) -> Tensor:
    """(B, O), (B, A), (B, 1) -> (B, A)."""
    frequency = torch.exp(-math.log(10000) * torch.arange(8, device=x.device, dtype=x.dtype) / 8)
    angle = 10000 * time * frequency  # (B, 8)
    x = torch.cat([obs, x, angle.cos(), angle.sin()], -1)
    x = nets.mlp(params["trunk"], x, activation="gelu_tanh", layer_norm="before", eps=1e-6)
    return nets.mlp(params["head"], nets.ACTIVATIONS["gelu_tanh"](x))
