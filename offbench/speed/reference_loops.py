"""What training is measured against: each method as an ordinary PyTorch loop, and loops made by hand.

    plain       the usual way: `torch.nn` modules, `loss.backward()`, `torch.optim.Adam` with
                `fused=True`, target networks by `deepcopy`, uniform batches from tensors in memory,
                and `.item()` on every metric at every step. It computes the same losses as the
                method (by test), for one seed.
    captured    the same modules without `.item()`, many updates captured in one CUDA graph
    unstacked   the method's own update for one seed, traced (on CUDA also compiled and captured)
                without a seed axis: what stacking must not cost

Each is a function `advance(n)` that makes n steps and returns when they are done.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.data.pipeline import Pipeline
from offbench.data.replay import ReplayData
from offbench.methods.bc import BC
from offbench.methods.iql import IQL
from offbench.methods.td3_bc import TD3BC
from offbench.training.blocks import BLOCK, steps
from offbench.training.step import Input, initial_carry, make_step, n_minibatches
from offbench.training.tracing import Program
from offbench.types import Batch, Method, Spec

Advance = Callable[[int], None]


# --- modules


def _net(sizes: Sequence[int], *last: nn.Module) -> nn.Sequential:
    layers = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1], *last)


class _Twins(nn.Module):
    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        self.q1, self.q2 = _net(sizes), _net(sizes)

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([obs, action], 1)
        return self.q1(x).squeeze(1), self.q2(x).squeeze(1)


def _minimise(optimiser: torch.optim.Adam, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _soft_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    with torch.no_grad():
        for t, p in zip(target.parameters(), online.parameters(), strict=True):
            t.data.copy_((1 - rate) * t + rate * p)


class _Plain:
    """`captured` keeps metrics on the device and lets Adam's step count live there."""

    def __init__(self, method: Any, spec: Spec, device: torch.device, *, captured: bool = False):
        self.method, self.captured = method, captured
        self.read = Tensor.detach if captured else Tensor.item
        adam = {"lr": method.lr, "fused": True, "capturable": captured}
        self.adam = lambda parameters: torch.optim.Adam(parameters, **adam)
        obs, act, hidden = spec.obs_dim, spec.action_dim, method.hidden
        self.actor = _net((obs, *hidden, act), nn.Tanh()).to(device)
        self.twins = lambda: _Twins((obs + act, *hidden, 1)).to(device)
        self.scalar = lambda: _net((obs, *hidden, 1)).to(device)


class PlainBC(_Plain):
    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.optimiser = self.adam(self.actor.parameters())

    def update(self, batch: Batch) -> dict[str, Any]:
        loss = nn.functional.mse_loss(self.actor(batch.obs), batch.action)
        _minimise(self.optimiser, loss)
        return {"actor_loss": self.read(loss)}


class PlainTD3BC(_Plain):
    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.step, self.critic = 0, self.twins()
        self.target_actor = copy.deepcopy(self.actor)
        self.target_critic = copy.deepcopy(self.critic)
        self.actor_optimiser = self.adam(self.actor.parameters())
        self.critic_optimiser = self.adam(self.critic.parameters())

    def update(self, batch: Batch, noise: Tensor | None = None) -> dict[str, Any]:
        """One minibatch; the actor and the targets move at every second."""
        m, read, self.step = self.method, self.read, self.step + 1
        with torch.no_grad():
            noise = torch.randn_like(batch.action) if noise is None else noise
            noise = (noise * m.policy_noise).clamp(-m.noise_clip, m.noise_clip)
            next_action = (self.target_actor(batch.next_obs) + noise).clamp(-1, 1)
            target = batch.reward + batch.discount * torch.min(
                *self.target_critic(batch.next_obs, next_action)
            )
        q1, q2 = self.critic(batch.obs, batch.action)
        critic_loss = nn.functional.mse_loss(q1, target) + nn.functional.mse_loss(q2, target)
        _minimise(self.critic_optimiser, critic_loss)
        metrics = {"critic_loss": read(critic_loss), "q": (read(q1.mean()) + read(q2.mean())) / 2}
        if self.step % 2 == 0:
            action = self.actor(batch.obs)
            q = self.critic(batch.obs, action)[0]
            bc_error = nn.functional.mse_loss(action, batch.action)
            actor_loss = -m.alpha / q.abs().mean().detach() * q.mean() + bc_error
            _minimise(self.actor_optimiser, actor_loss)
            _soft_update(self.target_critic, self.critic, m.polyak_rate)
            _soft_update(self.target_actor, self.actor, m.polyak_rate)
            metrics |= {"actor_loss": read(actor_loss), "bc_error": read(bc_error)}
        return metrics


