"""DoC against ordinary modules in float64: element by element, step by step, without padding.

The reference is written from the paper: torch.nn layers on the steps that there are, Gaussians of
torch.distributions, an optimiser for e and one for the rest, each with a loss of its own.
"""

import dataclasses

import pytest
import torch
from support.modules import double, load, net
from support.mutants import mutated
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.views import NStep, Window
from offbench.errors import UserError
from offbench.methods.doc import DoC
from offbench.nn import windows
from offbench.testing.contract import SPEC, fake_data

K = 4
LOUD = DoC(
    energy_weight=1.7,
    kl_weight=0.3,
    n_latents=5,
    past=3,
    latent_dim=3,
    width=6,
    layers=2,
    heads=3,
    dropout=0.0,
    lr=2e-2,
    energy_lr=5e-2,
    warmup=5,
    weight_decay=0.3,
    max_grad_norm=1.5,
)
DISCRETE = dataclasses.replace(LOUD, actions="discrete", layers=1, heads=1)
SPECS = {"continuous": SPEC, "discrete": SPEC._replace(discrete=True, action_dim=3)}


class Plain(nn.Module):
    def __init__(self, m: DoC, spec):
        super().__init__()
        self.m, w, z = m, m.width, m.latent_dim
        self.time = nn.Embedding(20, w)
        self.norm = nn.LayerNorm(w)
        body = lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(w, m.heads, 4 * w, 0.0, batch_first=True, norm_first=True),
            m.layers,
            nn.LayerNorm(w),
            False,
        )
        self.history, self.steps = body(), body()
        self.double()
        sizes = {
            "reward": (1, w), "obs": (spec.obs_dim, w), "action": (spec.action_dim, w),
            "encoder": (w, 2 * z), "prior": (w, 2 * z),
            "policy": (w + z, w, spec.action_dim), "value": (w + z, w, 1),
        }  # fmt: skip
        self.nets = nn.ModuleDict({name: net(size) for name, size in sizes.items()})
        energy = {"cause": (w + spec.action_dim + z, w, w), "effect": (1 + spec.obs_dim, w, w)}
        self.energy = nn.ModuleDict({name: net(size) for name, size in energy.items()})

    def take(self, p: dict, energy: dict) -> "Plain":
        def linear(to: nn.Linear, layer: dict) -> None:
            to.weight.data, to.bias.data = layer["w"].T.clone(), layer["b"].flatten().clone()

        def norm(to: nn.LayerNorm, layer: dict) -> None:
            to.weight.data = layer["scale"].flatten().clone()
            to.bias.data = layer["shift"].flatten().clone()

        self.time.weight.data = p["time"].clone()
        norm(self.norm, p["norm"])
        for name, module in self.nets.items():
            load(p[name], module)
        for name, module in self.energy.items():
            load(energy[name], module)
        for body, params in ((self.history, p["history"]), (self.steps, p["steps"])):
            norm(body.norm, params["norm"])
            for to, block in zip(body.layers, params["blocks"], strict=True):
                to.self_attn.in_proj_weight.data = block["qkv"]["w"].T.clone()
                to.self_attn.in_proj_bias.data = block["qkv"]["b"].flatten().clone()
                linear(to.self_attn.out_proj, block["out"])
                linear(to.linear1, block["up"]), linear(to.linear2, block["down"])
                norm(to.norm1, block["norm1"]), norm(to.norm2, block["norm2"])
        return self

    def read(self, body, c, rewards, n: int, causal: bool) -> torch.Tensor:
        """(n, W) at the observations of n steps of one window."""
        tokens = []
        for t in range(n):
            when = self.time(c.timestep[t].clamp(max=19))
            for name, x in (("reward", rewards[t]), ("obs", c.obs[t]), ("action", c.action[t])):
                tokens.append(self.norm(self.nets[name](x.reshape(-1)) + when))
        mask = nn.Transformer.generate_square_subsequent_mask(3 * n, dtype=torch.float64)
        out = body(torch.stack(tokens)[None], mask if causal else None)[0]
        return out[1::3]

    def known(self, c, n: int) -> torch.Tensor:
        got = [0 * c.return_to_go[0]]
        got += [c.return_to_go[t - 1] - c.return_to_go[t] for t in range(1, n)]
        return self.read(self.history, c, got, n, causal=True)

    def normal(self, head: str, x: torch.Tensor) -> Normal:
        mean, log_std = self.nets[head](x).chunk(2, -1)
        return Normal(mean, log_std.clamp(-5, 2).exp())

    def fit(self, given: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        out = self.nets["policy"](given)
        if self.m.actions == "discrete":
            return nn.functional.cross_entropy(out, action.argmax())
        return ((torch.tanh(out) - action) ** 2).mean()

    def losses(self, batch, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        fixed = lambda d: Normal(d.mean.detach(), d.stddev.detach())
        parts = {"action_loss": [], "value_loss": [], "prior_loss": [], "information": []}
        parts["pull"], causes, effects, size = [], {}, {}, len(batch.reward)
        for b in range(size):
            c = tree_map(lambda x, b=b: x[b], batch.obs)
            n = int(c.valid.sum())
            h = self.known(c, n)
            read = self.read(self.steps, c, batch.extras["step_reward"][b], n, causal=False)
            q = self.normal("encoder", read[0])
            z = q.mean + q.stddev * noise[b, 0]
            for t in range(n):
                given, p = torch.cat([h[t], z]), self.normal("prior", h[t])
                parts["action_loss"].append(self.fit(given, c.action[t]))
                parts["value_loss"].append((self.nets["value"](given)[0] - c.return_to_go[t]) ** 2)
                parts["prior_loss"].append(kl_divergence(fixed(q), p).sum())
                parts["pull"].append(kl_divergence(q, fixed(p)).sum())
                causes[b, t] = self.energy["cause"](torch.cat([h[t].detach(), c.action[t], z]))
                seen = batch.extras["step_reward"][b, t, None], batch.extras["step_next_obs"][b, t]
                effects[b, t] = self.energy["effect"](torch.cat(seen))
        for b, t in causes:
            all_ = torch.stack(
                [causes[b, t] @ effects[i, t] for i in range(size) if (i, t) in effects]
            )
            own = causes[b, t] @ effects[b, t]
            parts["information"].append(own - all_.exp().mean().log())
        return {name: torch.stack(x).mean() for name, x in parts.items()}


def start(method: DoC):
    spec = Window(K).spec(SPECS[method.actions])._replace(max_episode_steps=20)
    state = double(method.init(rng.key(0), spec))
    nudge = lambda x: x + 0.1 * torch.sin(torch.arange(x.numel())).view(x.shape)
    state = state._replace(params=tree_map(nudge, state.params))
    return state, Plain(method, spec).take(state.params, state.energy)


def disagreement(method: DoC, n: int = 4, plain: DoC | None = None) -> float:
    """The largest difference in parameters and metrics over n updates on the same windows."""
    m = plain or method
    data = fake_data(SPECS[m.actions], dtype=torch.float64)
    pipeline = make_pipeline(data, view=Window(K), batch_size=6, needs=m.needs)
    state, net = start(method)
    net.m = m
    own = [p for name, p in net.named_parameters() if not name.startswith("energy")]
    of_energy = list(net.energy.parameters())
    opts = [
        torch.optim.AdamW(p, lr, weight_decay=m.weight_decay)
        for p, lr in ((own, m.lr), (of_energy, m.energy_lr))
    ]
    warm = [
        torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min((i + 1) / m.warmup, 1)) for opt in opts
    ]
    worst = 0.0
    for i in range(n):
        batch = pipeline.sample(rng.key(i))
        state, metrics = method.update(state, batch, rng.key(i))
        noise = rng.normal(rng.split(rng.key(i), 3)[0], (6, 1, m.latent_dim), torch.float64)
        found = net.losses(batch, noise)
        loss = found["action_loss"] + found["value_loss"] + found["prior_loss"]
        loss = loss + m.kl_weight * found.pop("pull") + m.energy_weight * found["information"]
        climb = torch.autograd.grad(
            -m.energy_weight * found["information"], of_energy, retain_graph=True
        )
        for p, g in zip(own, torch.autograd.grad(loss, own), strict=True):
            p.grad = g
        for p, g in zip(of_energy, climb, strict=True):
            p.grad = g
        found["grad_norm"] = nn.utils.clip_grad_norm_(own, m.max_grad_norm)
        [x.step() for x in (*opts, *warm)]
        assert found.keys() == metrics.keys()
        worst = max(worst, *(abs(metrics[name] - x).item() for name, x in found.items()))
    other = Plain(m, Window(K).spec(SPECS[m.actions])).take(state.params, state.energy)
    pairs = zip(net.parameters(), other.parameters(), strict=True)
    return max(worst, *((a - b).abs().max().item() for a, b in pairs))


@pytest.mark.parametrize("method", [LOUD, DISCRETE], ids=["continuous", "discrete"])
def test_updates_equal_the_plain_implementation(method):
    assert disagreement(method) < 1e-9


FLOATS = [f.name for f in dataclasses.fields(LOUD) if isinstance(getattr(LOUD, f.name), float)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in FLOATS if n != "dropout"])
def test_every_hyper_parameter_acts_in_the_settings_compared(name):
    changed = dataclasses.replace(LOUD, **{name: 0.8 * getattr(LOUD, name)})
    assert disagreement(LOUD, n=3, plain=changed) > 1e-6


