"""The Decision Transformer against ordinary modules in float64, and its use of windows and returns.

The reference is written from the paper and the authors' code: torch.nn layers, one token after the
other, `backward()`, `clip_grad_norm_`, torch.optim.AdamW and a LambdaLR. Dropout is 0 in it.
"""

import dataclasses

import numpy as np
import pytest
import torch
from support.mutants import mutated
from torch import nn
from torch.func import vmap
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, from_episodes
from offbench.data.views import NStep, Window
from offbench.errors import UserError
from offbench.methods.bc import BC
from offbench.methods.dt import DT
from offbench.testing.contract import SPEC, fake_data
from offbench.training.loop import train
from offbench.types import Policy, Spec, TimeStep

K = 4
LOUD = DT(
    width=12, layers=2, heads=3, dropout=0.0, lr=3e-2, warmup=5, weight_decay=0.3, max_grad_norm=0.5
)
GELU = dataclasses.replace(LOUD, activation="gelu", loss_over="window", max_grad_norm=2.0, heads=1)


class Plain(nn.Module):
    def __init__(self, m: DT, spec: Spec):
        super().__init__()
        w = m.width
        self.time = nn.Embedding(spec.max_episode_steps, w)
        self.embed = nn.ModuleList([nn.Linear(n, w) for n in (1, spec.obs_dim, spec.action_dim)])
        self.norm = nn.LayerNorm(w)
        layer = nn.TransformerEncoderLayer(
            w, m.heads, 4 * w, 0.0, m.activation, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, m.layers, nn.LayerNorm(w), False)
        self.head = nn.Linear(w, spec.action_dim)
        self.double()

    def load(self, p: dict) -> None:
        def linear(to: nn.Linear, layer: dict) -> None:
            to.weight.data, to.bias.data = layer["w"].T.clone(), layer["b"].flatten().clone()

        def norm(to: nn.LayerNorm, layer: dict) -> None:
            to.weight.data, to.bias.data = (
                layer["scale"].flatten().clone(),
                layer["shift"].flatten().clone(),
            )

        self.time.weight.data = p["time"].clone()
        for to, name in zip(self.embed, ("return", "obs", "action"), strict=True):
            linear(to, p[name])
        norm(self.norm, p["norm"]), norm(self.body.norm, p["body"]["norm"])
        linear(self.head, p["head"])
        for to, block in zip(self.body.layers, p["body"]["blocks"], strict=True):
            to.self_attn.in_proj_weight.data = block["qkv"]["w"].T.clone()
            to.self_attn.in_proj_bias.data = block["qkv"]["b"].flatten().clone()
            linear(to.self_attn.out_proj, block["out"])
            linear(to.linear1, block["up"]), linear(to.linear2, block["down"])
            norm(to.norm1, block["norm1"]), norm(to.norm2, block["norm2"])

    def forward(self, context) -> torch.Tensor:
        tokens = []
        last = self.time.num_embeddings - 1
        for t in range(context.obs.shape[1]):
            when = self.time(context.timestep[:, t].clamp(max=last))
            for embed, x in zip(
                self.embed,
                (context.return_to_go[:, t, None], context.obs[:, t], context.action[:, t]),
                strict=True,
            ):
                tokens.append(self.norm(embed(x) + when))
        mask = nn.Transformer.generate_square_subsequent_mask(len(tokens), dtype=torch.float64)
        out = self.body(torch.stack(tokens, 1), mask)
        return torch.tanh(self.head(out[:, 1::3]))


def plain_loss(m: DT, net: Plain, context) -> torch.Tensor:
    error = (net(context) - context.action) ** 2
    kept = error[context.valid]  # (steps, A)
    if m.loss_over == "window":
        return kept.sum() / error.numel()
    return kept.mean()


def double(tree):
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)


def start(method):
    spec = Window(K).spec(SPEC)._replace(max_episode_steps=20)  # the data's episodes are up to 30
    state = double(method.init(rng.key(0), spec))
    nudge = lambda x: x + 0.1 * torch.sin(torch.arange(x.numel())).view(x.shape)
    state = state._replace(params=tree_map(nudge, state.params))  # no bias at 0, no scale at 1
    net = Plain(method, spec)
    net.load(state.params)
    return state, net


