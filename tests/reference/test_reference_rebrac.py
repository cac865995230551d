"""ReBRAC against an ordinary implementation of the paper's formulas, in float64.

The reference is written from the paper and the authors' code: torch.nn modules, twins and targets
as separate networks, `backward()`, torch.optim.Adam, one minibatch at a time.
"""

import copy
import dataclasses

import pytest
import torch
from support.modules import follow, gap, load, member, net
from support.mutants import mutated
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk, NStep
from offbench.methods.rebrac import ReBRAC
from offbench.testing.contract import SPEC
from offbench.types import minibatch

SMALL = {"hidden": (16, 16)}
LOUD = ReBRAC(
    **SMALL,
    actor_bc_weight=0.3,
    critic_bc_weight=0.7,
    policy_noise=1.0,
    noise_clip=0.8,
    polyak_rate=0.1,
    actor_lr=1e-2,
    critic_lr=2e-2,
)
VIEWS = [NStep(1, 0.99), NStep(3, 0.99), Chunk(4, 0.99)]


class Plain:
    def __init__(self, m: ReBRAC, spec, state):
        self.m, self.n = m, 0
        obs, act = spec.obs_dim, spec.action_dim
        self.actor = net((obs, *m.hidden, act), norm=False)
        self.q1, self.q2 = (net((obs + act, *m.hidden, 1), norm=True) for _ in range(2))
        load(state.actor, self.actor)
        load(member(state.critic, 0), self.q1), load(member(state.critic, 1), self.q2)
        self.actor_t, self.q1_t, self.q2_t = map(copy.deepcopy, (self.actor, self.q1, self.q2))
        self.actor_opt = torch.optim.Adam(self.actor.parameters(), m.actor_lr)
        both = [*self.q1.parameters(), *self.q2.parameters()]
        self.critic_opt = torch.optim.Adam(both, m.critic_lr)

    def step(self, batch, noise) -> dict:
        m, logs = self.m, {}
        with torch.no_grad():
            noise = (noise * m.policy_noise).clamp(-m.noise_clip, m.noise_clip)
            a2 = (torch.tanh(self.actor_t(batch.next_obs)) + noise).clamp(-1, 1)
            far = ((a2 - batch.extras["next_action"]) ** 2).sum(1)
            x2 = torch.cat([batch.next_obs, a2], 1)
            q2 = torch.minimum(self.q1_t(x2), self.q2_t(x2))[:, 0]
            y = batch.reward + batch.discount * (q2 - m.critic_bc_weight * far)
        x = torch.cat([batch.obs, batch.action], 1)
        q1, q2 = self.q1(x)[:, 0], self.q2(x)[:, 0]
        loss = ((q1 - y) ** 2).mean() + ((q2 - y) ** 2).mean()
        self.critic_opt.zero_grad()
        loss.backward()
        self.critic_opt.step()
        logs |= {
            "critic_loss": loss.item(),
            "q": (q1.mean() + q2.mean()).item() / 2,
            "next_bc_error": far[batch.discount > 0].mean().item(),
        }
        if self.n % 2 == 0:
            before = copy.deepcopy(self.actor)
            a = torch.tanh(self.actor(batch.obs))
            x = torch.cat([batch.obs, a], 1)
            q = torch.minimum(self.q1(x), self.q2(x))[:, 0]
            far = ((a - batch.action) ** 2).sum(1)
            loss = (m.actor_bc_weight * far - q / q.abs().mean().detach()).mean()
            self.actor_opt.zero_grad()
            loss.backward()
            self.actor_opt.step()
            pairs = [(self.actor_t, before), (self.q1_t, self.q1), (self.q2_t, self.q2)]
            for target, online in pairs:
                follow(target, online, m.polyak_rate)
            self.actor_logs = {
                "actor_loss": loss.item(),
                "bc_error": far.mean().item(),
                "q_policy": q.mean().item(),
            }
        self.n += 1
        return logs | self.actor_logs


def disagreement(method, data, view=VIEWS[0], n: int = 30) -> float:
    """The largest difference in parameters and metrics over n updates on the same batches and noise."""
    pipeline = make_pipeline(data, view=view, batch_size=32, needs=("next_action",))
    spec = pipeline.spec(SPEC)
    double = lambda x: x.double() if x.is_floating_point() else x
    state = tree_map(double, method.init(rng.key(0), spec))
    # an actor that has left zero, so that bounds and clips act
    away = [*state.actor[:-1], {name: 300 * p for name, p in state.actor[-1].items()}]
    state = state._replace(actor=away, target_actor=away)
    plain, key, worst = Plain(method, spec, state), rng.key(7), 0.0
    for _ in range(n):
        key, k_batch, k_update = rng.split(key, 3)
        batch = pipeline.sample(k_batch, 2)
        state, metrics = method.update(state, batch, k_update)
        for i, k in enumerate(rng.split(k_update)):
            mini = minibatch(batch, i)
            logged = plain.step(mini, rng.normal_like(k, mini.action))
        assert logged.keys() == metrics.keys()
        worst = max(worst, *(abs(logged[name] - metrics[name].item()) for name in metrics))
    pairs = [(state.actor, plain.actor), (state.target_actor, plain.actor_t)]
    pairs += [(member(state.critic, 0), plain.q1), (member(state.critic, 1), plain.q2)]
    pairs += [(member(state.target_critic, 0), plain.q1_t)]
    pairs += [(member(state.target_critic, 1), plain.q2_t)]
    return max(worst, *(gap(ours, theirs) for ours, theirs in pairs))


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("method", [ReBRAC(**SMALL), LOUD], ids=["defaults", "loud"])
def test_updates_equal_the_plain_implementation(method, view, data64):
    assert disagreement(method, data64, view) < 1e-9


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(ReBRAC) if f.name != "hidden"])
def test_every_hyper_parameter_acts_in_the_settings_compared(name, data64):
    pipeline = make_pipeline(data64, batch_size=32, needs=("next_action",))
    states = []
    for m in (LOUD, dataclasses.replace(LOUD, **{name: 0.8 * getattr(LOUD, name)})):
        state = tree_map(
            lambda x: x.double() if x.is_floating_point() else x, m.init(rng.key(0), SPEC)
        )
        for i in range(5):
            state, _ = m.update(state, pipeline.sample(rng.key(i), 2), rng.key(100 + i))
        states.append(state)
    pairs = zip(*map(tree_leaves, states), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) > 1e-6


