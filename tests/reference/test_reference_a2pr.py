"""A2PR against an ordinary implementation of the paper's formulas, in float64.

The reference is written from the paper and what the authors' code is known to do: torch.nn modules, twins and targets
as separate networks, `backward()`, torch.optim.Adam, one minibatch at a time.
"""

import copy
import dataclasses

import pytest
import torch
from support.modules import double, follow, gap, load, member, minimise, net
from support.mutants import mutated
from torch.utils._pytree import tree_leaves

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk, NStep
from offbench.methods.a2pr import A2PR
from offbench.testing.contract import SPEC
from offbench.types import minibatch

SMALL = {"hidden": (16, 16), "cvae_hidden": (12, 12)}
LOUD = A2PR(
    **SMALL,
    critic_hidden=(14,),
    alpha=0.7,
    cvae_weight=1.7,
    bc_weight=2.5,
    policy_noise=1.0,
    noise_clip=0.8,
    polyak_rate=0.1,
    lr=1e-2,
    cvae_lr=2e-2,
)
VIEWS = [NStep(1, 0.99), NStep(3, 0.99), Chunk(4, 0.99)]


class Plain:
    def __init__(self, m: A2PR, spec, state):
        self.m, self.n = m, 0
        obs, act = spec.obs_dim, spec.action_dim
        judges = m.critic_hidden or (*m.hidden, m.hidden[-1])
        self.latent = 2 * act
        self.actor = net((obs, *m.hidden, act))
        self.q1, self.q2 = (net((obs + act, *judges, 1)) for _ in range(2))
        self.v = net((obs, *judges, 1))
        self.encoder = net((obs + act, *m.cvae_hidden, 2 * self.latent))
        self.decoder = net((obs + self.latent, *m.cvae_hidden, act))
        for ours, theirs in self.online(state):
            load(ours, theirs)
        self.actor_t, self.q1_t, self.q2_t = map(copy.deepcopy, (self.actor, self.q1, self.q2))
        adam = lambda lr, *parts: torch.optim.Adam([p for x in parts for p in x.parameters()], lr)
        self.actor_opt, self.v_opt = adam(m.lr, self.actor), adam(m.lr, self.v)
        self.critic_opt = adam(m.lr, self.q1, self.q2)
        self.vae_opt = adam(m.cvae_lr, self.encoder, self.decoder)

    def online(self, state):
        vae = state.cvae
        return [
            (state.actor, self.actor), (state.value, self.v),
            (member(state.critic, 0), self.q1), (member(state.critic, 1), self.q2),
            (vae["encoder"], self.encoder), (vae["decoder"], self.decoder),
        ]  # fmt: skip

    def pairs(self, state):
        targets = [member(state.target_critic, 0), member(state.target_critic, 1)]
        return [
            *self.online(state),
            *zip([state.target_actor, *targets], [self.actor_t, self.q1_t, self.q2_t], strict=True),
        ]

    def vae(self, obs, action, noise):
        out = self.encoder(torch.cat([obs, action], 1))
        mean, std = out[:, : self.latent], out[:, self.latent :].clamp(-4, 15).exp()
        z = mean + std * noise
        return torch.tanh(self.decoder(torch.cat([obs, z], 1))), mean, std

    def step(self, batch, noise, z_noise, actor_noise) -> dict:
        m, s, a, s2 = self.m, batch.obs, batch.action, batch.next_obs
        both = lambda x, y: torch.cat([x, y], 1)
        with torch.no_grad():
            smooth = (noise * m.policy_noise).clamp(-m.noise_clip, m.noise_clip)
            a2 = (torch.tanh(self.actor_t(s2)) + smooth).clamp(-1, 1)
            q2 = torch.minimum(self.q1_t(both(s2, a2)), self.q2_t(both(s2, a2)))[:, 0]
            y = batch.reward + batch.discount * q2
        q1, q2 = self.q1(both(s, a))[:, 0], self.q2(both(s, a))[:, 0]
        critic_loss = ((q1 - y) ** 2).mean() + ((q2 - y) ** 2).mean()
        minimise(self.critic_opt, critic_loss)
        logs = {"critic_loss": critic_loss.item(), "q": (q1 + q2).mean().item() / 2}

        with torch.no_grad():
            q2 = torch.minimum(self.q1(both(s2, a2)), self.q2(both(s2, a2)))[:, 0]
            lower = torch.minimum(y, batch.reward + batch.discount * q2)
        v = self.v(s)[:, 0]
        value_loss = ((v - lower) ** 2).mean()
        minimise(self.v_opt, value_loss)
        v = v.detach()
        logs |= {"value_loss": value_loss.item(), "v": v.mean().item()}

        recon, mean, std = self.vae(s, a, z_noise)
        q = self.q1(both(s, a))[:, 0].detach()
        error = ((recon - a) ** 2).mean(1)
        kl = (-0.5 * (1 + torch.log(std**2) - mean**2 - std**2)).mean()
        taught = [i for i in range(len(q)) if q[i] > v[i]]
        minimise(self.vae_opt, m.cvae_weight * error[taught].sum() / len(q) + 0.5 * kl)
        logs |= {
            "reconstruction_error": error[taught].mean().item(),
            "kl": kl.item(),
            "taught": len(taught) / len(q),
        }
        if actor_noise is not None:
            logs |= self.improve(s, a, q, v, actor_noise)
        return logs

    def improve(self, s, a, q, v, noise) -> dict:
        m = self.m
        p = torch.tanh(self.actor(s))
        q_p = self.q1(torch.cat([s, p], 1))[:, 0]
        recon = self.vae(s, p, noise)[0]
        recon = recon.detach() if m.detach_target else recon
        q_recon = self.q1(torch.cat([s, recon], 1))[:, 0]
        total, imitating, reconstructed = 0.0, 0, 0
        for i in range(len(q)):
            own = bool(q_recon[i] - v[i] >= q[i] - v[i])
            if q_recon[i] >= v[i] or q[i] > v[i]:
                target = recon[i] if own else a[i]
                total = total + ((p[i] - target) ** 2).mean()
                imitating, reconstructed = imitating + 1, reconstructed + own
        bc_loss = m.bc_weight * total / len(q)
        loss = bc_loss - m.alpha * q_p.mean() / q_p.abs().mean().detach()
        minimise(self.actor_opt, loss)
        for target, online in (
            (self.actor_t, self.actor),
            (self.q1_t, self.q1),
            (self.q2_t, self.q2),
        ):
            follow(target, online, m.polyak_rate)
        return {
            "actor_loss": loss.item(),
            "bc_loss": bc_loss.item(),
            "imitating": imitating / len(q),
            "reconstructed": reconstructed / max(imitating, 1),
        }