def disagreement(method, n: int = 8) -> float:
    """The largest difference in parameters and metrics over n updates on the same windows."""
    pipeline = make_pipeline(
        fake_data(dtype=torch.float64), view=Window(K), batch_size=16, needs=DT.needs
    )
    state, net = start(method)
    m = LOUD if method.loss_over == "steps" else GELU
    adam = torch.optim.AdamW(net.parameters(), lr=m.lr, weight_decay=m.weight_decay)
    warm = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: min((i + 1) / m.warmup, 1))
    worst = 0.0
    for i in range(n):
        batch = pipeline.sample(rng.key(i))
        state, metrics = method.update(state, batch, rng.key(i))
        loss = plain_loss(m, net, batch.obs)
        adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), m.max_grad_norm)
        adam.step(), warm.step()
        worst = max(worst, abs(metrics["loss"] - loss).item())
        worst = max(worst, abs(metrics["grad_norm"] - norm).item())
    other = Plain(m, Window(K).spec(SPEC)._replace(max_episode_steps=20))
    other.load(state.params)
    pairs = zip(net.parameters(), other.parameters(), strict=True)
    return max(worst, *((a - b).abs().max().item() for a, b in pairs))


@pytest.mark.parametrize("method", [LOUD, GELU], ids=["paper", "corl"])
def test_updates_equal_the_plain_implementation(method):
    assert disagreement(method) < 1e-9


