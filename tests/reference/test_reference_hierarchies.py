"""HIQL, OTA and ARL against ordinary implementations, in float64.

The references are torch.nn modules with one torch.optim.Adam over the sum of their losses; what is not to
learn is computed under `no_grad`. They are written from the equations of the papers, one network at a time.
"""

import copy
import dataclasses
import inspect
import types

import pytest
import torch
from support.modules import double, follow, gap, load, member
from support.mutants import mutated
from torch import nn
from torch.distributions import Normal

from offbench import rng
from offbench.data.goals import Goal
from offbench.data.pipeline import make_pipeline
from offbench.methods.arl import ARL
from offbench.methods.hiql import HIQL
from offbench.methods.ota import OTA
from offbench.nn import goal_nets, hierarchy
from offbench.testing.contract import SPEC

N, S = 20, SPEC.obs_dim
GOAL = Goal(0.9, actor_goals=(0.1, 0.6, 0.3), subgoal_steps=3, option_steps=4, low_gamma=0.7)
GOAL_SPEC = GOAL.spec(SPEC)
LOUD = {"hidden": (16, 16), "expectile": 0.9, "polyak_rate": 0.1, "lr": 1e-2, "rep_dim": 4,
        "low_inverse_temperature": 2.0, "high_inverse_temperature": 20.0}  # fmt: skip
METHODS = {
    "hiql": HIQL(**LOUD),
    "ota": OTA(**LOUD),
    "arl": ARL(**LOUD, rep_hidden=(8,)),
    "arl ddpg_bc": ARL(**LOUD, rep_hidden=(8,), high_actor="ddpg_bc", high_bc_weight=0.4),
    "arl relative": ARL(**LOUD, rep_hidden=(8,), relative_options=True),
    "arl ddpg_bc relative": ARL(
        **LOUD, rep_hidden=(8,), high_actor="ddpg_bc", relative_options=True
    ),
}


def module(params: list) -> nn.Sequential:
    """A network of ours as torch's: GELU, then LayerNorm where there is a scale."""
    parts: list[nn.Module] = []
    for layer in params:
        n_in, n_out = layer["w"].shape
        parts += [nn.Linear(n_in, n_out), nn.GELU("tanh")]
        if "scale" in layer:
            parts.append(nn.LayerNorm(n_out, eps=1e-6))
    made = nn.Sequential(*parts[:-1]).double()
    load(params, made)
    return made


def heads(params: list) -> list[list]:
    """The networks of an ensemble; of a single network, that one."""
    return [member(params, i) for i in range(2)] if params[0]["w"].ndim == 3 else [params]


class Plain:
    """Networks by the names of our state, each a list of one or two, and one optimiser."""

    def __init__(self, method, state):
        self.m = method
        self.nets = {
            name: [module(p) for p in heads(part)]
            for name, part in state._asdict().items()
            if name != "opt"
        }
        for name in [n for n in self.nets if n.startswith("target_")]:
            self.nets[name] = copy.deepcopy(self.nets[name.removeprefix("target_")])
        learned = [n for name, n in self.nets.items() if not name.startswith("target_")]
        self.opt = torch.optim.Adam(
            [p for nets in learned for n in nets for p in n.parameters()], method.lr
        )

    def __getitem__(self, name):
        """A network on the concatenation of its inputs; of twins the list of both outputs, (B,) each."""

        def call(*inputs):
            outs = [net(torch.cat(inputs, 1)) for net in self.nets[name]]
            outs = [x.squeeze(1) if x.shape[1] == 1 else x for x in outs]
            return outs if len(outs) == 2 else outs[0]

        return call

    def update(self, batch) -> dict[str, float]:
        kind = type(self.m)
        losses = {HIQL: hiql, OTA: ota, ARL: arl}[
            next(c for c in (HIQL, OTA, ARL) if issubclass(kind, c))
        ](self, batch)
        self.opt.zero_grad()
        sum(losses.values()).backward()
        self.opt.step()
        for name in self.nets:
            if name.startswith("target_"):
                for target, net in zip(self.nets[name], self.nets[name.removeprefix("target_")]):
                    follow(target, net, self.m.polyak_rate)
        return {name: loss.item() for name, loss in losses.items()}

    def gaps(self, state) -> list[float]:
        return [
            gap(ours, theirs)
            for name, nets in self.nets.items()
            for ours, theirs in zip(heads(getattr(state, name)), nets, strict=True)
        ]


def of_length(x, length):
    return x / x.norm(dim=1, keepdim=True) * length