def contexts():
    data = fake_data(dtype=torch.float64)
    return Window(K).fit(data).batch(data, data.valid.nonzero().squeeze(1)[:60]).obs


def acting_disagreement(method: DoC) -> float:
    """Windows of every length at once, against the reference on the last steps alone."""
    state, net = start(LOUD)
    context, key = contexts(), rng.key(3)
    assert context.valid.sum(1).unique().tolist() == [1, 2, 3, 4]
    got, worst = method.act(state, context, key), 0.0
    noise = rng.normal(key, (len(got), LOUD.n_latents, LOUD.latent_dim), torch.float64)
    for i, action in enumerate(got):
        n = int(context.valid[i].sum())
        first = max(n - LOUD.past, 0)
        c = tree_map(lambda x, i=i, a=first, b=n: x[i, a:b], context)
        h = net.known(c, n - first)[-1]
        p = net.normal("prior", h)
        given = [torch.cat([h, p.mean + p.stddev * x]) for x in noise[i]]
        best = max(given, key=lambda x: net.nets["value"](x).item())
        worst = max(worst, (torch.tanh(net.nets["policy"](best)) - action).abs().max().item())
    return worst


def test_acting_takes_the_latent_of_the_prior_with_the_largest_value():
    assert acting_disagreement(LOUD) < 1e-12


