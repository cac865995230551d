"""The transformer against torch's own encoder layers, and what causality and stacking promise."""

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.nn import transformer

WIDTH, LAYERS, HEADS, HIDDEN = 12, 3, 2, 20
B, T = 4, 7


def params(seed: int = 0, dtype=torch.float64, **options):
    made = transformer.init(
        rng.key(seed), width=WIDTH, layers=LAYERS, hidden=HIDDEN, **{"weight": "xavier"} | options
    )
    nudged = tree_map(lambda x: x + 0.1 * torch.sin(torch.arange(x.numel())).view(x.shape), made)
    return tree_map(lambda x: x.to(dtype), nudged)  # no bias stays 0, no scale 1


def tokens(seed: int = 1, *lead: int) -> torch.Tensor:
    return rng.normal(rng.key(seed), (*lead, B, T, WIDTH), torch.float64)


def encoder(p, activation: str, eps: float) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        WIDTH,
        HEADS,
        HIDDEN,
        0.0,
        activation,
        eps,
        batch_first=True,
        norm_first=True,
        dtype=torch.float64,
    )
    net = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH, eps, dtype=torch.float64), False)
    with torch.no_grad():
        for block, module in zip(p["blocks"], net.layers, strict=True):
            module.self_attn.in_proj_weight.copy_(block["qkv"]["w"].T)
            module.self_attn.in_proj_bias.copy_(block["qkv"]["b"][0])
            for name, part in (
                ("out", module.self_attn.out_proj),
                ("up", module.linear1),
                ("down", module.linear2),
            ):
                part.weight.copy_(block[name]["w"].T)
                part.bias.copy_(block[name]["b"][0])
            for name, part in (("norm1", module.norm1), ("norm2", module.norm2)):
                part.weight.copy_(block[name]["scale"][0])
                part.bias.copy_(block[name]["shift"][0])
        net.norm.weight.copy_(p["norm"]["scale"][0])
        net.norm.bias.copy_(p["norm"]["shift"][0])
    return net.train()  # evaluation mode takes a fused path


@pytest.mark.parametrize("activation, eps", [("gelu", 1e-5), ("relu", 1e-3)])
def test_values_and_gradients_equal_torchs_encoder(activation, eps):
    p, x = params(), tokens()
    net = encoder(p, activation, eps)
    causal = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    want = net(x, causal)

    def out(p):
        return transformer.apply(p, x, heads=HEADS, activation=activation, eps=eps)

    assert torch.allclose(out(p), want, rtol=0, atol=1e-12)
    want.square().sum().backward()
    got = grad(lambda p: out(p).square().sum())(p)
    assert torch.allclose(
        got["blocks"][0]["qkv"]["w"], net.layers[0].self_attn.in_proj_weight.grad.T, atol=1e-10
    )
    assert torch.allclose(got["blocks"][2]["down"]["w"], net.layers[2].linear2.weight.grad.T)
    assert torch.allclose(got["norm"]["scale"][0], net.norm.weight.grad)


@pytest.mark.parametrize("t", range(T))
def test_a_token_changes_nothing_before_itself_and_everything_from_there(t):
    p, x = params(), tokens()
    moved = x.clone()
    moved[:, t] += 1.0
    same = (transformer.apply(p, x, heads=HEADS) == transformer.apply(p, moved, heads=HEADS)).all(
        -1
    )
    assert same[:, :t].all() and not same[:, t:].any()