MUTANTS = {
    "predicts from the return's token": ("out[..., 1::3, :]", "out[..., 0::3, :]"),
    "counts padding": ("error = error * valid", "error = error"),
    "mean over the window": ("error.sum() / valid.sum()", "error.mean()"),
    "no embedding norm": (
        "F.layer_norm(tokens.flatten(-3, -2), (self.width,))",
        "tokens.flatten(-3, -2)",
    ),
    "time only for observations": (
        "[part + time for part in parts]",
        "[parts[0], parts[1] + time, parts[2]]",
    ),
    "time past the table": ('len(params["time"]) - 1', 'len(params["time"]) - 2'),
    "no clipping": (
        "grads, norm = clip_by_global_norm(grads, self.max_grad_norm)",
        "_, norm = clip_by_global_norm(grads, self.max_grad_norm)",
    ),
    "no warm-up": ("self.weight_decay, self.warmup)", "self.weight_decay, 1)"),
    "warm-up one step late": (
        "self.weight_decay, self.warmup)",
        "self.weight_decay, self.warmup + 1)",
    ),
    "no decay": ("self.lr, self.weight_decay,", "self.lr, 0.0,"),
    "no tanh": ("return action.tanh() if", "return action if"),
    "returns and observations swapped": (
        'embed("return", context.return_to_go[..., None])',
        'embed("return", context.obs[..., :1])',
    ),
    "one head": ("heads=self.heads", "heads=1"),
    "always relu": ("activation=self.activation", 'activation="relu"'),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_finds_every_mutant(name):
    cls = mutated(DT, *MUTANTS[name])
    found = [disagreement(cls(**dataclasses.asdict(m)), n=4) > 1e-6 for m in (LOUD, GELU)]
    assert any(found)


def test_acting_is_the_prediction_for_the_last_step_of_each_window():
    """Windows of every length at once, against the reference on the steps alone."""
    state, net = start(LOUD)
    data = fake_data(dtype=torch.float64)
    view = Window(K).fit(data)
    context = view.batch(data, data.valid.nonzero().squeeze(1)).obs
    assert context.valid.sum(1).unique().tolist() == [1, 2, 3, 4]
    got = LOUD.act(state, context, rng.key(0))
    for n in range(1, K + 1):
        rows = context.valid.sum(1) == n
        alone = tree_map(lambda x, rows=rows, n=n: x[rows, :n], context)
        assert torch.allclose(got[rows], net(alone)[:, -1], rtol=0, atol=1e-12)


def test_neither_padding_nor_the_future_nor_its_own_action_changes_a_prediction():
    state, _ = start(LOUD)
    data = fake_data(dtype=torch.float64)
    context = Window(K).fit(data).batch(data, data.valid.nonzero().squeeze(1)).obs
    base = LOUD._actions(state.params, context)
    for t in range(K):
        after, from_t = torch.arange(K) > t, torch.arange(K) >= t
        moved = context._replace(
            obs=context.obs + 3.0 * after[:, None],
            return_to_go=context.return_to_go + 3.0 * after,
            timestep=context.timestep + 3 * after,
            action=context.action + 3.0 * from_t[:, None],
        )
        assert torch.equal(LOUD._actions(state.params, moved)[:, : t + 1], base[:, : t + 1])


def test_discrete_actions_are_learned_by_likelihood_and_the_likeliest_acts():
    method, spec = (
        dataclasses.replace(LOUD, actions="discrete"),
        SPEC._replace(discrete=True, action_dim=3),
    )
    data = fake_data(spec, dtype=torch.float64)
    batch = make_pipeline(data, view=Window(K), batch_size=9, needs=DT.needs).sample(rng.key(1))
    state = double(method.init(rng.key(0), Window(K).spec(spec)))
    logits, context = method._actions(state.params, batch.obs), batch.obs
    terms = [
        nn.functional.cross_entropy(logits[b, t], context.action[b, t].argmax())
        for b, t in context.valid.nonzero().tolist()
    ]
    loss = method.update(state, batch, rng.key(2))[1]["loss"]
    assert abs(loss - torch.stack(terms).mean()) < 1e-12
    last = torch.stack([x[n - 1] for x, n in zip(logits, context.valid.sum(1), strict=True)])
    chosen = nn.functional.one_hot(last.argmax(-1), 3).double()
    assert torch.equal(method.act(state, context, rng.key(0)), chosen)


def test_dropout_acts_in_training_only():
    method = dataclasses.replace(LOUD, dropout=0.5)
    state, _ = start(method)
    data = fake_data(dtype=torch.float64)
    batch = Window(K).fit(data).batch(data, data.valid.nonzero().squeeze(1)[:5])
    losses = {method.update(state, batch, rng.key(i))[1]["loss"].item() for i in range(3)}
    assert len(losses) == 3
    a, b = (method.act(state, batch.obs, rng.key(i)) for i in range(2))
    assert torch.equal(a, b) and torch.equal(a, LOUD.act(state, batch.obs, rng.key(0)))


# --- it learns what returns mean

HORIZON, SEEDS = 8, [0, 1]


def paid_actions(episodes: int = 120):
    """A step pays its action; each episode has one level of action, so one return."""
    made = []
    for k in rng.split(rng.key(0), episodes):
        k_level, k_noise, k_obs = rng.split(k, 3)
        level = 1.8 * rng.uniform(k_level, ()) - 0.9
        action = (level + 0.1 * rng.normal(k_noise, (HORIZON, 1))).clamp(-1, 1)
        obs = rng.normal(k_obs, (HORIZON + 1, 1))
        made.append(
            Episode(obs.numpy(), action.numpy(), action[:, 0].numpy(), np.zeros(HORIZON, bool))
        )
    return from_episodes(made)


def received(method, targets: list[float], n_updates: int = 150) -> list[torch.Tensor]:
    """What policies received in an episode, (seeds,) for each return they were asked for."""
    spec = Spec(obs_dim=1, action_dim=1, gamma=1.0, max_episode_steps=HORIZON)
    data, pipelines = paid_actions(), {}
    for target in targets:
        view = Window(3, 1.0, target)
        pipelines[target] = make_pipeline(
            data, view=view, transforms=["obs_norm"], batch_size=32, needs=method.needs
        )
    pipeline = pipelines[targets[0]]  # they differ in the target alone, which training does not see
    (point,) = train(method, pipeline, spec, seeds=SEEDS, n_updates=n_updates, backend="eager")
    return [episode(method, point.state, pipelines[target]) for target in targets]


def episode(method, state, pipeline) -> torch.Tensor:
    one = lambda s, x, k: method.act(s, tree_map(lambda v: v[None], x), k)[0]
    act = vmap(vmap(one, (None, 0, 0)))
    policy = pipeline.policy(
        Policy(lambda n, e: (), lambda s, step, c, k: (act(s, step.obs, k), c))
    )
    n, e = len(SEEDS), 4
    reward, total, carry = torch.zeros(n, e), torch.zeros(n, e), policy.init(n, e)
    for t in range(HORIZON):
        obs = rng.normal(rng.key(1000 + t), (n, e, 1))
        step = TimeStep(obs, reward, torch.full((n, e), t == 0))
        action, carry = policy.act(state, step, carry, torch.zeros(n, e, dtype=torch.int64))
        reward = action.squeeze(-1)
        total += reward
    return total.mean(1)


SMALL = DT(width=16, layers=1, lr=5e-3, warmup=20, dropout=0.0, max_grad_norm=1.0)
TARGETS = [-5.0, 0.0, 5.0]


def test_it_gets_the_return_it_is_asked_for():
    for target, got in zip(TARGETS, received(SMALL, TARGETS), strict=True):
        assert ((got - target).abs() < 1.5).all(), target


def test_learning_alone_finds_a_method_that_does_not_see_returns():
    cls = mutated(DT, *MUTANTS["returns and observations swapped"])
    low, high = received(cls(**dataclasses.asdict(SMALL)), [-5.0, 5.0])
    assert ((high - low).abs() < 3).all()


# --- what fits what


def test_a_method_of_windows_refuses_other_views_and_single_transitions(data):
    with pytest.raises(UserError, match="view=window"):
        make_pipeline(data, view=NStep(), needs=DT.needs)
    assert BC.__dict__.get("needs", ()) == ()
    one = np.zeros((2, 1)), np.zeros((1, 1)), np.zeros(1), np.zeros(1, bool)
    with pytest.raises(UserError, match="every episode of this dataset is a single transition"):
        make_pipeline(from_episodes([Episode(*one)] * 3), view=Window(2), needs=DT.needs)
    # a bandit is read by windows of one step
    make_pipeline(from_episodes([Episode(*one)] * 3), view=Window(1), needs=DT.needs)