def test_acting_sees_neither_padding_nor_its_own_action_nor_a_target():
    state, _ = start(LOUD)
    context = contexts()
    base = LOUD.act(state, context, rng.key(0))
    last = (context.valid.sum(1) - 1)[:, None]
    after, from_last = torch.arange(K) > last, torch.arange(K) >= last
    moved = context._replace(
        obs=context.obs + 3.0 * after[..., None],
        action=context.action + 3.0 * from_last[..., None],
        timestep=context.timestep + 3 * after,
        return_to_go=context.return_to_go + 5.0 - 2.0 * after,
    )
    assert torch.allclose(LOUD.act(state, moved, rng.key(0)), base, rtol=0, atol=1e-12)


def test_dropout_acts_in_training_only():
    method = dataclasses.replace(LOUD, dropout=0.5)
    state, _ = start(method)
    assert torch.equal(*(m.act(state, contexts(), rng.key(0)) for m in (LOUD, method)))
    data = fake_data(dtype=torch.float64)
    batch = make_pipeline(data, view=Window(K), batch_size=6, needs=DoC.needs).sample(rng.key(0))
    losses = [m.update(state, batch, rng.key(0))[1]["action_loss"] for m in (LOUD, method)]
    assert abs(losses[0] - losses[1]) > 1e-4


# --- the information term


def energies(table: torch.Tensor):
    """Networks of no hidden layer whose energies of one-hot causes and effects are a table's."""
    bias = torch.zeros(1, table.shape[1], dtype=torch.float64)
    layer = lambda w: [{"w": w, "b": bias}]
    return {"cause": layer(table), "effect": layer(torch.eye(table.shape[1], dtype=torch.float64))}