def compared(method, data, view=VIEWS[0], n: int = 20) -> tuple[float, list[dict]]:
    """The largest difference in parameters and metrics over n updates on the same batches and noise, and the metrics."""
    pipeline = make_pipeline(data, view=view, batch_size=32)
    spec = pipeline.spec(SPEC)
    state = double(method.init(rng.key(0), spec))
    # an actor that has left zero, so that bounds and clips act
    away = [*state.actor[:-1], {name: 5 * p for name, p in state.actor[-1].items()}]
    state = state._replace(actor=away, target_actor=away)
    plain, key, worst, seen = Plain(method, spec, state), rng.key(7), 0.0, []
    for _ in range(n):
        key, k_batch, k_update = rng.split(key, 3)
        batch = pipeline.sample(k_batch, 2)
        state, metrics = method.update(state, batch, k_update)
        *keys, k_actor = rng.split(k_update, 3)
        for i, k in enumerate(keys):
            mini, (k_target, k_vae) = minibatch(batch, i), rng.split(k)
            drawn = [rng.normal_like(k_target, mini.action)]
            drawn += [
                rng.normal(x, (len(mini.action), 2 * spec.action_dim), torch.float64)
                for x in (k_vae, k_actor)
            ]
            logged = plain.step(mini, *drawn[:2], drawn[2] if i else None)
        assert logged.keys() == metrics.keys()
        seen.append({name: x.item() for name, x in metrics.items()})
        worst = max(worst, *(abs(logged[name] - seen[-1][name]) for name in logged))
    return max(worst, *(gap(ours, theirs) for ours, theirs in plain.pairs(state))), seen


