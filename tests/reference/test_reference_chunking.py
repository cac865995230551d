"""FQL, Q-chunking, ACSAC and their kin against ordinary implementations of the papers, in float64.

The references know one critic, one state, one chunk and one length at a time: torch.nn modules,
Python loops over proposals and prefixes, `backward()`, one torch.optim.Adam per network.
"""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from support.mutants import mutated
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk, NStep
from offbench.methods.acsac import ACSAC
from offbench.methods.cgq import CGQ
from offbench.methods.dqc import DQC
from offbench.methods.fql import FQL
from offbench.methods.ifql import IFQL
from offbench.methods.qc import QC
from offbench.methods.qgf import QGF
from offbench.nn import flow
from offbench.testing.contract import SPEC
from offbench.types import Plan

GAMMA, BATCH = 0.97, 8
SMALL = {"hidden": (12, 12), "flow_steps": 3}
TINY = {"width": 8, "heads": 2, "n_proposals": 3}
CHUNK = Chunk(3, GAMMA, pad=True)


def gelu(x):
    return F.gelu(x, approximate="tanh")


class MLP(nn.Module):
    """Hidden layers that have a scale are normalised, after their activation or before it."""

    def __init__(self, params: list, *, norm: bool | str):
        super().__init__()
        self.linears = nn.ModuleList(linear(layer) for layer in params)
        scaled = [layer for layer in params if "scale" in layer]
        self.norms = nn.ModuleList(norm_of(layer) for layer in scaled) if norm else None
        self.before = norm == "before"

    def forward(self, *inputs):
        x = torch.cat(inputs, -1)
        for i, layer in enumerate(self.linears[:-1]):
            x = layer(x)
            norm = self.norms[i] if self.norms and i < len(self.norms) else nn.Identity()
            x = gelu(norm(x)) if self.before else norm(gelu(x))
        return self.linears[-1](x)

    def gap(self, params: list) -> float:
        found = [(a["w"].T, b.weight) for a, b in zip(params, self.linears, strict=True)]
        found += [(a["b"].flatten(), b.bias) for a, b in zip(params, self.linears, strict=True)]
        scaled = [a for a in params if "scale" in a]
        for a, b in zip(scaled, self.norms or [], strict=True):
            found += [(a["scale"].flatten(), b.weight), (a["shift"].flatten(), b.bias)]
        return max((a - b).abs().max().item() for a, b in found)


def linear(layer: dict, columns=slice(None)) -> nn.Linear:
    w = layer["w"][:, columns]
    made = nn.Linear(*w.shape, bias="b" in layer).double()
    made.weight.data = w.T.clone()
    if "b" in layer:
        made.bias.data = layer["b"].flatten()[columns].clone()
    return made


def norm_of(layer: dict) -> nn.LayerNorm:
    made = nn.LayerNorm(layer["scale"].shape[-1], eps=1e-6).double()
    made.weight.data, made.bias.data = layer["scale"].flatten(), layer["shift"].flatten()
    return made


def member(tree, i: int):
    return tree_map(lambda x: x[i], tree)