def test_with_the_best_energy_it_is_the_information_that_a_cause_has():
    """z of two kinds that tell which of two effects comes with probability 0.9; 1,000 windows of one step."""
    from offbench.methods.doc import _information

    table = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    cause = torch.eye(2, dtype=torch.float64).repeat_interleave(500, 0)[:, None]
    effect = torch.eye(2, dtype=torch.float64)[[*[0] * 450, *[1] * 50, *[1] * 450, *[0] * 50]][
        :, None
    ]
    valid = torch.ones(1000, 1, dtype=torch.bool)
    told = _information(energies((table / 0.5).log()), cause, effect, valid).mean()
    truth = (table * (table / 0.5).log()).sum(1).mean()
    assert abs(told - truth) < 1e-12
    less = _information(energies(0.7 * (table / 0.5).log()), cause, effect, valid).mean()
    assert less < told - 0.01


def test_padding_is_no_other_window():
    from offbench.methods.doc import _information

    draw = lambda i, *shape: rng.normal(rng.key(i), shape, torch.float64)
    energy, cause, effect = energies(draw(0, 3, 3)), draw(1, 5, 2, 3), draw(2, 5, 2, 3)
    valid = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1], [1, 0]]).bool()
    whole = _information(energy, cause, effect, valid)
    kept = valid[:, 1]
    alone = _information(energy, cause[kept], effect[kept], valid[kept])
    assert torch.allclose(whole[kept, 1], alone[:, 1], rtol=0, atol=1e-12)
    # no window has a step there
    assert _information(energy, cause, effect, valid & torch.tensor([True, False])).isfinite().all()


# --- mutants

SEES_ALL = "received, heads=heads, dropout=dropout, mask=windows.all_steps(context), key=key"
MUTANTS = {
    "constraint dropped": ('self.energy_weight * metrics["inf', '0.0 * metrics["inf'),
    "encoder climbs on the information": ('+ self.energy_weight * metrics["inf',
                                          '- self.energy_weight * metrics["inf'),
    "energy descends": ("tree_map(torch.neg, rise)", "rise"),
    "prior not learned": ("mean(_kl(constant(q), p))", "mean(_kl(constant(q), constant(p)))"),
    "encoder pulled by all of the prior's loss": ("mean(_kl(constant(q), p))", "mean(_kl(q, p))"),
    "encoder not pulled": ("_kl(q, constant(p))", "_kl(constant(q), constant(p))"),
    "pull trains the prior": ("_kl(q, constant(p))", "_kl(q, p)"),
    "divergence turned round": ("_kl(constant(q), p)", "_kl(p, constant(q))"),
    "value does not see z": ('nets.mlp(params["value"], given).sq',
                             'nets.mlp(params["value"], torch.cat([h, 0 * z], -1)).sq'),
    "policy does not see z": ('nets.mlp(params["policy"], given), context',
                              'nets.mlp(params["policy"], torch.cat([h, 0 * z], -1)), context'),
    "energy does not see z": ("context.action, z], -1)", "context.action, 0 * z], -1)"),
    "energy sees a constant z": ("context.action, z], -1)", "context.action, z.detach()], -1)"),
    "energy does not see the action": ("context.action, z], -1)", "0 * context.action, z], -1)"),
    "history learns from the energy": ("h.detach(), context", "h, context"),
    "effect is the observation itself": ('batch.extras["step_next_obs"]], -1', "context.obs], -1"),
    "effect without reward": ("reward[..., None], batch", "0 * reward[..., None], batch"),
    "padding among the others": ("-1e9)", "0.0)"),
    "sum of the others": ("+ n.log()", ""),
    "padding counts": ("valid = context.valid.to(h.dtype)", "valid = torch.ones_like(h[..., 0])"),
    "q attends to padding": ("mask = windows.all_steps(context)",
                             "mask = windows.all_steps(context) | True"),
    "q reads the first step alone": ("mask=mask, key=key", "key=key"),
    "q does not see rewards": ('"steps", context, reward', '"steps", context, 0 * reward'),
    "q of the last step": ("out[:, :1, windows.OBS]", "out[:, -1:, windows.OBS]"),
    "history sees the future": ("received, heads=heads, dropout=dropout, key=key", SEES_ALL),
    "history is told the return": ("context, received, heads", "context, to_go, heads"),
    "history without rewards": ("context, received, heads", "context, 0 * received, heads"),
    "history knows its own action": ("out[:, :, windows.OBS]", "out[:, :, windows.ACTION]"),
    "z is its mean": ("z = q.mean + q.log_std.exp() *", "z = q.mean + 0 *"),
    "no clipping": ("grads, norm = clip_by", "_, norm = clip_by"),
    "one learning rate": ("of(self.energy_lr)", "of(self.lr)"),
    "no tanh": ("torch.square(out.tanh() - action)", "torch.square(out - action)"),
}  # fmt: skip
OF_ACTING = {
    "the smallest value": ("given).argmax(1", "given).argmin(1"),
    "the first latent": ("given.gather(1, best", "given.gather(1, 0 * best"),
    "value does not see z": ("nets.mlp(state.params[\"value\"], given)",
                             "nets.mlp(state.params[\"value\"], 0 * given)"),
    "z is the prior's mean": ("prior.log_std.exp() * noise", "0 * noise"),
    "the whole window": ("windows.latest(obs, self.past)", "windows.latest(obs, 99)"),
    "history is told the return": MUTANTS["history is told the return"],
}  # fmt: skip
# in `make test`; the others in `make test-all` alone
FIRST = ("constraint dropped", "energy descends", "prior not learned", "value does not see z",
         "history sees the future")  # fmt: skip