def disagreement(*args, **kwargs) -> float:
    return compared(*args, **kwargs)[0]


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize(
    "method",
    [A2PR(**SMALL), LOUD, dataclasses.replace(LOUD, detach_target=True)],
    ids=["defaults", "loud", "detached"],
)
def test_updates_equal_the_plain_implementation(method, view, data64):
    assert disagreement(method, data64, view) < 1e-9


def test_every_branch_is_taken_by_some_rows_of_what_is_compared(data64):
    """Otherwise the comparison would say nothing of the gate, of either target or of the mask."""
    _, seen = compared(LOUD, data64)
    for name in ("taught", "imitating", "reconstructed"):
        assert sum(0.05 < logged[name] < 0.95 for logged in seen) > 5, name


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(A2PR) if not f.name.endswith("hidden")]
)
def test_every_hyper_parameter_acts_in_the_settings_compared(name, data64):
    pipeline = make_pipeline(data64, batch_size=32)
    now, states = getattr(LOUD, name), []
    other = not now if isinstance(now, bool) else 0.8 * now
    for m in (LOUD, dataclasses.replace(LOUD, **{name: other})):
        state = double(m.init(rng.key(0), SPEC))
        for i in range(5):
            state, _ = m.update(state, pipeline.sample(rng.key(i), 2), rng.key(100 + i))
        states.append(state)
    pairs = zip(*map(tree_leaves, states), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) > 1e-6


def test_networks_have_the_authors_sizes():
    state = A2PR().init(rng.key(0), SPEC)
    widths = lambda params: [tuple(layer["w"].shape[-2:]) for layer in params]
    hidden = [(256, 256)] * 2
    assert widths(state.actor) == [(5, 256), *hidden, (256, 2)]
    assert widths(state.critic) == [(7, 256), *hidden, (256, 256), (256, 1)]
    assert widths(state.value) == [(5, 256), *hidden, (256, 256), (256, 1)]
    # mean and log-std of four latent numbers
    assert widths(state.cvae["encoder"]) == [(7, 750), (750, 750), (750, 8)]
    assert widths(state.cvae["decoder"]) == [(9, 750), (750, 750), (750, 2)]