def test_a_mask_hides_what_it_says_per_batch_element():
    """Left padding: hidden tokens change nothing, and what is left is as if they were not there."""
    p, x = params(), tokens()
    pads = torch.tensor([0, 1, 3, 6])
    seen = torch.arange(T)[None] >= pads[:, None]  # (B, T)
    mask = torch.ones(T, T, dtype=torch.bool).tril() & seen[:, None] | torch.eye(
        T, dtype=torch.bool
    )
    out = transformer.apply(p, x, heads=HEADS, mask=mask)
    for b, n in enumerate(pads.tolist()):
        alone = transformer.apply(p, x[b : b + 1, n:], heads=HEADS)
        assert torch.allclose(out[b, n:], alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_branches_are_read_as_their_mask_says(n):
    p, x = params(), tokens()
    branches = transformer.Branches(n)
    want = transformer.apply(p, x, heads=HEADS, mask=branches.mask(T, x.device))
    out = transformer.apply(p, x, heads=HEADS, mask=branches)
    assert torch.allclose(out, want, rtol=0, atol=1e-12)
    length = (T - 1) // n
    for start in range(1, T, length):
        alone = torch.cat([x[:, :1], x[:, start : start + length]], 1)
        alone = transformer.apply(p, alone, heads=HEADS)
        assert torch.allclose(out[:, start : start + length], alone[:, 1:], rtol=0, atol=1e-12)


def test_an_ensemble_equals_a_loop_over_its_members():
    p = params(ensemble=3)
    for x in (tokens(), tokens(2, 3)):
        together = transformer.apply(p, x, heads=HEADS)
        assert together.shape == (3, B, T, WIDTH)
        for i in range(3):
            own = tree_map(lambda leaf, i=i: leaf[i], p)
            alone = transformer.apply(own, x if x.ndim == 3 else x[i], heads=HEADS)
            assert torch.allclose(together[i], alone, rtol=0, atol=1e-12)


def test_seeds_are_stacked_by_vmap_of_the_gradient():
    def gradient(p, x, key):
        loss = lambda p: transformer.apply(p, x, heads=HEADS, dropout=0.5, key=key).square().sum()
        return grad(loss)(p)

    seeds = [params(i) for i in range(3)]
    stacked = tree_map(lambda *leaves: torch.stack(leaves), *seeds)
    x, keys = tokens(5, 3), torch.stack([rng.key(i) for i in range(3)])
    together = vmap(gradient)(stacked, x, keys)
    for i in range(3):
        for a, b in zip(tree_leaves(together), tree_leaves(gradient(seeds[i], x[i], keys[i]))):
            assert torch.allclose(a[i], b, rtol=0, atol=1e-10)


def test_dropout_needs_a_key_keeps_the_mean_and_drops_at_its_rate():
    p, x = params(), tokens()
    plain = transformer.apply(p, x, heads=HEADS)
    assert torch.equal(plain, transformer.apply(p, x, heads=HEADS, dropout=0.5))
    key = rng.key(0)
    assert torch.equal(plain, transformer.apply(p, x, heads=HEADS, dropout=0.0, key=key))
    assert not torch.allclose(plain, transformer.apply(p, x, heads=HEADS, dropout=0.5, key=key))
    ones = transformer.drop(torch.ones(20000), 0.3, rng.key(1))
    assert abs((ones == 0).float().mean() - 0.3) < 0.02 and abs(ones.mean() - 1) < 0.02
    assert torch.equal(ones, transformer.drop(torch.ones(20000), torch.tensor(0.3), rng.key(1)))


def test_what_init_draws():
    big = transformer.init(rng.key(0), width=64, layers=1, hidden=256)
    block = big["blocks"][0]
    assert abs(block["qkv"]["w"].std() - 0.02) < 1e-3 and not block["qkv"]["b"].any()
    block = transformer.init(rng.key(0), width=64, layers=1, hidden=256, weight="xavier")["blocks"][
        0
    ]
    for name, bound in (
        ("qkv", (6 / 128) ** 0.5),
        ("out", (6 / 128) ** 0.5),
        ("up", (6 / 320) ** 0.5),
    ):
        assert 0.99 * bound < block[name]["w"].abs().max() <= bound
    bare = params(bias=False, final_norm=False)
    assert "norm" not in bare and "b" not in bare["blocks"][0]["out"]
    assert transformer.apply(bare, tokens(), heads=HEADS).shape == (B, T, WIDTH)
