"""How fast training is: the engine against an ordinary PyTorch loop, measured side by side.

The plain loop is written the usual way: `torch.nn` modules, `loss.backward()`, `torch.optim.Adam`
with `fused=True`, target networks by `deepcopy`, uniform batches from tensors in memory, and
`.item()` on every metric at every step. It computes the same losses as the method (by test), for one
seed at a time. Contenders take turns, round by round, and each keeps its best round, so a busy
machine disturbs all of them alike.
"""

import copy
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor, nn
from torch.distributions import Normal

from offbench.data import Episode, ReplayData, from_episodes
from offbench.engine import Backend, Engine, initial_carry, make_step, n_minibatches
from offbench.errors import UserError, unknown
from offbench.methods.bc import BC
from offbench.methods.iql import IQL
from offbench.methods.td3_bc import TD3BC
from offbench.pipeline import make_pipeline
from offbench.types import Batch, Method, Spec

SPEC = Spec(obs_dim=17, action_dim=6, gamma=0.99, max_episode_steps=1000)  # the size of halfcheetah
N_EPISODES = 100  # of 1000 steps
ROUNDS = 5


# --- the plain loops


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


def _adam(parameters: Any, lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def _minimise(optimiser: torch.optim.Adam, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _soft_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    with torch.no_grad():
        for t, p in zip(target.parameters(), online.parameters(), strict=True):
            t.data.copy_((1 - rate) * t + rate * p)


class PlainBC:
    def __init__(self, method: BC, spec: Spec, device: torch.device):
        self.actor = _net((spec.obs_dim, *method.hidden, spec.action_dim), nn.Tanh()).to(device)
        self.optimiser = _adam(self.actor.parameters(), method.lr)

    def update(self, batch: Batch) -> dict[str, float]:
        loss = nn.functional.mse_loss(self.actor(batch.obs), batch.action)
        _minimise(self.optimiser, loss)
        return {"actor_loss": loss.item()}


class PlainTD3BC:
    def __init__(self, method: TD3BC, spec: Spec, device: torch.device):
        self.method, self.step = method, 0
        self.actor = _net((spec.obs_dim, *method.hidden, spec.action_dim), nn.Tanh()).to(device)
        self.critic = _Twins((spec.obs_dim + spec.action_dim, *method.hidden, 1)).to(device)
        self.target_actor, self.target_critic = (
            copy.deepcopy(self.actor),
            copy.deepcopy(self.critic),
        )
        self.actor_optimiser = _adam(self.actor.parameters(), method.lr)
        self.critic_optimiser = _adam(self.critic.parameters(), method.lr)

    def update(self, batch: Batch, noise: Tensor | None = None) -> dict[str, float]:
        """One minibatch; the actor and the targets move at every second."""
        m, self.step = self.method, self.step + 1
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
        metrics = {
            "critic_loss": critic_loss.item(),
            "q": (q1.mean().item() + q2.mean().item()) / 2,
        }
        if self.step % 2 == 0:
            action = self.actor(batch.obs)
            q = self.critic(batch.obs, action)[0]
            bc_error = nn.functional.mse_loss(action, batch.action)
            actor_loss = -m.alpha / q.abs().mean().detach() * q.mean() + bc_error
            _minimise(self.actor_optimiser, actor_loss)
            _soft_update(self.target_critic, self.critic, m.polyak_rate)
            _soft_update(self.target_actor, self.actor, m.polyak_rate)
            metrics |= {"actor_loss": actor_loss.item(), "bc_error": bc_error.item()}
        return metrics


class PlainIQL:
    def __init__(self, method: IQL, spec: Spec, device: torch.device):
        self.method = method
        self.actor = _net((spec.obs_dim, *method.hidden, spec.action_dim), nn.Tanh()).to(device)
        self.log_std = nn.Parameter(torch.zeros(spec.action_dim, device=device))
        self.critic = _Twins((spec.obs_dim + spec.action_dim, *method.hidden, 1)).to(device)
        self.value = _net((spec.obs_dim, *method.hidden, 1)).to(device)
        self.target_critic = copy.deepcopy(self.critic)
        self.actor_optimiser = _adam([*self.actor.parameters(), self.log_std], method.lr)
        self.critic_optimiser = _adam(self.critic.parameters(), method.lr)
        self.value_optimiser = _adam(self.value.parameters(), method.lr)

    def update(self, batch: Batch) -> dict[str, float]:
        m = self.method
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
        policy = Normal(self.actor(batch.obs), self.log_std.clamp(-20, 2).exp())
        actor_loss = (-weight * policy.log_prob(batch.action).sum(1)).mean()
        _minimise(self.actor_optimiser, actor_loss)
        return {
            "value_loss": value_loss.item(),
            "critic_loss": critic_loss.item(),
            "actor_loss": actor_loss.item(),
            "v": v.mean().item(),
            "advantage_weight": weight.mean().item(),
        }


CONTENDERS: dict[str, tuple[type, type]] = {
    "bc": (BC, PlainBC),
    "td3_bc": (TD3BC, PlainTD3BC),
    "iql": (IQL, PlainIQL),
}


# --- the measurement


def _data(device: torch.device) -> ReplayData:
    r, n = np.random.default_rng(0), SPEC.max_episode_steps

    def episode() -> Episode:
        obs, action = (
            r.normal(size=(n + 1, SPEC.obs_dim)),
            np.tanh(r.normal(size=(n, SPEC.action_dim))),
        )
        return Episode(obs, action, r.normal(size=n), np.zeros(n, bool))

    return from_episodes((episode() for _ in range(N_EPISODES)), name="random data").to(device)


def _plain(plain: type, method: Method, data: ReplayData, batch_size: int) -> Callable[[int], None]:
    rows = data.valid.nonzero().squeeze(1)
    table = Batch(
        data.obs[rows],
        data.action[rows],
        data.reward[rows],
        torch.where(data.terminal[rows], 0.0, SPEC.gamma),
        data.obs[rows + 1],
    )
    learner = plain(method, SPEC, data.obs.device)

    def advance(n: int) -> None:
        for _ in range(n * n_minibatches(method)):
            index = torch.randint(len(rows), (batch_size,), device=rows.device)
            learner.update(Batch(*(x[index] for x in table[:5])))

    return advance


def _engine(
    method: Method, data: ReplayData, batch_size: int, seeds: int, backend: Any
) -> Callable[[int], None]:
    step = make_step(method, make_pipeline(data, batch_size=batch_size))
    engine = Engine(
        step, initial_carry(method, SPEC, range(seeds), data.obs.device), backend=backend
    )

    def advance(n: int) -> None:
        next(iter(engine.run(n).values())).tolist()  # reading a metric waits for the device

    return advance


class _Contender:
    """One row of the table: set up once, then timed in rounds of equal length."""

    def __init__(self, row: dict[str, Any], build: Callable[[], Callable[[int], None]]):
        self.row, self.build, self.best = row, build, 0.0

    def prepare(self, round_s: float) -> None:
        start = time.perf_counter()
        self.advance = self.build()
        self.advance(1)
        self.setup_s = time.perf_counter() - start
        self.n = 1
        while (elapsed := self._time()) < round_s / 4:
            self.n *= 2
        self.n = max(1, round(self.n * round_s / elapsed))

    def _time(self) -> float:
        start = time.perf_counter()
        self.advance(self.n)
        return time.perf_counter() - start

    def take_turn(self) -> None:
        self.best = max(self.best, self.n / self._time())


def measure(
    methods: Sequence[str] = tuple(CONTENDERS),
    *,
    seeds: Sequence[int] = (1, 8),
    hidden: Sequence[tuple[int, ...]] = ((64, 64), (256, 256)),
    batch_size: int = 256,
    backends: Sequence[str] = ("plain", "eager"),
    device: torch.device | str = "cpu",
    seconds: float = 5.0,
) -> pd.DataFrame:
    """One row per method, network, backend and number of seeds; `seconds` of timing for each.

    `updates_per_s` counts minibatches of one seed, `seed_updates_per_s` those of all seeds; `ratio` is
    the latter over the plain loop's of the same method and network. Raises UserError for an unknown
    method or backend.
    """
    device = torch.device(device)
    for name in methods:
        if name not in CONTENDERS:
            raise unknown("method", name, CONTENDERS)
    for backend in backends:
        if backend not in (known := ("plain", *get_args(Backend))):
            raise unknown("backend", backend, known)
    if seconds <= 0 or not all(isinstance(n, int) and n > 0 for n in (*seeds, batch_size)):
        raise UserError("speed needs positive seconds, seeds and batch_size")
    data, rows = _data(device), []
    _plain(PlainBC, BC(hidden=(1,)), data, 1)(
        1
    )  # torch loads parts of itself at the first backward
    for name in methods:
        for sizes in hidden:
            cls, plain = CONTENDERS[name]
            method = cls(hidden=tuple(sizes))
            contenders = [
                _contender(name, method, plain, data, batch_size, backend, n)
                for backend in backends
                for n in ((1,) if backend == "plain" else seeds)
            ]
            for contender in contenders:
                contender.prepare(seconds / ROUNDS)
            for _ in range(ROUNDS):
                for contender in contenders:
                    contender.take_turn()
            for contender in contenders:
                rate = contender.best * n_minibatches(method)
                total = rate * contender.row["seeds"]
                speed = {
                    "updates_per_s": rate,
                    "seed_updates_per_s": total,
                    "setup_s": contender.setup_s,
                }
                rows.append(contender.row | speed)
    frame = pd.DataFrame(rows)
    base = frame[frame.backend == "plain"].set_index(["method", "hidden"]).seed_updates_per_s
    cell = pd.MultiIndex.from_frame(frame[["method", "hidden"]])
    frame.insert(6, "ratio", frame.seed_updates_per_s.to_numpy() / base.reindex(cell).to_numpy())
    frame.attrs = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch_size": batch_size,
        "seconds": seconds,
    }
    return frame


def _contender(
    name: str, method: Any, plain: type, data: ReplayData, batch_size: int, backend: str, n: int
) -> _Contender:
    row = {
        "method": name,
        "hidden": "x".join(map(str, method.hidden)),
        "backend": backend,
        "seeds": n,
    }
    if backend == "plain":
        return _Contender(row, lambda: _plain(plain, method, data, batch_size))
    return _Contender(row, lambda: _engine(method, data, batch_size, n, backend))


def to_text(frame: pd.DataFrame) -> str:
    """The table, and under it what was measured on what."""
    table = pd.DataFrame(
        {
            "method": frame.method,
            "hidden": frame.hidden,
            "backend": frame.backend,
            "seeds": frame.seeds.astype(str),
            "updates/s": frame.updates_per_s.map("{:,.0f}".format),
            "seed-updates/s": frame.seed_updates_per_s.map("{:,.0f}".format),
            "vs plain": frame.ratio.map(lambda x: "" if np.isnan(x) else f"{x:.2f}x"),
            "setup": frame.setup_s.map("{:.1f} s".format),
        }
    )
    a = frame.attrs
    note = (
        f"{a['device']}, {a['threads']} thread{'s' * (a['threads'] != 1)}, torch {a['torch']}, "
        f"batch {a['batch_size']}, {SPEC.obs_dim} observations, {SPEC.action_dim} actions; "
        f"best of {ROUNDS} rounds, {a['seconds']:g} s each row. An update is a minibatch.\n"
        "plain: torch.nn modules, backward(), torch.optim.Adam(fused=True), .item() each step, one seed."
    )
    return f"{table.to_string(index=False)}\n\n{note}"


def main(args: Sequence[str]) -> int:
    """`offbench speed [methods=[iql] seeds=[1,8] hidden=[[64,64]] backends=[plain,eager] seconds=5 threads=1]`"""
    options = {}
    known = {"methods", "seeds", "hidden", "batch_size", "backends", "device", "seconds", "threads"}
    for arg in args:
        key, found, value = arg.partition("=")
        if not found or key not in known:
            raise unknown("setting of speed", key, known)
        options[key] = yaml.safe_load(value)
    for key in ("methods", "seeds", "hidden", "backends"):
        if key in options and not isinstance(options[key], list):
            options[key] = [options[key]]
    if isinstance(options.get("hidden", [[]])[0], int):
        options["hidden"] = [options["hidden"]]  # hidden=[64,64] is one network
    if "threads" in options:
        torch.set_num_threads(options.pop("threads"))
    print(to_text(measure(**options)))
    return 0