class Prefixes(nn.Module):
    """ACSAC's critic for one state and one chunk at a time, token by token."""

    def __init__(self, critic: dict, heads: int, n_steps: int, width: int):
        super().__init__()
        self.state, self.action = linear(critic["state"]), linear(critic["action"])
        self.head = nn.Parameter(critic["head"].clone())
        self.position = nn.Parameter(critic["position"].clone()) if "position" in critic else None
        self.fixed = torch.tensor(
            [[p / 10000 ** (2 * i / width) for i in range(width // 2)] for p in range(n_steps + 1)],
            dtype=torch.float64,
        )
        self.heads = heads
        self.blocks = nn.ModuleList()
        for block in critic["blocks"]["blocks"]:
            parts = {k: norm_of(block[k]) for k in ("norm1", "norm2")}
            parts |= {k: linear(block[k]) for k in ("out", "up", "down")}
            for j, k in enumerate(("query", "seen", "value")):
                parts[k] = linear(block["qkv"], slice(j * width, (j + 1) * width))
            self.blocks.append(nn.ModuleDict(parts))
        self.norm = norm_of(critic["blocks"]["norm"])

    def forward(self, state, chunk):
        """(O,), (H, A) -> (H,)."""
        place = self.position
        if place is None:
            place = torch.cat([self.fixed.sin(), self.fixed.cos()], -1)
        tokens = torch.stack([self.state(state), *(self.action(a) for a in chunk)]) + place
        for block in self.blocks:
            x = block["norm1"](tokens)
            query, seen, value = (block[k](x) for k in ("query", "seen", "value"))
            rows = []
            for t in range(len(x)):
                read = []
                for d in torch.arange(x.shape[1]).chunk(self.heads):
                    score = torch.stack([query[t, d] @ seen[u, d] for u in range(t + 1)])
                    weight = (score / len(d) ** 0.5).softmax(0)
                    read.append(sum(weight[u] * value[u, d] for u in range(t + 1)))
                rows.append(torch.cat(read))
            tokens = tokens + block["out"](torch.stack(rows))
            tokens = tokens + block["down"](gelu(block["up"](block["norm2"](tokens))))
        out = self.norm(tokens)[1:]
        head = self.head.expand(len(chunk), -1)
        return torch.stack([o @ w for o, w in zip(out, head, strict=True)])

    def gap(self, critic: dict) -> float:
        pairs = [(critic["state"]["w"].T, self.state.weight), (critic["head"], self.head)]
        pairs += [(critic["action"]["w"].T, self.action.weight)]
        if self.position is None:
            pairs += [
                (critic[k]["b"].flatten(), getattr(self, k).bias) for k in ("state", "action")
            ]
        else:
            pairs.append((critic["position"], self.position))
        for ours, theirs in zip(critic["blocks"]["blocks"], self.blocks, strict=True):
            qkv = [theirs[k] for k in ("query", "seen", "value")]
            pairs.append((ours["qkv"]["w"].T, torch.cat([m.weight for m in qkv])))
            pairs.append((ours["qkv"]["b"].flatten(), torch.cat([m.bias for m in qkv])))
            for k in ("out", "up", "down"):
                pairs.append((ours[k]["w"].T, theirs[k].weight))
            for k in ("norm1", "norm2"):
                pairs.append((ours[k]["scale"].flatten(), theirs[k].weight))
        pairs.append((critic["blocks"]["norm"]["shift"].flatten(), self.norm.bias))
        return max((a - b).abs().max().item() for a, b in pairs)


def flow_samples(net, obs, noise, steps: int):
    x = noise
    for i in range(steps):
        time = torch.full((len(x), 1), i / steps, dtype=x.dtype)
        x = x + net(obs, x, time) / steps
    return x.clamp(-1, 1)


def flow_loss(net, batch, key):
    """Element by element, step by step, feature by feature."""
    k_noise, k_time = rng.split(key)
    z = rng.normal_like(k_noise, batch.action)
    u = rng.uniform(k_time, (len(z), 1), z.dtype)
    v = net(batch.obs, (1 - u) * z + u * batch.action, u)
    valid, total = batch.extras["valid"], 0.0
    size = v.shape[1] // valid.shape[1]
    for b in range(len(v)):
        for d in range(v.shape[1]):
            error = v[b, d] - (batch.action[b, d] - z[b, d])
            total = total + error**2 * valid[b, d // size]
    return total / v.numel()


class Reference:
    """Steps of one Adam for each network."""

    def optimise(self, method, **nets):
        self.nets, self.lr = nets, method.lr
        self.opt = {k: torch.optim.Adam(n.parameters(), method.lr) for k, n in nets.items()}

    def step(self, losses: dict):
        grads = {
            k: torch.autograd.grad(v, list(self.nets[k].parameters())) for k, v in losses.items()
        }
        for k, g in grads.items():
            for p, x in zip(self.nets[k].parameters(), g, strict=True):
                p.grad = x
            self.opt[k].step()

    def follow(self, targets, online, rate):
        for a, b in zip(targets, online, strict=True):
            for p, q in zip(a.parameters(), b.parameters(), strict=True):
                p.data += rate * (q.data - p.data)


class PlainFQL(Reference):
    def __init__(self, method, state):
        self.m = method
        self.q = [MLP(member(state.critic, i), norm=True) for i in range(2)]
        self.qt = copy.deepcopy(self.q)
        self.flow, self.mu = MLP(state.flow, norm=False), MLP(state.actor, norm=False)
        self.optimise(method, q0=self.q[0], q1=self.q[1], flow=self.flow, mu=self.mu)

    def update(self, batch, key):
        m = self.m
        k_next, k_bc, k_actor = rng.split(key, 3)
        with torch.no_grad():
            a = self.mu(batch.next_obs, rng.normal_like(k_next, batch.action)).clamp(-1, 1)
            qs = torch.stack([q(batch.next_obs, a).squeeze(-1) for q in self.qt])
            y = batch.reward + batch.discount * (
                qs.mean(0) if m.q_aggregate == "mean" else qs.min(0)[0]
            )
            z = rng.normal_like(k_actor, batch.action)
            taught = flow_samples(self.flow, batch.obs, z, m.flow_steps)
        last = batch.extras["valid"][:, -1]
        critic = [((q(batch.obs, batch.action).squeeze(-1) - y) ** 2 * last).mean() for q in self.q]
        made = self.mu(batch.obs, z)
        distill = ((made - taught) ** 2).mean()
        q = sum(q(batch.obs, made.clamp(-1, 1)).squeeze(-1) for q in self.q) / 2
        climb = -q.mean() / (q.abs().mean().item() if m.normalize_q else 1.0)
        losses = {
            "q0": critic[0] / 2,
            "q1": critic[1] / 2,
            "flow": flow_loss(self.flow, batch, k_bc),
            "mu": m.distill_weight * distill + climb,
        }
        self.step(losses)
        self.follow(self.qt, self.q, m.polyak_rate)
        return {
            "distill_loss": distill.item(),
            "bc_loss": losses["flow"].item(),
            "critic_loss": sum(critic).item() / 2,
            "actor_q": q.mean().item(),
            "target_q": y.mean().item(),
        }

    def act(self, obs, key):
        n = self.mu.linears[-1].out_features
        return self.mu(obs, rng.normal(key, (len(obs), n), obs.dtype)).clamp(-1, 1)

    def gap(self, s):
        return max(
            *(q.gap(member(s.critic, i)) for i, q in enumerate(self.q)),
            *(q.gap(member(s.target_critic, i)) for i, q in enumerate(self.qt)),
            self.flow.gap(s.flow),
            self.mu.gap(s.actor),
        )


class PlainQC(Reference):
    def __init__(self, method, state):
        self.m = method
        self.q = [MLP(member(state.critic, i), norm=True) for i in range(2)]
        self.qt = copy.deepcopy(self.q)
        self.flow = MLP(state.flow, norm=False)
        self.optimise(method, q0=self.q[0], q1=self.q[1], flow=self.flow)

    def together(self, critics, obs, action):
        qs = [q(obs, action).squeeze(-1) for q in critics]
        return (qs[0] + qs[1]) / 2 if self.m.q_aggregate == "mean" else torch.minimum(*qs)

    @torch.no_grad()
    def act(self, obs, key):
        n, size = self.m.n_proposals, self.flow.linears[-1].out_features
        noise = rng.normal(key, (len(obs) * n, size), obs.dtype)
        best = []
        for i, s in enumerate(obs):
            samples = [
                flow_samples(self.flow, s[None], noise[i * n + j][None], self.m.flow_steps)
                for j in range(n)
            ]
            values = [self.together(self.q, s[None], a).item() for a in samples]
            best.append(samples[values.index(max(values))])
        return torch.cat(best)

    def update(self, batch, key):
        k_next, k_bc = rng.split(key)
        a = self.act(batch.next_obs, k_next)
        with torch.no_grad():
            y = batch.reward + batch.discount * self.together(self.qt, batch.next_obs, a)
        last = batch.extras["valid"][:, -1]
        critic = [((q(batch.obs, batch.action).squeeze(-1) - y) ** 2 * last).mean() for q in self.q]
        bc = flow_loss(self.flow, batch, k_bc)
        self.step({"q0": critic[0] / 2, "q1": critic[1] / 2, "flow": bc})
        self.follow(self.qt, self.q, self.m.polyak_rate)
        return {
            "bc_loss": bc.item(),
            "critic_loss": sum(critic).item() / 2,
            "target_q": y.mean().item(),
        }

    def gap(self, s):
        return max(
            *(q.gap(member(s.critic, i)) for i, q in enumerate(self.q)),
            *(q.gap(member(s.target_critic, i)) for i, q in enumerate(self.qt)),
            self.flow.gap(s.flow),
        )


class PlainACSAC(Reference):
    def __init__(self, method, state):
        self.m = method
        size = state.critic["action"]["w"].shape[-2]
        self.h = state.flow[-1]["b"].shape[-1] // size
        make = lambda i: Prefixes(member(state.critic, i), method.heads, self.h, method.width)
        self.q = [make(0), make(1)]
        self.qt = copy.deepcopy(self.q) if method.polyak_target else self.q
        self.flow = MLP(state.flow, norm=False)
        self.optimise(method, q0=self.q[0], q1=self.q[1], flow=self.flow)

    @torch.no_grad()
    def best(self, critics, obs, noise):
        """(value, chunk, length) at one state: every proposal, every prefix, in stored order."""
        found = None
        for z in noise:
            chunk = flow_samples(self.flow, obs[None], z[None], self.m.flow_steps)[0]
            values = [q(obs, chunk.view(self.h, -1)) for q in critics]
            for k in range(self.h):
                value = min(v[k].item() for v in values)
                if found is None or value > found[0]:
                    found = value, chunk, k + 1
        return found

    def act(self, obs, key):
        n, size = self.m.n_proposals, self.flow.linears[-1].out_features
        noise = rng.normal(key, (len(obs) * n, size), obs.dtype).view(len(obs), n, size)
        found = [self.best(self.q, s, z) for s, z in zip(obs, noise, strict=True)]
        return Plan(torch.stack([f[1] for f in found]), torch.tensor([f[2] for f in found]))

    def update(self, batch, key):
        k_next, k_bc = rng.split(key)
        n, size, extras = self.m.n_proposals, batch.action.shape[1], batch.extras
        b = len(batch.obs)
        noise = rng.normal(k_next, (b * self.h * n, size), batch.obs.dtype).view(b, self.h, n, size)
        losses, lengths, targets = [0.0, 0.0], [], []
        for i in range(b):
            values = [q(batch.obs[i], batch.action[i].view(self.h, -1)) for q in self.q]
            for k in range(self.h):
                v, _, length = self.best(self.qt, extras["prefix_obs"][i, k], noise[i, k])
                y = extras["prefix_reward"][i, k] + extras["prefix_discount"][i, k] * v
                lengths.append(length), targets.append(y.item())
                if extras["valid"][i, k]:
                    for c in range(2):
                        losses[c] = losses[c] + (values[c][k] - y) ** 2 / (b * self.h)
        bc = flow_loss(self.flow, batch, k_bc)
        self.step({"q0": losses[0] / 2, "q1": losses[1] / 2, "flow": bc})
        if self.m.polyak_target:
            self.follow(self.qt, self.q, self.m.polyak_rate)
        return {
            "critic_loss": sum(losses).item() / 2,
            "bc_loss": bc.item(),
            "target_q": sum(targets) / len(targets),
            "planned_length": sum(lengths) / len(lengths),
            "planned_1": lengths.count(1) / len(lengths),
        }

    def gap(self, s):
        found = [q.gap(member(s.critic, i)) for i, q in enumerate(self.q)] + [self.flow.gap(s.flow)]
        if self.m.polyak_target:
            found += [q.gap(member(s.target_critic, i)) for i, q in enumerate(self.qt)]
        return max(found)


class PlainIFQL(Reference):
    def __init__(self, method, state):
        self.m = method
        self.q = [MLP(member(state.critic, i), norm=True) for i in range(2)]
        self.qt = copy.deepcopy(self.q)
        self.v, self.flow = MLP(member(state.value, 0), norm=True), MLP(state.flow, norm=False)
        self.optimise(method, q0=self.q[0], q1=self.q[1], v=self.v, flow=self.flow)

    act = PlainQC.act

    def together(self, critics, obs, action):
        return torch.minimum(*[q(obs, action).squeeze(-1) for q in critics])

    def update(self, batch, key):
        last = batch.extras["valid"][:, -1]
        with torch.no_grad():
            y = batch.reward + batch.discount * self.v(batch.next_obs).squeeze(-1)
            best = self.together(self.qt, batch.obs, batch.action)
        critic = [((q(batch.obs, batch.action).squeeze(-1) - y) ** 2 * last).mean() for q in self.q]
        v = self.v(batch.obs).squeeze(-1)
        losses = [
            (self.m.expectile if b > x else 1 - self.m.expectile) * (b - x) ** 2 * w
            for b, x, w in zip(best, v, last, strict=True)
        ]
        bc, v_loss = flow_loss(self.flow, batch, key), sum(losses) / len(losses)
        self.step({"q0": critic[0] / 2, "q1": critic[1] / 2, "v": v_loss, "flow": bc})
        self.follow(self.qt, self.q, self.m.polyak_rate)
        return {
            "bc_loss": bc.item(),
            "critic_loss": sum(critic).item() / 2,
            "v": v.mean().item(),
            "value_loss": v_loss.item(),
        }

    def gap(self, s):
        return max(PlainQC.gap(self, s), self.v.gap(member(s.value, 0)))


class PlainQGF(Reference):
    def __init__(self, method, state):
        self.m = method
        self.q = [MLP(member(state.critic, i), norm="before") for i in range(2)]
        self.qt = copy.deepcopy(self.q)
        self.v = MLP(member(state.value, 0), norm="before")
        self.flow = MLP([*state.flow["trunk"], *state.flow["head"]], norm="before")
        self.optimise(method, q0=self.q[0], q1=self.q[1], v=self.v, flow=self.flow)

    def velocity(self, obs, x, time):
        """`time` a number for each row; the angles are made one by one."""
        angles = [[10000 * t.item() / 10000 ** (k / 8) for k in range(8)] for t in time]
        angles = torch.tensor(angles, dtype=x.dtype)
        return self.flow(obs, x, angles.cos(), angles.sin())

    def smaller(self, obs, action):
        return torch.minimum(*[q(obs, action).squeeze(-1) for q in self.qt])

    def guided(self, obs, x):
        """One chunk for one state, the slope by backward()."""
        for i in range(self.m.flow_steps):
            u = torch.tensor([i / self.m.flow_steps], dtype=x.dtype)
            with torch.no_grad():
                v = self.velocity(obs, x, u)
            clean = (x + (1 - u) * v).clamp(-1, 1).requires_grad_()
            (slope,) = torch.autograd.grad(self.smaller(obs, clean).sum(), clean)
            x = x + v / self.m.flow_steps + self.m.guidance_weight * slope / self.m.flow_steps
        return x.clamp(-1, 1)

    def act(self, obs, key):
        n, size = self.m.n_proposals, self.flow.linears[-1].out_features
        noise = rng.normal(key, (len(obs) * n, size), obs.dtype)
        best = []
        for i, s in enumerate(obs):
            made = [self.guided(s[None], noise[i * n + j][None]) for j in range(n)]
            values = [self.smaller(s[None], a).item() for a in made]
            best.append(made[values.index(max(values))])
        return torch.cat(best)

    def update(self, batch, key):
        valid = batch.extras["valid"]
        last = valid[:, -1]
        with torch.no_grad():
            y = batch.reward + batch.discount * self.v(batch.next_obs).squeeze(-1)
            best = self.smaller(batch.obs, batch.action)
        critic = [((q(batch.obs, batch.action).squeeze(-1) - y) ** 2 * last).mean() for q in self.q]
        v = self.v(batch.obs).squeeze(-1)
        losses = [
            (self.m.expectile if b > x else 1 - self.m.expectile) * (b - x) ** 2 * w
            for b, x, w in zip(best, v, last, strict=True)
        ]
        k_noise, k_time = rng.split(key)
        z, bc, f = rng.normal_like(k_noise, batch.action), 0.0, self.m.flow_steps
        for b, step in enumerate(rng.randint(k_time, (len(z), 1), f + 1).double()):
            x = (1 - step / f) * z[b] + step / f * batch.action[b]
            error = self.velocity(batch.obs[b : b + 1], x[None], step / f)[0] - (
                batch.action[b] - z[b]
            )
            for h, part in enumerate(error.chunk(valid.shape[1])):
                bc = bc + (part**2).sum() * valid[b, h] / z.numel()
        v_loss = sum(losses) / len(losses)
        self.step({"q0": critic[0] / 2, "q1": critic[1] / 2, "v": v_loss, "flow": bc})
        self.follow(self.qt, self.q, self.m.polyak_rate)
        return {
            "bc_loss": bc.item(),
            "critic_loss": sum(critic).item() / 2,
            "v": v.mean().item(),
            "value_loss": v_loss.item(),
            "advantage_spread": (best - v).std().item(),
        }

    def gap(self, s):
        return max(
            *(q.gap(member(s.critic, i)) for i, q in enumerate(self.q)),
            *(q.gap(member(s.target_critic, i)) for i, q in enumerate(self.qt)),
            self.v.gap(member(s.value, 0)),
            self.flow.gap([*s.flow["trunk"], *s.flow["head"]]),
        )


class PlainDQC(Reference):
    def __init__(self, method, state):
        self.m = method
        self.qc = [MLP(member(state.chunk_critic, i), norm=True) for i in range(2)]
        self.q = [MLP(member(state.critic, i), norm=True) for i in range(2)]
        self.qt = copy.deepcopy(self.q)
        self.v, self.flow = MLP(member(state.value, 0), norm=True), MLP(state.flow, norm=True)
        self.rest = self.qc[0].linears[0].in_features - self.q[0].linears[0].in_features
        nets = {"qc0": self.qc[0], "qc1": self.qc[1], "q0": self.q[0], "q1": self.q[1]}
        self.optimise(method, **nets, v=self.v, flow=self.flow)

    together = PlainQC.together

    def act(self, obs, key):
        best = PlainQC.act(self, obs, key)
        zeros = torch.zeros(len(obs), self.rest, dtype=obs.dtype)
        return Plan(torch.cat([best, zeros], 1), torch.tensor([self.m.policy_chunk] * len(obs)))

    def update(self, batch, key):
        m, last = self.m, batch.extras["valid"][:, -1]
        first = batch.action[:, : batch.action.shape[1] - self.rest]
        with torch.no_grad():
            y = batch.reward + batch.discount * self.v(batch.next_obs).squeeze(-1)
            taught = [q(batch.obs, batch.action).squeeze(-1) for q in self.qc]
            best = self.together(self.qt, batch.obs, first)
        chunk = [((q(batch.obs, batch.action).squeeze(-1) - y) ** 2 * last).mean() for q in self.qc]
        distill = []
        for net, goal in zip(self.q, taught, strict=True):
            terms = [
                (m.distill_expectile if g >= x else 1 - m.distill_expectile) * (g - x) ** 2 * w
                for g, x, w in zip(goal, net(batch.obs, first).squeeze(-1), last, strict=True)
            ]
            distill.append(sum(terms) / len(terms))
        v = self.v(batch.obs).squeeze(-1)
        terms = [
            (m.backup_quantile if b >= x else 1 - m.backup_quantile) * (b - x).abs() * w
            for b, x, w in zip(best, v, last, strict=True)
        ]
        v_loss = sum(terms) / len(terms)
        bc = flow_loss(
            self.flow, batch._replace(action=first, extras={"valid": last[:, None]}), key
        )
        self.step(
            {
                "qc0": chunk[0] / 2,
                "qc1": chunk[1] / 2,
                "q0": distill[0] / 2,
                "q1": distill[1] / 2,
                "v": v_loss,
                "flow": bc,
            }
        )
        self.follow(self.qt, self.q, m.polyak_rate)
        return {
            "chunk_critic_loss": sum(chunk).item() / 2,
            "distill_loss": sum(distill).item() / 2,
            "value_loss": v_loss.item(),
            "bc_loss": bc.item(),
            "advantage_spread": (best - v).std().item(),
        }

    def gap(self, s):
        return max(
            *(q.gap(member(s.chunk_critic, i)) for i, q in enumerate(self.qc)),
            *(q.gap(member(s.critic, i)) for i, q in enumerate(self.q)),
            *(q.gap(member(s.target_critic, i)) for i, q in enumerate(self.qt)),
            self.v.gap(member(s.value, 0)),
            self.flow.gap(s.flow),
        )


class PlainCGQ(Reference):
    """Two of FQL's learners, and a pull of the second's critic to the first's."""

    class Learner(PlainFQL):
        def __init__(self, method, nets, target):
            self.m = method
            self.q = [MLP(member(nets.critic, i), norm=True) for i in range(2)]
            self.qt = [MLP(member(target, i), norm=True) for i in range(2)]
            self.flow, self.mu = MLP(nets.flow, norm=True), MLP(nets.actor, norm=True)
            self.optimise(method, q0=self.q[0], q1=self.q[1], flow=self.flow, mu=self.mu)

    def __init__(self, method, state):
        self.m, common = (
            method,
            {
                "q_aggregate": method.q_aggregate,
                "flow_steps": method.flow_steps,
                "lr": method.lr,
                "polyak_rate": method.polyak_rate,
            },
        )
        weights = (method.chunk_distill_weight, method.distill_weight)
        chunk, step = (FQL(distill_weight=w, **common) for w in weights)
        self.chunk = self.Learner(chunk, state.chunk, state.target_critics[0])
        self.single = self.Learner(step, state.step, state.target_critics[1])

    def update(self, batch, key):
        keys, valid = rng.split(key, 2), batch.extras["valid"]
        size = batch.action.shape[1] // valid.shape[1]
        one = batch._replace(
            action=batch.action[:, :size],
            reward=batch.extras["prefix_reward"][:, 0],
            discount=batch.extras["prefix_discount"][:, 0],
            next_obs=batch.extras["prefix_obs"][:, 0],
            extras={"valid": valid[:, :1]},
        )
        anchors = [0.0, 0.0]
        for i in range(2):
            with torch.no_grad():
                goal = self.chunk.q[i](batch.obs, batch.action).squeeze(-1)
            mine = self.single.q[i](one.obs, one.action).squeeze(-1)
            for g, x, w in zip(goal, mine, valid[:, -1], strict=True):
                side = self.m.anchor_expectile if g >= x else 1 - self.m.anchor_expectile
                anchors[i] = anchors[i] + side * (g - x) ** 2 * w / len(goal)
        step, plain_step = self.single, Reference.step

        def with_anchor(losses):
            for i in range(2):
                losses[f"q{i}"] = losses[f"q{i}"] + self.m.anchor_weight * anchors[i] / 2
            plain_step(step, losses)

        step.step = with_anchor
        whole = self.chunk.update(batch, keys[0])
        single = step.update(one, keys[1])
        names = ("critic_loss", "bc_loss", "distill_loss", "actor_q")
        return (
            {f"chunk_{k}": whole[k] for k in names}
            | {k: single[k] for k in names}
            | {"anchor_loss": sum(anchors).item() / 2}
        )

    def act(self, obs, key):
        action = self.single.act(obs, key)
        rest = self.chunk.mu.linears[-1].out_features - action.shape[1]
        zeros = torch.zeros(len(obs), rest, dtype=obs.dtype)
        return Plan(torch.cat([action, zeros], 1), torch.ones(len(obs), dtype=torch.long))

    def gap(self, s):
        parts = zip((self.chunk, self.single), (s.chunk, s.step), s.target_critics, strict=True)
        return max(
            max(
                *(q.gap(member(nets.critic, i)) for i, q in enumerate(learner.q)),
                *(q.gap(member(target, i)) for i, q in enumerate(learner.qt)),
                learner.flow.gap(nets.flow),
                learner.mu.gap(nets.actor),
            )
            for learner, nets, target in parts
        )


PLAIN = {
    FQL: PlainFQL,
    QC: PlainQC,
    ACSAC: PlainACSAC,
    IFQL: PlainIFQL,
    QGF: PlainQGF,
    DQC: PlainDQC,
    CGQ: PlainCGQ,
}
LOUD = {"lr": 1e-2, "polyak_rate": 0.2}
CASES = [
    (FQL(**SMALL, **LOUD, distill_weight=0.5), CHUNK),
    (
        FQL(**SMALL, **LOUD, distill_weight=0.5, q_aggregate="min", normalize_q=True),
        NStep(2, GAMMA),
    ),
    (QC(**SMALL, **LOUD, n_proposals=3), CHUNK),
    (QC(**SMALL, **LOUD, n_proposals=5, q_aggregate="min"), NStep(1, GAMMA)),
    (ACSAC(**SMALL, **LOUD, **TINY), CHUNK),
    (ACSAC(**SMALL, **LOUD, **TINY, polyak_target=True, head="shared"), CHUNK),
    (ACSAC(**SMALL, **LOUD, **TINY, positions="learned"), Chunk(2, GAMMA)),
    (IFQL(**SMALL, **LOUD, n_proposals=3), CHUNK),
    (IFQL(**SMALL, **LOUD, n_proposals=5, expectile=0.7), NStep(2, GAMMA)),
    (QGF(**SMALL, **LOUD, n_proposals=3, guidance_weight=0.3), CHUNK),
    (QGF(**SMALL, **LOUD, expectile=0.7, guidance_weight=0.3), NStep(2, GAMMA)),
    (DQC(**SMALL, **LOUD, n_proposals=3, distill_expectile=0.8), CHUNK),
    (
        DQC(**SMALL, **LOUD, n_proposals=5, policy_chunk=2, q_aggregate="min", backup_quantile=0.7),
        CHUNK,
    ),
    (CGQ(**SMALL, **LOUD, anchor_weight=0.5, chunk_distill_weight=0.5, distill_weight=0.8), CHUNK),
    (CGQ(**SMALL, **LOUD, anchor_weight=0.5, q_aggregate="min"), Chunk(2, GAMMA)),
]


def double(tree):
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)


def disagreement(method, view, data, n: int = 3, plain_method=None) -> float:
    """The largest difference in parameters, metrics and actions over n updates on the same batches."""
    pipeline = make_pipeline(data, view=view, batch_size=BATCH, needs=method.needs)
    state = double(method.init(rng.key(0), pipeline.spec(SPEC)))
    # weights as they are never at first: no bias is 0, no scale is 1, the twins' targets are old
    state = tree_map(
        lambda x: (
            x + 0.1 * torch.sin(torch.arange(x.numel()).double()).view(x.shape)
            if x.is_floating_point() and x.ndim > 0
            else x
        ),
        state,
    )._replace(opt=state.opt)
    plain_method = plain_method or method
    plain, key, worst = PLAIN[type(plain_method)](plain_method, state), rng.key(7), 0.0
    for _ in range(n):
        key, k_batch, k_update = rng.split(key, 3)
        batch = pipeline.sample(k_batch)
        state, metrics = method.update(state, batch, k_update)
        logged = plain.update(batch, k_update)
        worst = max(worst, *(abs(v - metrics[k].item()) for k, v in logged.items()))
    obs = batch.obs[:5]
    ours, theirs = method.act(state, obs, rng.key(3)), plain.act(obs, rng.key(3))
    if isinstance(ours, Plan):
        assert torch.equal(ours.length, theirs.length)
        ours, theirs = ours.action, theirs.action
    return max(worst, plain.gap(state), (ours - theirs).abs().max().item())


@pytest.mark.parametrize("method, view", CASES, ids=str)
def test_updates_and_actions_equal_the_plain_implementation(method, view, data64):
    assert disagreement(method, view, data64) < 1e-9


def test_the_batches_compared_have_padding_and_terminals(data64):
    pipeline = make_pipeline(data64, view=CHUNK, batch_size=BATCH, needs=["prefixes"])
    batch = pipeline.sample(rng.split(rng.key(7), 3)[1])
    assert (batch.extras["valid"] == 0).any() and (batch.extras["prefix_discount"] == 0).any()


@pytest.mark.parametrize("method, view", CASES, ids=str)
def test_every_hyper_parameter_acts_in_the_settings_compared(method, view, data64):
    pipeline = make_pipeline(data64, view=view, batch_size=BATCH, needs=method.needs)
    start = double(method.init(rng.key(0), pipeline.spec(SPEC)))
    other = {"flow_steps": 5, "n_proposals": 2}

    def after(m):
        state = start
        for i in range(3):
            state, _ = m.update(state, pipeline.sample(rng.key(i)), rng.key(100 + i))
        made = m.act(state, pipeline.sample(rng.key(9)).obs, rng.key(10))
        return torch.cat(
            [x.double().flatten() for x in tree_leaves((state._replace(opt=()), made))]
        )

    want = after(method)
    for f in dataclasses.fields(method):
        value = getattr(method, f.name)
        if isinstance(value, float) and not (
            f.name == "polyak_rate" and getattr(method, "polyak_target", True) is False
        ):
            changed = dataclasses.replace(method, **{f.name: 0.7 * value})
        elif f.name in other:
            changed = dataclasses.replace(method, **{f.name: other[f.name]})
        else:
            continue
        assert (after(changed) - want).abs().max() > 1e-7, f.name


# --- what reaches which network


def moved(method, view, data, change) -> dict[str, bool]:
    """Which networks one update of a changed batch moves at all; targets are left out."""
    pipeline = make_pipeline(data, view=view, batch_size=BATCH, needs=method.needs)
    state = double(method.init(rng.key(0), pipeline.spec(SPEC)))
    after, _ = method.update(state, change(pipeline.sample(rng.key(1))), rng.key(2))
    flat = lambda s: {
        f"{k}{i}": x
        for k, part in s._asdict().items()
        if "target" not in k and k != "opt"
        for i, x in (part._asdict() if hasattr(part, "_asdict") else {"": part}).items()
    }
    before, after = flat(state), flat(after)
    same = lambda a, b: all(
        torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True)
    )
    return {k: not same(before[k], after[k]) for k in before}


@pytest.mark.parametrize("method, view", CASES, ids=str)
def test_padding_teaches_no_critic_and_no_flow(method, view, data64):
    """Only one-step actors move: where they climb Q, no gradient of theirs reaches a critic or the flow."""
    blank = lambda b: b._replace(extras=b.extras | {"valid": 0 * b.extras["valid"]})
    assert all(moved(method, view, data64, lambda b: b).values())
    for name, did in moved(method, view, data64, blank).items():
        assert did == name.endswith("actor"), name


@pytest.mark.parametrize("method, view", [c for c in CASES if not isinstance(c[0], QGF)], ids=str)
def test_a_flow_learns_from_its_own_loss_alone(method, view, data64, monkeypatch):
    """Neither bootstrapping, nor distilling, nor guiding has a gradient into the policy that proposes."""
    monkeypatch.setattr(flow, "bc_loss", lambda params, obs, *_: 0.0 * obs.mean())
    for name, did in moved(method, view, data64, lambda b: b).items():
        assert did == (not name.endswith("flow")), name


# --- mutants: each has one sign, one index or one choice turned round

_FQL, _QC, _ACSAC, _IFQL, _QGF = CASES[0], CASES[2], CASES[4], CASES[7], CASES[9]
_DQC, _CGQ = CASES[11], CASES[13]
MUTANTS = {
    "ifql: target subtracts the future": (
        _IFQL,
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
    ),
    "ifql: expectile of the other side": (_IFQL, "(advantage < 0)", "(advantage > 0)"),
    "ifql: the larger critic": (_IFQL, "batch.action).amin(0)", "batch.action).amax(0)"),
    "ifql: V learns from the online critics": (_IFQL, "before.target_critic", "before.critic"),
    "ifql: the next value has a gradient": (
        _IFQL,
        "flow.q_values(before.value",
        "flow.q_values(value",
    ),
    "ifql: padding counts in V": (
        _IFQL,
        "torch.square(advantage) * last",
        "torch.square(advantage)",
    ),
    "ifql: padding counts in Q": (_IFQL, "torch.square(q - goal) * last", "torch.square(q - goal)"),
    "ifql: the worst proposal": (_IFQL, "flow.first_argmax(q)", "flow.first_argmax(-q)"),
    "ifql: the larger critic chooses": (
        _IFQL,
        "action).amin(0).unflatten",
        "action).amax(0).unflatten",
    ),
    "ifql: the target stands still": (
        _IFQL,
        "polyak(state.target_critic, critic,",
        "polyak(state.target_critic, state.critic,",
    ),
    "qgf: target subtracts the future": (
        _QGF,
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
    ),
    "qgf: expectile of the other side": (_QGF, "(advantage < 0)", "(advantage > 0)"),
    "qgf: V learns from the larger critic": (
        _QGF,
        "batch.obs, action).amin(0) - v",
        "batch.obs, action).amax(0) - v",
    ),
    "qgf: V learns from the online critics": (
        _QGF,
        "_values(before.target_critic",
        "_values(before.critic",
    ),
    "qgf: the next value has a gradient": (_QGF, "_values(before.value", "_values(value"),
    "qgf: padding counts in V": (_QGF, "torch.square(advantage) * last", "torch.square(advantage)"),
    "qgf: padding counts in Q": (_QGF, "torch.square(q - goal) * last", "torch.square(q - goal)"),
    "qgf: padding counts in the clone": (
        _QGF,
        "torch.square(error) * valid[..., None]",
        "torch.square(error)",
    ),
    "qgf: a grid without its end": (_QGF, "self.flow_steps + 1)", "self.flow_steps)"),
    "qgf: the clone's flow runs backwards": (
        _QGF,
        "(1 - time) * noise + time * action",
        "time * noise + (1 - time) * action",
    ),
    "qgf: a normalised last layer": (
        _QGF,
        'x = nets.mlp(params["trunk"], x, activation="gelu_tanh", layer_norm="before", eps=1e-6)',
        'x = nets._normalised({}, nets.mlp(params["trunk"], x, activation="gelu_tanh", layer_norm="before", eps=1e-6), 1e-6)',
    ),
    "qgf: sines before cosines": (_QGF, "angle.cos(), angle.sin()", "angle.sin(), angle.cos()"),
    "qgf: flows away from larger values": (
        _QGF,
        "v + self.guidance_weight",
        "v - self.guidance_weight",
    ),
    "qgf: slope at the noisy action": (_QGF, "grad(total)(clean)", "grad(total)(x)"),
    "qgf: the slope of the prediction counts": (
        _QGF,
        "grad(total)(clean)",
        "grad(lambda a: total((a + (1 - time) * _velocity(state.flow, repeated, a, time)).clamp(-1, 1)))(x)",
    ),
    "qgf: clipped components have no slope": (
        _QGF,
        "worth(a).sum()",
        "worth(a.clamp(-1, 1) * (a.abs() < 1) + a.detach() * (a.abs() >= 1)).sum()",
    ),
    "qgf: the prediction is not clipped": (
        _QGF,
        "(x + (1 - time) * v).clamp(-1, 1)",
        "(x + (1 - time) * v)",
    ),
    "qgf: a shorter prediction": (_QGF, "(1 - time) * v).clamp", "(1 - time) * v / 2).clamp"),
    "qgf: guided by the larger critic": (_QGF, "repeated, a).amin(0)", "repeated, a).amax(0)"),
    "qgf: guided by the online critics": (
        _QGF,
        "_values(state.target_critic, r",
        "_values(state.critic, r",
    ),
    "qgf: the worst proposal": (
        _QGF,
        "flow.first_argmax(worth(action)",
        "flow.first_argmax(-worth(action)",
    ),
    "qgf: the flow is not trained": (
        _QGF,
        "critic_loss + bc_loss, metrics",
        "critic_loss + 0 * bc_loss, metrics",
    ),
    "qgf: the target stands still": (
        _QGF,
        "polyak(state.target_critic, critic,",
        "polyak(state.target_critic, state.critic,",
    ),
    "dqc: target subtracts the future": (
        _DQC,
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
    ),
    "dqc: the next value has a gradient": (
        _DQC,
        "flow.q_values(before.value",
        "flow.q_values(value",
    ),
    "dqc: the chunk critic follows its pupil": (_DQC, "chunk_q.detach() - q", "chunk_q - q"),
    "dqc: taught by the other twin": (_DQC, "chunk_q.detach() - q", "chunk_q.detach().flip(0) - q"),
    "dqc: expectile of the other side": (_DQC, "_side(gap, self", "_side(-gap, self"),
    "dqc: quantile of the other side": (_DQC, "_side(advantage, self", "_side(-advantage, self"),
    "dqc: a square for the absolute error": (
        _DQC,
        "side * advantage.abs()",
        "side * advantage.square()",
    ),
    "dqc: an absolute error for the square": (_DQC, "* torch.square(gap) *", "* gap.abs() *"),
    "dqc: V learns from the online critics": (
        _DQC,
        "flow.q_values(before.target_critic",
        "flow.q_values(before.critic",
    ),
    "dqc: larger critic for the mean": (
        _DQC,
        'q.mean(0) if self.q_aggregate == "mean"',
        'q.amax(0) if self.q_aggregate == "mean"',
    ),
    "dqc: padding counts in the chunk critic": (
        _DQC,
        "torch.square(chunk_q - goal) * last",
        "torch.square(chunk_q - goal)",
    ),
    "dqc: padding counts in the critic": (_DQC, "torch.square(gap) * last", "torch.square(gap)"),
    "dqc: padding counts in V": (_DQC, "advantage.abs() * last", "advantage.abs()"),
    "dqc: padding counts in the clone": (
        _DQC,
        "first, last[:, None], key",
        "first, 0 * last[:, None] + 1, key",
    ),
    "dqc: the last steps for the first": (
        _DQC,
        'batch.action[:, : velocity[-1]["b"].shape[-1]]',
        'batch.action[:, -velocity[-1]["b"].shape[-1] :]',
    ),
    "dqc: the worst proposal": (_DQC, "flow.first_argmax(q)", "flow.first_argmax(-q)"),
    "dqc: target critics choose": (
        _DQC,
        "flow.q_values(state.critic, r",
        "flow.q_values(state.target_critic, r",
    ),
    "dqc: one step more": (
        CASES[12],
        "best[:, 0], self.policy_chunk,",
        "best[:, 0], self.policy_chunk + 1,",
    ),
    "dqc: the flow is not trained": (
        _DQC,
        "value_loss + bc_loss, metrics",
        "value_loss + 0 * bc_loss, metrics",
    ),
    "dqc: the target stands still": (
        _DQC,
        "polyak(state.target_critic, critic,",
        "polyak(state.target_critic, state.critic,",
    ),
    "cgq: target subtracts the future": (
        _CGQ,
        "part.reward + part.discount",
        "part.reward - part.discount",
    ),
    "cgq: next action at this state": (_CGQ, "net.actor, part.next_obs", "net.actor, part.obs"),
    "cgq: next action is not clipped": (_CGQ, "next_action.clamp(-1, 1)", "next_action"),
    "cgq: larger critic for the mean": (
        _CGQ,
        'q.mean(0) if self.q_aggregate == "mean"',
        'q.amax(0) if self.q_aggregate == "mean"',
    ),
    "cgq: online critics value": (
        _CGQ,
        "flow.q_values(target, part",
        "flow.q_values(net.critic, part",
    ),
    "cgq: the weights of chunk and step change places": (
        _CGQ,
        "(self.chunk_distill_weight, self.distill_weight)",
        "(self.distill_weight, self.chunk_distill_weight)",
    ),
    "cgq: the whole chunk's reward for a step's": (
        _CGQ,
        'x["prefix_reward"][:, 0]',
        "batch.reward",
    ),
    "cgq: the whole chunk's discount for a step's": (
        _CGQ,
        'x["prefix_discount"][:, 0]',
        "batch.discount",
    ),
    "cgq: the chunk's end for a step's": (_CGQ, 'x["prefix_obs"][:, 0]', "batch.next_obs"),
    "cgq: the last action for the first": (
        _CGQ,
        "batch.action[:, :size]",
        "batch.action[:, -size:]",
    ),
    "cgq: padding counts in the critic": (
        _CGQ,
        "torch.square(q - goal) * valid[:, -1]",
        "torch.square(q - goal)",
    ),
    "cgq: padding counts in the anchor": (_CGQ, "torch.square(gap) * whole", "torch.square(gap)"),
    "cgq: critic follows the actor": (
        _CGQ,
        "flow.q_values(critic, part.obs, action",
        "flow.q_values(net.critic, part.obs, action",
    ),
    "cgq: actor descends Q": (
        _CGQ,
        "weight * distill_loss - actor_q",
        "weight * distill_loss + actor_q",
    ),
    "cgq: the chunk critic is drawn too": (
        _CGQ,
        "values[0].detach() - values[1]",
        "values[0] - values[1]",
    ),
    "cgq: drawn to the other twin": (
        _CGQ,
        "values[0].detach() - values[1]",
        "values[0].detach().flip(0) - values[1]",
    ),
    "cgq: expectile of the other side": (_CGQ, "(gap < 0)", "(gap > 0)"),
    "cgq: pushed away from the chunk critic": (
        _CGQ,
        "total + self.anchor_weight",
        "total - self.anchor_weight",
    ),
    "cgq: another noise for the flow": (
        _CGQ,
        "flow.sample(net.flow, part.obs, noise",
        "flow.sample(net.flow, part.obs, -noise",
    ),
    "cgq: the flow is not trained": (
        _CGQ,
        "critic_loss + bc_loss + weight",
        "critic_loss + weight",
    ),
    "cgq: the target stands still": (
        _CGQ,
        "polyak(state.target_critics, (chunk.critic, step.critic)",
        "polyak(state.target_critics, (state.chunk.critic, state.step.critic)",
    ),
    "fql: target subtracts the future": (
        _FQL,
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
    ),
    "fql: bootstraps from the online critics": (
        _FQL,
        "flow.q_values(state.target_critic, b",
        "flow.q_values(state.critic, b",
    ),
    "fql: next action at this state": (
        _FQL,
        "state.actor, batch.next_obs, rng",
        "state.actor, batch.obs, rng",
    ),
    "fql: next action is not clipped": (
        _FQL,
        "rng.normal_like(k_next, noise)\n        ).clamp(-1, 1)",
        "rng.normal_like(k_next, noise)\n        )",
    ),
    "fql: smaller critic for the mean": (
        _FQL,
        'q.mean(0) if self.q_aggregate == "mean"',
        'q.amin(0) if self.q_aggregate == "mean"',
    ),
    "fql: padding counts in the critic": (_FQL, "* valid[:, -1]).mean()", ").mean()"),
    "fql: first step's mask for the last": (_FQL, "* valid[:, -1]", "* valid[:, 0]"),
    "fql: actor descends Q": (
        _FQL,
        "distill_loss - scale * actor_q",
        "distill_loss + scale * actor_q",
    ),
    "fql: critic follows the actor": (
        _FQL,
        "flow.q_values(fixed_critic, b",
        "flow.q_values(critic, b",
    ),
    "fql: Q of an action that is not clipped": (
        _FQL,
        "fixed_critic, batch.obs, action.clamp(-1, 1)",
        "fixed_critic, batch.obs, action",
    ),
    "fql: another noise for the flow": (
        _FQL,
        "flow.sample(state.flow, batch.obs, noise,",
        "flow.sample(state.flow, batch.obs, -noise,",
    ),
    "fql: the flow is not trained": (
        _FQL,
        "critic_loss + bc_loss + actor_loss",
        "critic_loss + actor_loss",
    ),
    "fql: the target stands still": (
        _FQL,
        "polyak(state.target_critic, critic,",
        "polyak(state.target_critic, state.critic,",
    ),
    "fql: Q is scaled by its mean": (
        CASES[1],
        "actor_q.abs().mean().detach()",
        "actor_q.mean().abs().detach()",
    ),
    "fql: the scale has a gradient": (
        CASES[1],
        "actor_q.abs().mean().detach()",
        "actor_q.abs().mean()",
    ),
    "qc: target subtracts the future": (
        _QC,
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
    ),
    "qc: online critics value": (
        _QC,
        "flow.q_values(state.target_critic,",
        "flow.q_values(state.critic,",
    ),
    "qc: target critics choose": (
        _QC,
        "flow.q_values(state.critic, repeated",
        "flow.q_values(state.target_critic, repeated",
    ),
    "qc: the worst proposal": (_QC, "flow.first_argmax(q)", "flow.first_argmax(-q)"),
    "qc: larger critic for the mean": (
        _QC,
        'q.mean(0) if self.q_aggregate == "mean"',
        'q.amax(0) if self.q_aggregate == "mean"',
    ),
    "qc: proposals at this state": (
        _QC,
        "self.act(state, batch.next_obs, k_next)",
        "self.act(state, batch.obs, k_next)",
    ),
    "qc: padding counts in the critic": (_QC, "* valid[:, -1]).mean()", ").mean()"),
    "qc: the flow is not trained": (
        _QC,
        "return critic_loss + bc_loss",
        "return critic_loss + 0 * bc_loss",
    ),
    "qc: the target stands still": (
        _QC,
        "polyak(state.target_critic, critic,",
        "polyak(state.target_critic, state.critic,",
    ),
    "acsac: the larger critic": (_ACSAC, ".amin(0)  # (2, B, N, H)", ".amax(0)  # (2, B, N, H)"),
    "acsac: the mean critic": (_ACSAC, ".amin(0)  # (2, B, N, H)", ".mean(0)  # (2, B, N, H)"),
    "acsac: the largest of each critic, then the smaller": (
        _ACSAC,
        "value = q.flatten(1).gather(1, index[:, None]).squeeze(1)",
        "value = self._q(critic, obs, action).flatten(2).amax(-1).amin(0)",
    ),
    "acsac: whole chunks only": (
        _ACSAC,
        "index = flow.first_argmax(q.flatten(1))  # (B,)",
        "index = flow.first_argmax(q[..., -1]) * q.shape[-1] + q.shape[-1] - 1",
    ),
    "acsac: the worst prefix": (
        _ACSAC,
        "flow.first_argmax(q.flatten(1))",
        "flow.first_argmax(-q.flatten(1))",
    ),
    "acsac: one step more": (
        _ACSAC,
        "index % q.shape[-1] + 1",
        "(index % q.shape[-1] + 2).clamp(max=q.shape[-1])",
    ),
    "acsac: the chunk of another proposal": (
        _ACSAC,
        "index // q.shape[-1]",
        "(index // q.shape[-1] + 1) % n",
    ),
    "acsac: target subtracts the future": (
        _ACSAC,
        '["prefix_reward"] + extras',
        '["prefix_reward"] - extras',
    ),
    "acsac: the whole chunk's discount": (
        _ACSAC,
        'extras["prefix_discount"] * value',
        "batch.discount[:, None] * value",
    ),
    "acsac: padding counts in the critic": (
        _ACSAC,
        "(torch.square(q - target_q) * valid)",
        "(torch.square(q - target_q))",
    ),
    "acsac: Polyak where online is asked for": (
        CASES[5],
        "critic = state.target_critic",
        "critic = state.critic",
    ),
    "acsac: the target stands still": (
        CASES[5],
        "polyak(target, critic,",
        "polyak(target, state.critic,",
    ),
    "acsac: a token sees its own chunk only": (
        _ACSAC,
        "ends, obs, chunks",
        "ends, 0 * obs, chunks",
    ),
    "acsac: a token sees later actions": (
        _ACSAC,
        "chunks = action.flatten(1, 2)",
        "chunks = action.flip(2).flatten(1, 2)",
    ),
    "acsac: proposals see one another": (_ACSAC, "branches=n)", "branches=1)"),
    "acsac: positions are not added to actions": (
        _ACSAC,
        "state, step = position[:, :1], position[:, 1:]",
        "state, step = position[:, :1], 0 * position[:, 1:]",
    ),
    "acsac: values read at the token before": (
        _ACSAC,
        "return q.unflatten(2, (n, h))",
        "return q.roll(1, 2).unflatten(2, (n, h))",
    ),
    "acsac: the flow is not trained": (
        _ACSAC,
        "return critic_loss + bc_loss",
        "return critic_loss + 0 * bc_loss",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_finds_every_mutant(name, data64):
    (method, view), old, new = MUTANTS[name]
    changed = mutated(type(method), old, new)(**dataclasses.asdict(method))
    try:
        found = disagreement(changed, view, data64, n=2, plain_method=method)
    except AssertionError:  # lengths differ
        return
    assert found > 1e-8
