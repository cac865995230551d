"""Networks and optimisers equal torch's own, stacked or alone."""

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.nn import nets
from offbench.nn.optim import Adam, AdamW, adam_lists, clip_by_global_norm, polyak

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def double(tree):
    return tree_map(torch.Tensor.double, tree)


def as_module(params, activation: str = "relu", layer_norm: bool = False) -> nn.Sequential:
    """The same network of torch's modules."""
    parts = []
    for layer in params:
        linear = nn.Linear(*layer["w"].shape).double()
        linear.weight.data, linear.bias.data = layer["w"].T.clone(), layer["b"].flatten().clone()
        norm = [nn.LayerNorm(layer["w"].shape[1], elementwise_affine=False)] if layer_norm else []
        parts += [linear, *norm, ACTIVATIONS[activation]()]
    return nn.Sequential(*parts[: -2 if layer_norm else -1])


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_mlp_equals_torch_modules(activation, layer_norm):
    params = double(nets.mlp_init(rng.key(0), (5, 8, 7, 3)))
    x = rng.normal(rng.key(1), (11, 5), torch.float64)
    want = as_module(params, activation, layer_norm)(x)
    got = nets.mlp(params, x, activation=activation, layer_norm=layer_norm)
    assert torch.allclose(got, want, rtol=0, atol=1e-12)