class PlainIQL(_Plain):
    def __init__(self, method: IQL, spec: Spec, device: torch.device, **options: Any):
        super().__init__(method, spec, device, **options)
        self.log_std = nn.Parameter(torch.zeros(spec.action_dim, device=device))
        self.critic, self.value = self.twins(), self.scalar()
        self.target_critic = copy.deepcopy(self.critic)
        self.actor_optimiser = self.adam([*self.actor.parameters(), self.log_std])
        self.critic_optimiser = self.adam(self.critic.parameters())
        self.value_optimiser = self.adam(self.value.parameters())

    def update(self, batch: Batch) -> dict[str, Any]:
        m, read = self.method, self.read
        with torch.no_grad():
            target_q = torch.min(*self.target_critic(batch.obs, batch.action))
            next_v = self.value(batch.next_obs).squeeze(1)  # before the value's step
        v = self.value(batch.obs).squeeze(1)
        advantage = target_q - v
        value_loss = ((m.expectile - (advantage < 0).to(v.dtype)).abs() * advantage**2).mean()
        _minimise(self.value_optimiser, value_loss)

        q1, q2 = self.critic(batch.obs, batch.action)
        target = batch.reward + batch.discount * next_v
        critic_loss = (nn.functional.mse_loss(q1, target) + nn.functional.mse_loss(q2, target)) / 2
        _minimise(self.critic_optimiser, critic_loss)
        _soft_update(self.target_critic, self.critic, m.polyak_rate)

        weight = (m.inverse_temperature * advantage.detach()).exp().clamp(max=m.max_weight)
        # its validation reads a value from the device, which capture does not allow
        validate = {"validate_args": False} if self.captured else {}
        policy = Normal(self.actor(batch.obs), self.log_std.clamp(-20, 2).exp(), **validate)
        actor_loss = (-weight * policy.log_prob(batch.action).sum(1)).mean()
        _minimise(self.actor_optimiser, actor_loss)
        return {
            "value_loss": read(value_loss),
            "critic_loss": read(critic_loss),
            "actor_loss": read(actor_loss),
            "v": read(v.mean()),
            "advantage_weight": read(weight.mean()),
        }


PLAIN: dict[str, tuple[type, type]] = {
    "bc": (BC, PlainBC),
    "td3_bc": (TD3BC, PlainTD3BC),
    "iql": (IQL, PlainIQL),
}


# --- loops


def _batches(data: ReplayData, spec: Spec, batch_size: int) -> Callable[[], Batch]:
    rows = data.valid.nonzero().squeeze(1)
    table = Batch(
        data.obs[rows],
        data.action[rows],
        data.reward[rows],
        torch.where(data.terminal[rows], 0.0, spec.gamma),
        data.obs[rows + 1],
    )

    def draw() -> Batch:
        index = torch.randint(len(rows), (batch_size,), device=rows.device)
        return Batch(*(x[index] for x in table[:5]))

    return draw


def plain_loop(
    plain: type, method: Method, spec: Spec, data: ReplayData, batch_size: int
) -> Advance:
    learner = plain(method, spec, data.obs.device)
    batch = _batches(data, spec, batch_size)

    def advance(n: int) -> None:
        for _ in range(n * n_minibatches(method)):
            learner.update(batch())

    return advance


def captured_loop(
    plain: type, method: Method, spec: Spec, data: ReplayData, batch_size: int
) -> Advance:
    """The modules of the plain loop; BLOCK steps for each replay. Needs CUDA."""
    learner = plain(method, spec, data.obs.device, captured=True)
    batch = _batches(data, spec, batch_size)

    def block() -> None:
        for _ in range(BLOCK * n_minibatches(method)):
            learner.update(batch())

    return _replays(_capture(block))


def unstacked_loop(method: Method, spec: Spec, pipeline: Pipeline) -> Advance:
    device = pipeline.data.obs.device
    cuda = device.type == "cuda"
    step = make_step(method, pipeline)
    carry = initial_carry(method, spec, (0,), device).seed(0)
    state, first = (
        tree_map(torch.clone, carry.state),
        torch.zeros((), dtype=torch.int64, device=device),
    )

    def inputs(first: Tensor) -> Input:
        numbers = first + torch.arange(BLOCK, device=device)
        return step.input(vmap(step.draw)(rng.fold(carry.key.expand(BLOCK), numbers)))

    make = Program(inputs, first)
    example = (state, steps(make(first))[0])
    reuse = 0 if cuda else len(tree_leaves(state))
    update = Program(lambda a: step.update(*a), example, reuse=reuse, compiled=cuda)

    def block(state: Any, n: int) -> Any:
        for given in steps(make(first))[:n]:
            state, _ = update((state, given))
        first.add_(n)
        return state

    if cuda:

        def in_place() -> None:
            new = tree_map(torch.clone, block(state, BLOCK))
            tree_map(Tensor.copy_, state, new)

        return _replays(_capture(in_place))

    def advance(n: int) -> None:
        nonlocal state
        with torch.no_grad():
            for start in range(0, n, BLOCK):
                state = block(state, min(BLOCK, n - start))

    return advance


def _capture(block: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """`block` as a CUDA graph. It runs a few times before, as capture requires."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            block()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        block()
    return graph


def _replays(graph: torch.cuda.CUDAGraph) -> Advance:
    """Whole blocks, so at least n steps; a timing asks for multiples of BLOCK."""

    def advance(n: int) -> None:
        for _ in range(-(-n // BLOCK)):
            graph.replay()
        torch.cuda.synchronize()

    return advance
