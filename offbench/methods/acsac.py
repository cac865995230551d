"""ACSAC, adaptive chunk size actor-critic (Chen et al., 2026), https://arxiv.org/abs/2605.11009

A causal transformer reads (s, a_1, ..., a_H) and estimates the value of every prefix of the chunk. A flow
policy clones the data's chunks; of `n_proposals` of its samples the prefix of the largest value is
executed, and the same maximum is the bootstrap. Long chunks back values up fast, short ones react.

    V(s) = max over n <= N, k <= H of min over critics c of Q_c(s, b_n[1:k]),  b_n from the flow at s
    L_Q = mean over c, h of (Q_c(s_t, a_t[1:h]) - [sum_{j<h} gamma^j r_{t+j} + gamma^h m_h V(s_{t+h})])^2

V is taken with the online critics and no gradient (`polyak_target` is the switch); the losses of the
H lengths are averaged, not the targets; all lengths are discounted returns on one scale.

No code of the authors is public. The paper leaves open, and is filled in here: masks, padding and
rewards after a success as in the code of Q-chunking; feed-forward layers of 4 widths, biases and a
final norm, which its parameter count (2,455,065 with two stored target critics) forces; Xavier
weights and tanh-GELU, the defaults of the code it builds on. Two layouts have exactly its 404,224
parameters per critic: (learned, shared) and (sinusoid, per_position). The default is the second, since
the text has a head per position; on a small stage no layout was told from another (results/acsac_small).
A bias of the encoders would be redundant with learned positions, which have none.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.errors import UserError
from offbench.nn import evaluated, flow, nets, transformer
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Plan, Spec

# every tensor with a leading axis 2: the twins
Critic = dict[str, Any]


class State(NamedTuple):
    critic: Critic
    # empty where the online critics are the target
    target_critic: Critic
    flow: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class ACSAC:
    n_proposals: Count = 4  # N
    flow_steps: Count = 10
    width: Count = 128
    layers: Count = 2
    heads: Count = 8
    # head that maps a token to a value
    head: Literal["per_position", "shared"] = "per_position"
    positions: Literal["learned", "sinusoid"] = "sinusoid"
    polyak_target: bool = False
    # of the target critics, where there are any
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512, 512)  # of the flow
    needs: ClassVar[tuple[str, ...]] = ("prefixes",)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.width % (2 * self.heads):
            raise UserError(
                f"method.width={self.width} must be a multiple of 2 x method.heads={self.heads}"
            )

    def init(self, key: Tensor, spec: Spec) -> State:
        k_critic, k_flow = rng.split(key)
        critic = self._critic_init(k_critic, spec)
        velocity = flow.velocity_init(k_flow, spec.obs_dim, spec.action_dim, self.hidden)
        target = critic if self.polyak_target else {}
        return State(critic, target, velocity, Adam(self.lr).init((critic, velocity)))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        k_next, k_bc = rng.split(key)
        target_q, length = self._targets(state, batch, k_next)
        params = (state.critic, state.flow)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, batch, target_q, k_bc)
        (critic, velocity), opt = Adam(self.lr).step(grads, state.opt, params)
        target = state.target_critic
        if self.polyak_target:
            target = polyak(target, critic, self.polyak_rate)
        metrics["planned_length"] = length.to(target_q.dtype).mean()
        # shares of the lengths in bootstrapped maxima
        for k in range(target_q.shape[1]):
            metrics[f"planned_{k + 1}"] = (length == k + 1).to(target_q.dtype).mean()
        return State(critic, target, velocity, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Plan:
        _, chunk, length = self._best(state.critic, state.flow, obs, key)
        return Plan(chunk, length)

    def act_for(self, state: State, obs: Tensor, key: Tensor, length: int) -> Plan:
        """The best proposal by the value of its first `length` steps, all of which are executed."""
        _, chunk, executed = self._best(state.critic, state.flow, obs, key, length)
        return Plan(chunk, executed)

    def value(self, state: State, obs: Tensor, plan: Plan) -> Tensor:
        """Q of the executed steps of the chunk: (E, O) and a plan -> (E,)."""
        q = self._q(state.critic, obs, plan.action[:, None]).amin(0)[:, 0]  # (2, E, 1, H) -> (E, H)
        return q.gather(1, plan.length[:, None] - 1).squeeze(1)

    def _targets(self, state: State, batch: Batch, key: Tensor) -> tuple[Tensor, Tensor]:
        """Targets of the prefixes (B, H), and the lengths of the maxima (B * H,)."""
        extras, critic = batch.extras, state.critic
        if self.polyak_target:
            critic = state.target_critic
        obs = extras["prefix_obs"]  # (B, H, O)
        value, _, length = self._best(critic, state.flow, obs.flatten(0, 1), key)
        value = value.view(obs.shape[:2])
        return extras["prefix_reward"] + extras["prefix_discount"] * value, length

    def _best(
        self,
        critic: Critic,
        velocity: nets.Params,
        obs: Tensor,
        key: Tensor,
        only: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Value (B,), chunk (B, H * A) and length (B,) of the best prefix; the first in (n, h) of equals.

        With `only`, of the prefixes of that length.
        """
        n = self.n_proposals
        _, action = flow.propose(velocity, obs, key, n, self.flow_steps, evaluated.flow_sample)
        action = action.unflatten(0, (len(obs), n))  # (B, N, H * A)
        values = self._q(critic, obs, action, evaluated.token_values)
        q = values.amin(0)  # (2, B, N, H) -> (B, N, H)
        if only is not None:
            lengths = torch.arange(1, q.shape[-1] + 1, device=q.device)
            q = torch.where(lengths == only, q, -torch.inf)
        index = flow.first_argmax(q.flatten(1))  # (B,)
        value = q.flatten(1).gather(1, index[:, None]).squeeze(1)
        return value, flow.chosen(action, index // q.shape[-1]), index % q.shape[-1] + 1

    def _loss(
        self, params: tuple, batch: Batch, target_q: Tensor, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The two losses touch disjoint parameters, so their sum is one backward pass."""
        critic, velocity = params
        valid = batch.extras["valid"]  # (B, H)
        q = self._q(critic, batch.obs, batch.action[:, None]).squeeze(2)  # (2, B, H)
        critic_loss = (torch.square(q - target_q) * valid).mean()
        bc_loss = flow.bc_loss(velocity, batch.obs, batch.action, valid, key)
        metrics = {
            "critic_loss": critic_loss,
            "bc_loss": bc_loss,
            "q": q.mean(),
            "target_q": target_q.mean(),
            "q_disagreement": (q[0] - q[1]).abs().mean(),
            # 0: the length is a matter of noise
            "prefix_spread": (q.amax(-1) - q.amin(-1)).mean(),
        }
        return critic_loss + bc_loss, metrics

    def _critic_init(self, key: Tensor, spec: Spec) -> Critic:
        k_state, k_action, k_place, k_blocks, k_head = rng.split(key, 5)
        w, learned = self.width, self.positions == "learned"
        n_heads = spec.chunk if self.head == "per_position" else 1

        def encoder(k: Tensor, n_in: int) -> nets.Layer:
            (layer,) = nets.mlp_init(k, (n_in, w), ensemble=2, weight="xavier")
            return {"w": layer["w"]} if learned else layer

        critic = {
            "state": encoder(k_state, spec.obs_dim),
            "action": encoder(k_action, spec.action_dim // spec.chunk),
            "blocks": transformer.init(
                k_blocks, width=w, layers=self.layers, hidden=4 * w, ensemble=2, weight="xavier"
            ),
            "head": (6 / (w + 1)) ** 0.5 * (2 * rng.uniform(k_head, (2, n_heads, w)) - 1),
        }
        if learned:
            critic["position"] = 0.02 * rng.normal(k_place, (2, spec.chunk + 1, w))
        return critic

    def _q(
        self, critic: Critic, obs: Tensor, action: Tensor, network: Any = transformer.token_values
    ) -> Tensor:
        """Values of all prefixes of N chunks for each state: (B, O), (B, N, H * A) -> (2, B, N, H).

        The chunks of a state are one sequence behind one state token; each sees that and itself only.
        """
        n, size = action.shape[1], critic["action"]["w"].shape[-2]
        action = action.unflatten(-1, (-1, size))  # (B, N, H, A)
        h = action.shape[2]
        # (2 or 1, H + 1, W)
        position = critic.get("position", sinusoid(h + 1, self.width, obs)[None])
        state, step = position[:, :1], position[:, 1:]
        if "b" in critic["state"]:
            state, step = state + critic["state"]["b"], step + critic["action"]["b"]
        place = torch.cat([state, step.repeat(1, n, 1)], 1)  # (2, 1 + N * H, W)
        head = critic["head"].expand(-1, h, -1).repeat(1, n, 1)  # (2, N * H, W)
        ends = transformer.Ends(critic["state"]["w"], critic["action"]["w"], place, head)
        chunks = action.flatten(1, 2)  # (B, N * H, A)
        q = network(critic["blocks"], ends, obs, chunks, heads=self.heads, branches=n)
        return q.unflatten(2, (n, h))


def sinusoid(n: int, width: int, like: Tensor) -> Tensor:
    """Fixed positions of Vaswani et al. (2017), sines then cosines: (n, width)."""
    index = torch.arange(n, device=like.device, dtype=like.dtype)[:, None]
    half = torch.arange(width // 2, device=like.device, dtype=like.dtype)
    angle = index * 10000 ** (-2 * half / width)
    return torch.cat([angle.sin(), angle.cos()], -1)