def test_an_ensemble_is_its_members_side_by_side():
    params = double(nets.mlp_init(rng.key(0), (5, 8, 3), ensemble=4))
    x = rng.normal(rng.key(1), (11, 5), torch.float64)
    out = nets.mlp(params, x)
    assert out.shape == (4, 11, 3)
    for i in range(4):
        member = as_module([{n: p[i] for n, p in layer.items()} for layer in params])
        assert torch.allclose(out[i], member(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ensemble", [None, 2])
def test_weights_start_uniform_within_one_over_the_root_of_the_inputs(ensemble):
    layers = nets.mlp_init(rng.key(0), (400, 300, 300), ensemble=ensemble)
    for layer, n_in in zip(layers, (400, 300), strict=True):
        bound = n_in**-0.5  # what torch.nn.Linear draws from
        for p in layer.values():
            assert -bound <= p.min() < -0.95 * bound and 0.95 * bound < p.max() <= bound
        assert abs(layer["w"].std() - bound / 3**0.5) < 0.01 * bound


def test_layers_members_weights_and_keys_draw_different_numbers():
    a = nets.mlp_init(rng.key(0), (6, 6, 6), ensemble=2)
    b = nets.mlp_init(rng.key(1), (6, 6, 6), ensemble=2)
    blocks = [
        p[i].flatten()[:6]
        for tree in (a, b)
        for layer in tree
        for p in layer.values()
        for i in range(2)
    ]
    assert len({tuple(x.tolist()) for x in blocks}) == 16


def params_of(seed: int) -> dict:
    """A tree of every rank that methods use: a network, twins, a vector and a scalar."""
    k = rng.split(rng.key(seed), 2)
    return double(
        {
            "net": nets.mlp_init(k[0], (4, 6, 2)),
            "twins": nets.mlp_init(k[1], (4, 6, 1), ensemble=2),
            "log_std": torch.zeros(2) + seed / 7,
            "scalar": torch.ones(()) * (seed + 1),
        }
    )


def loss(params, x):
    net, twins = nets.mlp(params["net"], x).tanh(), nets.mlp(params["twins"], x)
    return (net * params["log_std"].exp()).square().mean() + (
        twins * params["scalar"] - 1
    ).square().mean()


def torch_adam(params, batches, **options):
    leaves = [p.clone().requires_grad_() for p in tree_leaves(params)]
    tree = torch.utils._pytree.tree_unflatten(leaves, torch.utils._pytree.tree_structure(params))
    optimiser = torch.optim.Adam(leaves, foreach=False, fused=False, **options)
    for x in batches:
        optimiser.zero_grad()
        loss(tree, x).backward()
        optimiser.step()
    return [p.detach() for p in leaves]


def our_adam(params, batches, adam):
    def step(params, state, x):
        return adam.step(grad(loss)(params, x), state, params)

    state = adam.init(params)
    for x in batches:
        params, state = step(params, state, x)
    return params, state


OPTIONS = [{"lr": 1e-2}, {"lr": 3e-4}, {"lr": 1e-2, "b1": 0.5, "b2": 0.9, "eps": 1e-3}]


@pytest.mark.parametrize("options", [*OPTIONS, {"lr": 1e-2, "weight_decay": 0.3}], ids=str)
def test_adam_equals_torch_adam(options):
    batches = [rng.normal(rng.key(i), (8, 4), torch.float64) for i in range(50)]
    got, state = our_adam(params_of(0), batches, Adam(**options))
    betas = (options.get("b1", 0.9), options.get("b2", 0.999))
    others = {k: v for k, v in options.items() if k not in ("b1", "b2")}
    want = torch_adam(params_of(0), batches, betas=betas, **others)
    for a, b in zip(tree_leaves(got), want, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert state.count == 50


def test_adam_of_stacked_seeds_equals_torch_adam_of_each():
    batches = [rng.normal(rng.key(i), (8, 4), torch.float64) for i in range(20)]
    adam, seeds = Adam(1e-2), range(3)
    params = tree_map(lambda *x: torch.stack(x), *[params_of(s) for s in seeds])
    state = vmap(adam.init)(params)
    for x in batches:
        params, state = vmap(lambda p, s: adam.step(grad(loss)(p, x), s, p))(params, state)  # noqa: B023
    for seed in seeds:
        want = torch_adam(params_of(seed), batches, lr=1e-2)
        for a, b in zip(tree_leaves(params), want, strict=True):
            assert torch.allclose(a[seed], b, rtol=0, atol=1e-12)


ODD = [(3, 5, 7), (3, 1), (3, 2, 4, 1), (3,), (3, 2, 1, 6), (3,)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_lists_for_compilers_compute_the_same_step_of_adam(options):
    """Of leaves of every shape, one of them twice, with a gradient that is the view of a transposed one."""
    numbers = Adam(**options)._asdict()
    # the decay is in the gradients
    del numbers["weight_decay"]
    draw = lambda i: [rng.normal(rng.key(i + j), s, torch.float64) for j, s in enumerate(ODD)]
    params, mu, nu = draw(0), draw(10), [x.square() for x in draw(20)]
    # the last is the first again
    params, mu, nu = ([*x, x[0]] for x in (params, mu, nu))
    for i in range(1, 6):
        grads = draw(30 * i)
        grads[0] = grads[0].transpose(1, 2).contiguous().transpose(1, 2)
        state = (
            params,
            [*grads, grads[0]],
            mu,
            nu,
            torch.full((3,), float(i), dtype=torch.float64),
        )
        want = torch.ops.offbench.adam(*state, **numbers)
        got = adam_lists(*state, **numbers)
        for a, b in zip(got, want, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-12) and a.stride() == b.stride()
        n = len(params)
        params, mu, nu = got[:n], got[n : 2 * n], got[2 * n :]


def test_adam_expands_what_the_seeds_share():
    """Parameters may be common to all seeds while gradients are not; the results then differ by seed."""
    adam, params = Adam(1e-2), [torch.ones(3, dtype=torch.float64)]
    grads = torch.tensor([[1.0, 1, 1], [-1, -1, -1]], dtype=torch.float64)
    state = adam.init(params)
    got, _ = vmap(lambda g: adam.step([g], state, params))(grads)
    for g, p in zip(grads, got[0], strict=True):
        assert torch.equal(p, adam.step([g], state, params)[0][0])


def test_adam_takes_gradients_in_any_layout():
    p = torch.zeros(3, 4)
    g = (torch.arange(12.0) - 5.5).view(4, 3).T
    assert not g.is_contiguous()
    adam = Adam(1e-1)
    got, _ = adam.step([g], adam.init([p]), [p])
    assert torch.allclose(got[0], -0.1 * g.sign())  # Adam's first step


@pytest.mark.parametrize("dim", [0, 1])
def test_the_seed_axis_may_lie_anywhere(dim):
    g, p = rng.normal(rng.key(0), (3, 3)), rng.normal(rng.key(1), (3, 3))
    adam = Adam(1e-1)

    def step(g, p):
        (q,), _ = adam.step([g], adam.init([p]), [p])
        return q, polyak([p], [g], 0.1)[0]

    got = vmap(step, in_dims=dim)(g, p)
    want = [step(g.select(dim, i), p.select(dim, i)) for i in range(3)]
    for i in range(3):
        assert torch.equal(got[0][i], want[i][0]) and torch.equal(got[1][i], want[i][1])


def test_optimisers_leave_their_arguments_as_they_were():
    params, adam = params_of(0), Adam(1e-2)
    grads, state = tree_map(torch.ones_like, params), adam.init(params)
    before = tree_map(torch.clone, (params, grads, state))
    new, _ = adam.step(grads, state, params)
    polyak(params, new, 0.5)
    assert all(
        torch.equal(a, b)
        for a, b in zip(tree_leaves(before), tree_leaves((params, grads, state)), strict=True)
    )


def test_polyak_moves_the_target_by_the_rate():
    target, online = params_of(0), params_of(1)
    for t, o, got in zip(
        *map(tree_leaves, (target, online, polyak(target, online, 0.1))), strict=True
    ):
        assert torch.allclose(got, 0.9 * t + 0.1 * o, rtol=0, atol=1e-15)


def test_polyak_of_stacked_seeds_equals_each_alone():
    targets, onlines = [params_of(s) for s in (0, 1)], [params_of(s) for s in (2, 3)]
    pack = lambda trees: tree_map(lambda *x: torch.stack(x), *trees)
    got = vmap(lambda t, o: polyak(t, o, 0.1))(pack(targets), pack(onlines))
    for i in range(2):
        want = polyak(targets[i], onlines[i], 0.1)
        assert all(
            torch.equal(a[i], b) for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True)
        )


@pytest.mark.filterwarnings("ignore")
def test_the_custom_operators_keep_torchs_rules_for_operators():
    p = [torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(2)]
    args = (
        p,
        [x + 1 for x in p],
        [x * 0 for x in p],
        [x * 0 for x in p],
        torch.ones(()),
        1e-2,
        0.9,
        0.999,
        1e-8,
    )
    rules = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.offbench.adam.default, args, test_utils=rules)
    torch.library.opcheck(
        torch.ops.offbench.lerp.default, (p, [x + 1 for x in p], 0.1), test_utils=rules
    )


def test_initialisations_have_the_law_they_name():
    xavier = nets.mlp_init(rng.key(0), (200, 300, 10), weight="xavier", bias=0.1, last=3e-3)
    bound = (6 / 500) ** 0.5
    assert bound * 0.99 < xavier[0]["w"].abs().max() <= bound
    assert (xavier[0]["b"] == 0.1).all()
    assert 2.9e-3 < xavier[1]["w"].abs().max() <= 3e-3 and 0 < xavier[1]["b"].abs().max() <= 3e-3
    turned = nets.mlp_init(rng.key(0), (4, 9, 3), weight="orthogonal", ensemble=2)
    for layer, n in zip(turned, (4, 3), strict=True):
        w = layer["w"] if n == 4 else layer["w"].mT
        assert torch.allclose(w @ w.mT, 2 * torch.eye(n).expand(2, n, n), atol=1e-5)
        assert not layer["b"].any()


@pytest.mark.parametrize("place", ["before", "after"])
def test_layer_norm_has_a_learned_scale_and_shift_where_it_is_asked_for(place):
    params = nets.mlp_init(rng.key(1), (3, 8, 1), layer_norm=True)
    params[0]["scale"] = torch.linspace(1, 2, 8)[None]
    params[0]["shift"] = torch.linspace(-1, 1, 8)[None]
    x = rng.normal(rng.key(2), (5, 3))
    linear = torch.nn.LayerNorm(8, eps=1e-6)
    linear.weight.data, linear.bias.data = params[0]["scale"][0], params[0]["shift"][0]
    hidden = x @ params[0]["w"] + params[0]["b"]
    hidden = linear(hidden).relu() if place == "before" else linear(hidden.relu())
    want = hidden @ params[1]["w"] + params[1]["b"]
    assert torch.allclose(nets.mlp(params, x, layer_norm=place, eps=1e-6), want, atol=1e-6)


def test_dropout_zeroes_that_share_of_the_hidden_units_and_keeps_their_mean():
    one = torch.ones(1, 1)
    params = [{"w": one, "b": 0 * one}, {"w": one, "b": 0 * one}]
    x = torch.ones(20_000, 1)
    y = nets.mlp(params, x, dropout=0.25, key=rng.key(0))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(nets.mlp(params, x, dropout=0.25), x)  # not without a key


@pytest.mark.parametrize("swept", [False, True], ids=["fused", "formula"])
def test_adamw_equals_torchs_with_a_warm_up(swept):
    lr, decay, warmup = 3e-2, 0.4, 4
    p = {"a": rng.normal(rng.key(0), (3, 2), torch.float64), "b": torch.ones(2).double()}
    theirs = [x.clone().requires_grad_() for x in p.values()]
    adam = torch.optim.AdamW(theirs, lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: min((i + 1) / warmup, 1))
    ours = AdamW(torch.tensor(lr, dtype=torch.float64) if swept else lr, decay, warmup)
    state = double(ours.init(p))
    for i in range(7):
        grads = {
            k: rng.normal(rng.key(10 + i), tuple(x.shape), torch.float64) for k, x in p.items()
        }
        for x, g in zip(theirs, grads.values(), strict=True):
            x.grad = g.clone()
        adam.step(), schedule.step()
        p, state = ours.step(grads, state, p)
        for x, want in zip(p.values(), theirs, strict=True):
            assert torch.allclose(x, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("limit", [0.1, 100.0])
def test_clipping_equals_torchs(limit):
    grads = [rng.normal(rng.key(i), (4, i + 1), torch.float64) for i in range(3)]
    theirs = [torch.zeros_like(g).requires_grad_() for g in grads]
    for x, g in zip(theirs, grads, strict=True):
        x.grad = g.clone()
    want = nn.utils.clip_grad_norm_(theirs, limit)
    got, norm = clip_by_global_norm(grads, limit)
    assert torch.allclose(norm, want, rtol=1e-12)
    assert all(torch.allclose(a, x.grad, rtol=1e-12) for a, x in zip(got, theirs, strict=True))