@pytest.mark.parametrize(
    "name", [n if n in FIRST else pytest.param(n, marks=pytest.mark.slow) for n in MUTANTS]
)
def test_the_comparison_finds_every_mutant(name):
    broken = mutated(DoC, *MUTANTS[name])(**dataclasses.asdict(LOUD))
    assert disagreement(broken, n=2, plain=LOUD) > 1e-6


@pytest.mark.parametrize("name", OF_ACTING)
def test_the_comparison_finds_every_mutant_that_acts_otherwise(name):
    assert acting_disagreement(mutated(DoC, *OF_ACTING[name])(**dataclasses.asdict(LOUD))) > 1e-6


# --- what it learns from


def test_rewards_and_next_observations_of_a_window_are_the_data_s():
    data = fake_data(dtype=torch.float64)
    view = Window(K, return_scale=0.5)
    batch = make_pipeline(data, view=view, batch_size=64, needs=DoC.needs).sample(rng.key(4))
    # rows are known by their observation
    row_of = {tuple(x): i for i, x in enumerate(data.obs.tolist())}
    for b in range(64):
        row = row_of[tuple(batch.obs.obs[b, 0].tolist())]
        left = int(data.last[row]) - row
        for t in range(K):
            reward, obs = batch.extras["step_reward"][b, t], batch.extras["step_next_obs"][b, t]
            inside = t < left
            assert reward == (0.5 * data.reward[row + t] if inside else 0)
            assert torch.equal(obs, data.obs[row + t + 1] if inside else torch.zeros(5).double())
            assert batch.obs.valid[b, t] == inside


def test_it_asks_for_windows(data):
    with pytest.raises(UserError, match="view=window"):
        make_pipeline(data, view=NStep(), needs=("steps",))


def test_the_latest_steps_of_windows_that_are_shorter_and_longer():
    context = contexts()
    cut, last = windows.latest(context, 2)
    assert cut.obs.shape[1] == 2
    for i, n in enumerate(context.valid.sum(1).tolist()):
        kept = min(n, 2)
        assert last[i] == kept - 1 and cut.valid[i].tolist() == [True] * kept + [False] * (2 - kept)
        assert torch.equal(cut.obs[i, :kept], context.obs[i, n - kept : n])
    same, last = windows.latest(context, 9)
    assert torch.equal(same.obs, context.obs) and torch.equal(last, context.valid.sum(1) - 1)