def test_weights_start_as_the_authors_start_them():
    """Hidden biases 0.1, last layers uniform within 1e-3 (actor) and 3e-3 (critics), norms at identity."""
    m = ReBRAC()
    state = m.init(rng.key(0), SPEC)
    for params, last in ((state.actor, 1e-3), (state.critic, 3e-3)):
        for layer in params[:-1]:
            bound = layer["w"].shape[-2] ** -0.5
            assert 0.98 * bound < layer["w"].abs().max() <= bound
            assert (layer["b"] == 0.1).all()
        for part in ("w", "b"):
            assert params[-1][part].abs().max() <= last
        assert params[-1]["w"].abs().max() > 0.9 * last
    assert not any("scale" in layer for layer in state.actor)
    assert all((x["scale"] == 1).all() and (x["shift"] == 0).all() for x in state.critic[:-1])
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            tree_leaves((state.actor, state.critic)),
            tree_leaves((state.target_actor, state.target_critic)),
            strict=True,
        )
    )


MUTANTS = {
    "target adds the penalty": ("next_q - self.critic_bc_weight", "next_q + self.critic_bc_weight"),
    "penalty of the wrong weight": (
        "next_q - self.critic_bc_weight",
        "next_q - self.actor_bc_weight",
    ),
    "penalty is a mean": (
        'batch.extras["next_action"]).sum(-1)',
        'batch.extras["next_action"]).mean(-1)',
    ),
    "penalty from this action": ('batch.extras["next_action"]).sum', "batch.action).sum"),
    "penalty outlives the terminal": (
        "batch.discount * next_v",
        "batch.discount * next_q - 0.99 * self.critic_bc_weight * next_error",
    ),
    "target subtracts the future": (
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
    ),
    "target takes the larger twin": ("next_action).amin(0)", "next_action).amax(0)"),
    "target of the online critic": (
        "_q(state.target_critic, batch.next",
        "_q(state.critic, batch.next",
    ),
    "target of the online actor": ("mlp(state.target_actor", "mlp(state.actor"),
    "target not smoothed": (".tanh() + noise)", ".tanh() + 0 * noise)"),
    "smoothing not clipped": ("noise.clamp(-self.noise_clip, self.noise_clip)", "noise"),
    "target action not clipped": ("+ noise).clamp(-1, 1)", "+ noise)"),
    "critics averaged": ("target).mean(-1).sum()", "target).mean()"),
    "actor minimises Q": ("- scale * q.mean()", "+ scale * q.mean()"),
    "actor flees the data": (
        "loss = self.actor_bc_weight * bc",
        "loss = -self.actor_bc_weight * bc",
    ),
    "cloning term is a mean": ("batch.action).sum(-1).mean()", "batch.action).mean()"),
    "actor takes the larger twin": ("batch.obs, action).amin(0)", "batch.obs, action).amax(0)"),
    "scale not detached": ("q.abs().mean().detach()", "q.abs().mean()"),
    "scale of the mean's size": ("q.abs().mean()", "q.mean().abs()"),
    "norm before the activation": ('layer_norm="after"', 'layer_norm="before"'),
    "no norm": ('layer_norm="after", ', ""),
    "torch's epsilon": ("eps=1e-6", "eps=1e-5"),
    "target of no actor": (
        "polyak(state.target_actor, state.actor",
        "polyak(state.target_actor, state.target_actor",
    ),
    "targets are swapped online": (
        "polyak(state.target_critic, state.critic",
        "polyak(state.critic, state.target_critic",
    ),
    "actor learns at the critic's rate": ("Adam(self.actor_lr).step", "Adam(self.critic_lr).step"),
    "actor on the second minibatch": ("_actor_step(state, first)", "_actor_step(state, second)"),
    "one key for both": ("second, k_second)", "second, k_first)"),
    "critics learn once": ("state, _ = self._critic_step(state, first, k_first)", "pass"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_finds_every_mutant(name, data64):
    assert disagreement(LOUD, data64, n=2) < 1e-9
    assert (
        disagreement(mutated(ReBRAC, *MUTANTS[name])(**dataclasses.asdict(LOUD)), data64, n=2)
        > 1e-7
    )
