"""Networks evaluated without gradients give what their formulas give, in one block or in many."""

import pytest
import torch
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.methods.acsac import ACSAC
from offbench.nn import evaluated, flow, transformer
from offbench.testing.contract import SPEC, fake_data, view_for
from offbench.training.tracing import _FORMULAS, Program

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
N, E, B, T, WIDTH = 3, 2, 7, 5, 12


@pytest.fixture(autouse=True)
def _small_rows_too(monkeypatch):
    monkeypatch.setattr(evaluated, "_FROM_ROWS", 1)


@pytest.fixture(params=[1, 2**19], ids=["a row at a time", "one block"])
def _block(request, monkeypatch):
    monkeypatch.setattr(evaluated, "_BLOCK", request.param)


def stacked(make, dtype):
    """Parameters of N seeds, nudged so that no bias is 0 and no scale is 1."""
    seeds = [make(rng.key(i)) for i in range(N)]
    nudge = lambda x: x + 0.3 * torch.sin(torch.arange(x.numel())).view(x.shape)
    return tree_map(lambda *x: nudge(torch.stack(x)).to(dtype), *seeds)


def draw(number, *shape, dtype):
    return rng.normal(rng.key(number), shape, dtype)


def flow_problem(dtype):
    params = stacked(lambda key: flow.velocity_init(key, 4, 6, (9, 11)), dtype)
    return params, draw(1, N, B, 4, dtype=dtype), draw(2, N, B, 6, dtype=dtype)


def values_problem(dtype):
    """Parameters, and what turns observations and actions into tokens and these into values."""
    make = lambda key: transformer.init(
        key, width=WIDTH, layers=2, hidden=20, ensemble=E, weight="xavier"
    )
    shapes = ((4, WIDTH), (3, WIDTH), (T, WIDTH), (T - 1, WIDTH))
    # far from a mean of 0, which the blocks never see
    ends = (1 + draw(i, N, E, *shape, dtype=dtype) for i, shape in enumerate(shapes))
    obs, action = draw(5, N, B, 4, dtype=dtype), draw(6, N, B, T - 1, 3, dtype=dtype)
    return stacked(make, dtype), transformer.Ends(*ends), obs, action


def close(a, b, dtype) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.usefixtures("_block")
def test_samples_of_a_flow(dtype):
    problem = flow_problem(dtype)
    want = vmap(lambda *x: flow.sample(*x, 3))(*problem)
    got = vmap(lambda *x: evaluated.flow_sample(*x, 3))(*problem)
    assert close(got, want, dtype) and (want.abs() < 1).any()
    alone = evaluated.flow_sample(*tree_map(lambda x: x[0], problem), 3)
    assert close(alone, want[0], dtype)
    many = vmap(lambda z: evaluated.flow_sample(*tree_map(lambda x: x[0], problem[:2]), z, 3))
    assert close(many(problem[2])[0], want[0], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "branches"), [(1, 2), (3, 1), (3, 2), (3, 4)])
@pytest.mark.usefixtures("_block")
def test_values_of_a_transformer(dtype, heads, branches):
    problem = values_problem(dtype)
    want = vmap(lambda *x: transformer.token_values(*x, heads=heads, branches=branches))(*problem)
    got = vmap(lambda *x: evaluated.token_values(*x, heads=heads, branches=branches))(*problem)
    assert want.shape == (N, E, B, T - 1) and close(got, want, dtype)
    alone = evaluated.token_values(
        *tree_map(lambda x: x[0], problem), heads=heads, branches=branches
    )
    assert close(alone, want[0], dtype)


def test_a_network_with_norms_or_few_rows_is_left_to_its_formula(monkeypatch):
    layers = flow.velocity_init(rng.key(0), 4, 6, (9,), layer_norm=True)
    obs, noise = (draw(i, B, n, dtype=torch.float32) for i, n in ((1, 4), (2, 6)))
    want = flow.sample(layers, obs, noise, 3)
    assert torch.equal(evaluated.flow_sample(layers, obs, noise, 3), want)
    monkeypatch.setattr(evaluated, "_FROM_ROWS", B + 1)
    program = Program(lambda x: evaluated.flow_sample(*x, 3), (layers, obs, noise))
    assert "flow_sample" not in str(program._run.graph)


def test_compilers_see_the_formulas():
    params, obs, noise = flow_problem(torch.float64)
    problem = values_problem(torch.float64)

    def both(params, obs, noise, problem):
        samples = vmap(lambda *x: evaluated.flow_sample(*x, 3))(params, obs, noise)
        run = lambda *x: evaluated.token_values(*x, heads=3, branches=2)
        return samples, vmap(run)(*problem)

    arguments = (params, obs, noise, problem)
    graph = make_fx(both, decomposition_table=_FORMULAS)(*arguments)
    assert "offbench" not in str(graph.graph)
    for a, b in zip(graph(*arguments), both(*arguments), strict=True):
        assert close(a, b, torch.float64)


def test_an_update_of_acsac_is_the_same_with_either(monkeypatch):
    method = ACSAC(hidden=(12, 12), width=8, heads=2, layers=2, n_proposals=3, flow_steps=3)
    view, data = view_for(method.needs), fake_data(dtype=torch.float64)
    pipeline = make_pipeline(data, view=view, batch_size=8, needs=method.needs)
    state = method.init(rng.key(0), pipeline.spec(SPEC))
    state = tree_map(lambda x: x.double() if x.is_floating_point() else x, state)
    batch, key, ran = pipeline.sample(rng.key(1)), rng.key(2), []
    by_member = evaluated._by_member
    monkeypatch.setattr(evaluated, "_by_member", lambda *x: ran.append(1) or by_member(*x))
    here, _ = method.update(state, batch, key)
    assert len(ran) == 2
    monkeypatch.setattr(evaluated, "_FROM_ROWS", 10**9)
    formula, _ = method.update(state, batch, key)
    assert len(ran) == 2
    for a, b in zip(tree_leaves(here), tree_leaves(formula), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)