def phi(plain, obs):
    return of_length(plain["goal_rep"](obs), plain.m.rep_dim**0.5)


def expectile(u, error, rate):
    weight = torch.tensor([rate if a >= 0 else 1 - rate for a in u.tolist()], dtype=u.dtype)
    return (weight * error**2).mean()


def ivl(learned, target, here, after, reward, discount, rate):
    """`here` and `after` are the inputs of V; those of the target are without a gradient."""
    with torch.no_grad():
        (n1, n2), (t1, t2) = target(*after), target(*here)
        advantage = reward + discount * torch.minimum(n1, n2) - (t1 + t2) / 2
    v1, v2 = learned(*here)
    return expectile(advantage, reward + discount * n1 - v1, rate) + expectile(
        advantage, reward + discount * n2 - v2, rate
    )


def regression(mean, wanted, advantage, temperature):
    """The loss of an advantage-weighted Gaussian of deviation 1."""
    weight = torch.exp(temperature * advantage).clamp(max=100)
    return -(weight * Normal(mean, 1.0).log_prob(wanted).sum(1)).mean()


def levels(plain, batch, low_value, high_value):
    """The losses of the two policies of HIQL and OTA."""
    m, e = plain.m, batch.extras
    s, goal = batch.obs[:, :S], e["actor_obs"][:, S:]
    waypoint, target = e["low_actor_obs"][:, S:], e["target_obs"][:, S:]
    with torch.no_grad():
        v = lambda name, s, g: sum(plain[name](s, phi(plain, torch.cat([s, g], 1)))) / 2
        s2 = batch.next_obs[:, :S]
        low = v(low_value, s2, waypoint) - v(low_value, s, waypoint)
        high = v(high_value, target, goal) - v(high_value, s, goal)
        toward = phi(plain, torch.cat([s, waypoint], 1))
        wanted = phi(plain, torch.cat([s, target], 1))
    return {
        "low_actor_loss": regression(
            plain["low_actor"](s, toward), batch.action, low, m.low_inverse_temperature
        ),
        "high_actor_loss": regression(
            plain["high_actor"](s, goal), wanted, high, m.high_inverse_temperature
        ),
    }


def value_loss(plain, name, obs, next_obs, reward, discount):
    here = (obs[:, :S], phi(plain, obs))
    after = (next_obs[:, :S], phi(plain, next_obs))
    rate = plain.m.expectile
    return ivl(plain[name], plain[f"target_{name}"], here, after, reward, discount, rate)


def hiql(plain, batch):
    step = (batch.obs, batch.next_obs, batch.reward, batch.discount)
    return {
        "value_loss": value_loss(plain, "value", *step),
        **levels(plain, batch, "value", "value"),
    }


def ota(plain, batch):
    step = (batch.obs, batch.next_obs, batch.reward, batch.discount)
    option = [batch.extras[f"option_{x}"] for x in ("obs", "next_obs", "reward", "discount")]
    return {
        "low_value_loss": value_loss(plain, "low_value", *step),
        "high_value_loss": value_loss(plain, "high_value", *option),
        **levels(plain, batch, "low_value", "high_value"),
    }


def normalized(m, x):
    if not m.relative_options:
        return of_length(x, m.rep_dim**0.5)
    scale = [torch.tanh(row.norm()) / row.norm() if row.norm() > 0 else 1.0 for row in x]
    return torch.stack([row * m.rep_dim**0.5 * s for row, s in zip(x, scale, strict=True)])


def option_of(plain, obs):
    s, w = obs[:, :S], obs[:, S:]
    return normalized(plain.m, plain["option_rep"](w - s if plain.m.relative_options else obs))