TARGETS = "state = state._replace(target_critic=polyak(state.target_critic, state.critic, 0.1))"
EVALUATED = "state, judged, metrics = self._evaluate(state, mini, k)"
KL = "cvae.kl(mean, log_std).mean()"
GATE = "(recon_q >= judged.v) | (judged.q > judged.v)"
MUTANTS = {
    "KL is summed": (KL, f"mean.shape[-1] * {KL}"),
    "KL of full weight": ("KL_WEIGHT = 0.5", "KL_WEIGHT = 1.0"),
    "KL dropped": ("+ KL_WEIGHT * kl", "+ 0.0 * kl"),
    "mask dropped": ("better = (judged.q > judged.v)", "better = (judged.q == judged.q)"),
    "mask turned round": ("better = (judged.q > judged.v)", "better = (judged.q < judged.v)"),
    "mask of the smaller twin": (
        "judged = Judged(v, _q(_first(critic), batch.obs, batch.action))",
        "judged = Judged(v, _q(critic, batch.obs, batch.action).amin(0))",
    ),
    "reconstruction is summed": (
        "square(recon - batch.action).mean(-1)",
        "square(recon - batch.action).sum(-1)",
    ),
    "mean over what is taught": (
        "self.cvae_weight * (better * error).mean()",
        "self.cvae_weight * (better * error).sum() / better.sum()",
    ),
    "gate is AND": (GATE, GATE.replace("|", "&")),
    "gate of the data alone": (GATE, "judged.q > judged.v"),
    "gate of the reconstruction alone": (GATE, "recon_q >= judged.v"),
    "no gate": ("imitated = gate.to(q.dtype)", "imitated = torch.ones_like(q)"),
    "target is the worse": ("recon_q >= judged.q", "recon_q < judged.q"),
    "target is the data's": ("own[:, None], recon, batch", "own[:, None], batch.action, batch"),
    "target is the reconstruction": ("recon, batch.action)\n", "recon, recon)\n"),
    "target is detached": (
        "recon.detach() if self.detach_target else recon",
        "recon.detach()",
    ),
    "data's action is reconstructed": (
        "cvae.reconstruct(state.cvae, batch.obs, action, key)",
        "cvae.reconstruct(state.cvae, batch.obs, batch.action, key)",
    ),
    "V without the minimum": (
        "torch.minimum(y, _target(critic, batch, next_action))",
        "_target(critic, batch, next_action)",
    ),
    "V of the critics' target": (
        "torch.minimum(y, _target(critic, batch, next_action))",
        "y",
    ),
    "V of the maximum": ("torch.minimum(y", "torch.maximum(y"),
    "V of the critics before their step": (
        "_target(critic, batch, next_action))",
        "_target(state.critic, batch, next_action))",
    ),
    "v from after its step": (
        "Judged(v, ",
        "Judged(nets.mlp(value, batch.obs).squeeze(-1), ",
    ),
    "q from before its step": (
        "Judged(v, _q(_first(critic)",
        "Judged(v, _q(_first(state.critic)",
    ),
    "target critics move each step": (EVALUATED, f"{EVALUATED}; {TARGETS}"),
    "terminal ignored": ("batch.discount *", "0.99 *"),
    "target subtracts the future": ("batch.reward + batch", "batch.reward - batch"),
    "target takes the larger twin": ("next_action).amin(0)", "next_action).amax(0)"),
    "target of the online critic": ("_target(state.target_critic", "_target(state.critic"),
    "target of the online actor": ("mlp(state.target_actor", "mlp(state.actor"),
    "target not smoothed": (".tanh() + noise)", ".tanh() + 0 * noise)"),
    "smoothing not clipped": ("noise.clamp(-self.noise_clip, self.noise_clip)", "noise"),
    "target action not clipped": ("+ noise).clamp(-1, 1)", "+ noise)"),
    "critics averaged": (".mean(-1).sum()", ".mean()"),
    "actor minimises Q": ("bc_loss - scale", "bc_loss + scale"),
    "actor of the second twin": ("p[0] for name", "p[1] for name"),
    "scale not detached": ("q.abs().mean().detach()", "q.abs().mean()"),
    "scale of the mean's size": ("q.abs().mean()", "q.mean().abs()"),
    "VAE learns at the critics' rate": (
        "self._cvae_loss, self.cvae_lr",
        "self._cvae_loss, self.lr",
    ),
    "actor on the first minibatch": (
        "state.opt_actor, state, mini",
        "state.opt_actor, state, minibatch(batch, 0)",
    ),
    "one draw of VAE and target": ("k_target, k_cvae = rng.split(key)", "k_target = k_cvae = key"),
    "one draw for the actor and before": (
        "*keys, k_actor = rng.split(key, self.minibatches + 1)",
        "keys = rng.split(key, 3)[:2]; k_actor = keys[0]",
    ),
    "target actor stands still": (
        "polyak(state.target_actor, actor,",
        "polyak(state.target_actor, state.target_actor,",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_finds_every_mutant(name, data64):
    assert disagreement(LOUD, data64, n=2) < 1e-9
    mutant = mutated(A2PR, *MUTANTS[name])(**dataclasses.asdict(LOUD))
    assert disagreement(mutant, data64, n=2) > 1e-7