def arl(plain, batch):
    m, e, a = plain.m, batch.extras, batch.action
    losses = {
        "high_value_loss": ivl(
            plain["high_value"], plain["target_high_value"], (batch.obs,), (batch.next_obs,),
            batch.reward, batch.discount, m.expectile,
        )
    }  # fmt: skip
    with torch.no_grad():
        option = option_of(plain, e["target_obs"])
        reached = sum(plain["high_value"](e["reached_obs"])) / 2
        backup = e["low_reward"] + e["low_discount"] * plain["low_value"](e["low_next_obs"])
        target_q = torch.minimum(*plain["target_low_critic"](e["low_obs"], a))
        low_gain = torch.minimum(*plain["low_critic"](e["low_actor_obs"], a)) - plain["low_value"](
            e["low_actor_obs"]
        )
        high_q = torch.minimum(*plain["high_critic"](e["actor_obs"], option))
        high_gain = high_q - sum(plain["high_value"](e["actor_obs"])) / 2
    squared = lambda twins, y: sum(((q - y) ** 2).mean() for q in twins)
    losses["high_critic_loss"] = squared(plain["high_critic"](e["actor_obs"], option), reached)
    losses["low_critic_loss"] = squared(plain["low_critic"](e["low_obs"], a), backup)
    u = target_q - plain["low_value"](e["low_obs"])
    losses["low_value_loss"] = expectile(u, u, m.expectile)

    mean = plain["high_actor"](e["actor_obs"])
    if m.high_actor == "awr":
        high = regression(mean, option, high_gain, m.high_inverse_temperature)
    else:
        frozen = [copy.deepcopy(net).requires_grad_(False) for net in plain.nets["high_critic"]]
        x = torch.cat([e["actor_obs"], normalized(m, mean)], 1)
        q = torch.minimum(*(net(x).squeeze(1) for net in frozen))
        cloning = -Normal(mean, 1.0).log_prob(option).sum(1).mean()
        high = -q.mean() / (q.abs().mean().item() + 1e-6) + m.high_bc_weight * cloning
    losses["high_actor_loss"] = high
    named = option_of(plain, e["low_actor_obs"])
    losses["low_actor_loss"] = regression(
        plain["low_actor"](batch.obs[:, :S], named), a, low_gain, m.low_inverse_temperature
    )
    return losses


def decided(plain, obs):
    """The sub-goal, the action and the value of the plain networks."""
    with torch.no_grad():
        named = plain["high_actor"](obs)
        rep = (
            normalized(plain.m, named)
            if isinstance(plain.m, ARL)
            else of_length(named, plain.m.rep_dim**0.5)
        )
        action = plain["low_actor"](obs[:, :S], rep).clamp(-1, 1)
        if isinstance(plain.m, ARL):
            return rep, action, sum(plain["high_value"](obs)) / 2
        name = "low_value" if isinstance(plain.m, OTA) else "value"
        return rep, action, sum(plain[name](obs[:, :S], phi(plain, obs))) / 2


def disagreement(method, data, n: int = N) -> float:
    """The largest difference of parameters, losses, sub-goals, actions and values over n updates."""
    pipeline = make_pipeline(data, view=GOAL, batch_size=32, needs=method.needs)
    state = double(method.init(rng.key(0), GOAL_SPEC))
    plain, worst = Plain(method, state), 0.0
    for i in range(n):
        batch = pipeline.sample(rng.key(i))
        state, metrics = method.update(state, batch, rng.key(i))
        logs = plain.update(batch)
        worst = max(worst, *(abs(logs[name] - metrics[name].item()) for name in logs))
    # far from the data too, where actions are clipped
    obs = 10 * pipeline.sample(rng.key(n)).obs
    ours = (
        method.subgoal(state, obs),
        method.act(state, obs, rng.key(0)),
        method.value(state, obs, None),
    )
    apart = [(a - b).abs().max().item() for a, b in zip(ours, decided(plain, obs), strict=True)]
    return max(worst, *apart, *plain.gaps(state))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in ("arl ddpg_bc", "arl relative") else n
        for n in METHODS
    ],
)
def test_updates_equal_the_plain_implementation(name, data64):
    assert disagreement(METHODS[name], data64) < 1e-9


def test_every_branch_of_the_losses_is_taken(data64):
    """Otherwise the comparison would say nothing about it: clipped weights, and rewards at goals."""
    method = METHODS["hiql"]
    pipeline = make_pipeline(data64, view=GOAL, batch_size=32, needs=ARL.needs + OTA.needs)
    state, reached = double(method.init(rng.key(0), GOAL_SPEC)), []
    for i in range(N):
        batch = pipeline.sample(rng.key(i))
        state, _ = method.update(state, batch, rng.key(i))
        reached.append(
            [batch.discount, batch.extras["option_discount"], batch.extras["low_discount"]]
        )
    pairs = [batch.extras[x] for x in ("actor_obs", "reached_obs")]
    reps = [hierarchy.represent(state.goal_rep, x) for x in pairs]
    here, there = hierarchy.values(state.value, pairs, reps)
    gain = 20 * (there - here).mean(0)
    assert (gain.exp() > 100).any() and (gain < 0).any()
    assert all((torch.stack(x) == 0).any() for x in zip(*reached, strict=True))


# (a method above, where: its own file or a module of offbench.nn, source before, and after)
MUTANTS = {
    "larger twin": ("hiql", hierarchy, "next_v.amin(0) - target", "next_v.amax(0) - target"),
    "weight from the smaller twin": ("hiql", hierarchy, "target_v.mean(0)", "target_v.amin(0)"),
    "target subtracts the future": (
        "hiql",
        hierarchy,
        "step.reward + step.discount * next_v - v",
        "step.reward - step.discount * next_v - v",
    ),
    "each head to the smaller target": (
        "hiql",
        hierarchy,
        "step.discount * next_v - v",
        "step.discount * next_v.amin(0) - v",
    ),
    "half the loss": ("hiql", hierarchy, ".mean(1).sum()", ".mean()"),
    "expectile of the other side": ("hiql", goal_nets, "advantage < 0", "advantage > 0"),
    "phi learns through the next value": (
        "hiql",
        hierarchy,
        "represent(fixed[0]",
        "represent(learned[0]",
    ),
    "no target network": (
        "hiql",
        hierarchy,
        "target_v, next_v = values(fixed[1]",
        "target_v, next_v = values(learned[1]",
    ),
    "phi of any length": (
        "hiql",
        hierarchy,
        "length_normalized(goal_nets.features(params, obs))",
        "goal_nets.features(params, obs)",
    ),
    "phi of length 1": ("hiql", hierarchy, "0.0) * x.shape[-1] ** 0.5", "0.0)"),
    "high level judged after one step": (
        "hiql",
        hierarchy,
        'extras["reached_obs"]]',
        'extras["actor_next_obs"]]',
    ),
    "low level judged by the goal": (
        "hiql",
        hierarchy,
        '[extras["low_actor_obs"], extras["low_actor_next_obs"]]',
        '[extras["actor_obs"], extras["actor_next_obs"]]',
    ),
    "high level imitates the low level's sub-goal": (
        "hiql",
        hierarchy,
        'extras["target_obs"]]',
        'extras["low_actor_obs"]]',
    ),
    "advantage turned round": ("hiql", hierarchy, "(later_v - v)", "(v - later_v)"),
    "advantage of the smaller twin": (
        "hiql",
        hierarchy,
        "- v).mean(0), temp",
        "- v).amin(0), temp",
    ),
    "likelihood minimised": ("hiql", hierarchy, "append(-(weight", "append((weight"),
    "weights not clipped": ("hiql", goal_nets, ".exp().clamp(max=100.0)", ".exp()"),
    "low level acts on the sub-goal ahead of the goal": (
        "hiql",
        hierarchy,
        "actor(actors[0], states_, reps[0])",
        "actor(actors[0], states_, reps[4])",
    ),
    "acts on a sub-goal of any length": (
        "hiql",
        hierarchy,
        "length_normalized(goal_nets.actor(high_actor, obs))",
        "goal_nets.actor(high_actor, obs)",
    ),
    "actions not clipped": ("hiql", hierarchy, ".clamp(-1, 1)", ""),
    "hiql: temperatures exchanged": (
        "hiql",
        None,
        "(self.low_inverse_temperature, self.high_inverse_temperature)",
        "(self.high_inverse_temperature, self.low_inverse_temperature)",
    ),
    "hiql: policies train phi": ("hiql", None, "before.goal_rep,\n            batch", "goal_rep,\n            batch"),
    "hiql: advantage of the target": (
        "hiql",
        None,
        "(before.value, before.value)",
        "(before.target_value, before.value)",
    ),
    "hiql: target does not follow": (
        "hiql",
        None,
        "polyak(state.target_value, value",
        "polyak(state.target_value, state.target_value",
    ),
    "ota: one value judges both": (
        "ota",
        None,
        "(before.low_value, before.high_value)",
        "(before.low_value, before.low_value)",
    ),
    "ota: V_hi learns from single steps": (
        "ota",
        None,
        "            option,\n",
        "            step,\n",
    ),
    "ota: V_hi bootstraps from V_lo": (
        "ota",
        None,
        "(before.goal_rep, before.target_high_value)",
        "(before.goal_rep, before.target_low_value)",
    ),
    "ota: V_hi does not train phi": (
        "ota",
        None,
        "(goal_rep, high_value)",
        "(before.goal_rep, high_value)",
    ),
    "ota: V_lo does not train phi": (
        "ota",
        None,
        "(goal_rep, low_value),",
        "(before.goal_rep, low_value),",
    ),
    "ota: policies train phi": ("ota", None, "before.goal_rep,\n            batch", "goal_rep,\n            batch"),
    "ota: target of V_hi does not follow": (
        "ota",
        None,
        "polyak(state.target_high_value, high",
        "polyak(state.target_high_value, state.target_high_value",
    ),
    "ota: target of V_lo does not follow": (
        "ota",
        None,
        "polyak(state.target_low_value, low",
        "polyak(state.target_low_value, state.target_low_value",
    ),
    "ota: value of options": ("ota", None, "values(state.low_value", "values(state.high_value"),
    "arl: option learns from the high level": (
        "arl",
        None,
        "_option(before.option_rep",
        '_option(params["option_rep"]',
    ),
    "arl: option does not learn": (
        "arl",
        None,
        '_option(params["option_rep"], obs)',
        "_option(before.option_rep, obs)",
    ),
    "arl: critic of options bootstraps": (
        "arl",
        None,
        'extras["reached_obs"]).mean(0)',
        'extras["reached_obs"]).amin(0)',
    ),
    "arl: critic's target learns": (
        "arl",
        None,
        'value(before.high_value, extras["reached',
        'value(params["high_value"], extras["reached',
    ),
    "arl: V_lo of the online critic": (
        "arl",
        None,
        "value(before.target_low_critic",
        "value(before.low_critic",
    ),
    "arl: V_lo of the larger twin": ("arl", None, "batch.action).amin(0) - low_v", "batch.action).amax(0) - low_v"),
    "arl: V_lo learns through the critic's target": (
        "arl",
        None,
        'value(before.low_value, extras["low_next',
        'value(params["low_value"], extras["low_next',
    ),
    "arl: low level subtracts the future": (
        "arl",
        None,
        'extras["low_reward"] + ',
        'extras["low_reward"] - ',
    ),
    "arl: low critic of the high level's goals": (
        "arl",
        None,
        'obs = extras["low_obs"]',
        "obs = batch.obs",
    ),
    "arl: half of the critics' loss": (
        "arl",
        None,
        "torch.square(low_q - backup).mean(1).sum()",
        "torch.square(low_q - backup).mean()",
    ),
    "arl: low level judged by its goals": (
        "arl",
        None,
        "value(before.low_value, obs)",
        'value(before.low_value, batch.extras["low_obs"])',
    ),
    "arl: high level judged by the larger twin": (
        "arl",
        None,
        "obs, chosen).amin(0)",
        "obs, chosen).amax(0)",
    ),
    "arl: V_hi of the smaller twin": (
        "arl",
        None,
        "value(before.high_value, obs).mean(0)",
        "value(before.high_value, obs).amin(0)",
    ),
    "arl: high temperature of the low level": (
        "arl",
        None,
        "(gain, self.high_inverse",
        "(gain, self.low_inverse",
    ),
    "arl: target of V_hi does not follow": (
        "arl",
        None,
        'follow(state.target_high_value, "high_value")',
        "state.target_high_value",
    ),
    "arl: target of Q_lo does not follow": (
        "arl",
        None,
        'follow(state.target_low_critic, "low_critic")',
        "state.target_low_critic",
    ),
    "arl ddpg_bc: critic learns from the actor": (
        "arl ddpg_bc",
        None,
        "value(before.high_critic",
        'value(params["high_critic"]',
    ),
    "arl ddpg_bc: option of any length": (
        "arl ddpg_bc",
        None,
        "else self._normalized(mean)",
        "else mean",
    ),
    "arl ddpg_bc: scale learns": ("arl ddpg_bc", goal_nets, "abs().mean().detach()", "abs().mean()"),
    "arl relative: differences turned round": (
        "arl relative",
        None,
        "later - state",
        "state - later",
    ),
    "arl relative: hard length": (
        "arl relative",
        None,
        "hierarchy.soft_length_normalized\n",
        "hierarchy.length_normalized\n",
    ),
    "arl relative: length 1": ("arl relative", hierarchy, "scale * x.shape[-1] ** 0.5", "scale"),
}  # fmt: skip


def broken(name: str, patch: pytest.MonkeyPatch):
    """The method of a mutant, or one that calls functions of a mutated module."""
    which, where, old, new = MUTANTS[name]
    method = METHODS[which]
    if where is None:
        return mutated(type(method), old, new)(**dataclasses.asdict(method))
    source = inspect.getsource(where)
    assert source.count(old) == 1, f"{old!r} is no longer in the source once"
    space = types.ModuleType("mutant").__dict__
    exec(source.replace(old, new), space)
    for function, changed in space.items():
        if inspect.isfunction(changed):
            patch.setattr(where, function, changed)
    return method


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_finds_every_mutant(name, data64, monkeypatch):
    n = N if "clipped" in name else 4
    assert disagreement(broken(name, monkeypatch), data64, n) > 1e-7
