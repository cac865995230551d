"""What is compiled computes the numbers of what was traced, in fewer products."""

import pytest
import torch
import torch._inductor.config
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shipped import shipped_methods
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import gelu, layer_norm
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from offbench.data.pipeline import make_pipeline
from offbench.testing.fakes import environment_spec, fake_data, small, spec_for, view_for
from offbench.training import fusing
from offbench.training.step import initial_carry, make_step
from offbench.training.tracing import _compute_once, trace

GPU = torch.device("cuda")
BMM = torch.ops.aten.bmm.default


def products(graph) -> int:
    return len(graph.graph.find_nodes(op="call_function", target=BMM))


def check(function, *arguments) -> tuple[int, int]:
    """Products before and after; the numbers must be the same."""
    graph = trace(function, list(arguments), for_compiler=True)
    _compute_once(graph)
    want, before = tree_leaves(graph(*arguments)), products(graph)
    fusing.fuse(graph, GPU)
    for a, b in zip(tree_leaves(graph(*arguments)), want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        # Adam magnifies the rounding of gradients that are zero (of a key's bias) by lr / eps
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-11)
    return before, products(graph)


def normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def large(monkeypatch):
    """The small products of these tests count as large ones."""
    monkeypatch.setattr(fusing, "TINY", 0)
    monkeypatch.setattr(fusing, "THIN", 0)


X, Y, W, V = normal(3, 4, 5), normal(3, 7, 5), normal(3, 5, 6), normal(3, 6, 5)
BIAS = normal(3, 1, 6)


def network(x: torch.Tensor) -> torch.Tensor:
    return (x @ W + BIAS).relu() @ V


@pytest.mark.parametrize(
    ("function", "after"),
    [
        # two layers on two batches
        (lambda x, y: (network(x).sum(1), network(y).tanh()), 2),
        # one after the other
        (lambda x, y: network(network(x)), 4),
        # the second batch is made of the first result, the third is free
        (lambda x, y: (a := network(x), network(a), network(y)), 4),
        # an option of the activation
        (lambda x, y: [gelu(z @ W, approximate="tanh") @ V for z in (x, y)], 2),
        # an operation with several results
        (lambda x, y: [layer_norm(z @ W, (6,)) for z in (x, y)], 1),
        # what follows differs: only the first layer is one
        (lambda x, y: ((x @ W).relu() @ V, (y @ W).tanh() @ V), 2),
        # a value for each row is added
        (lambda x, y: (x @ W + x[..., :1], y @ W + y[..., :1]), 1),
        # one row of the first, broadcast to the rows of the second
        (lambda x, y: [(z @ W)[:, :1] + (z @ W.sin()) for z in (x, x + 1)], 2),
        (lambda x, y: [(z[:, :1] @ W) + (z @ W.sin()) for z in (x, x + 1)], 2),
        # each with the other, and both with what has a value for each row
        (lambda x, y: (a := x @ W, b := (x + 1) @ W, a - b, b - a), 1),
        (lambda x, y: [z @ W + x @ W.sin() for z in (x, x + 1)], 2),
        # one result is the right operand of the other's product
        (lambda x, y: (x @ W).mT @ x + (x[:, :3] @ W).sum(), 2),
        # seen in another shape
        (lambda x, y: ((x @ W).view(12, -1), (y @ W).view(3, 42), (y @ W).mT.reshape(3, 42)), 1),
    ],
)
def test_products_with_one_matrix_are_computed_together(function, after, large):
    assert check(function, X, Y)[1] == after


@pytest.mark.parametrize(("m", "k", "n"), [(1, 4, 5), (4, 1, 5), (4, 5, 1), (1, 1, 1), (1, 5, 1)])
def test_products_with_a_side_of_one_are_left_to_the_compiler(m, k, n, monkeypatch):
    monkeypatch.setattr(fusing, "MANY", 0)
    assert check(torch.bmm, normal(3, m, k), normal(3, k, n)) == (1, 0)


@pytest.mark.parametrize("thin", range(3))
@pytest.mark.parametrize(("side", "many", "after"), [(8, 2**26, 0), (9, 2**26, 1), (8, 9999, 1)])
def test_products_with_the_dimensions_of_actions_are_if_they_are_few(
    thin, side, many, after, monkeypatch
):
    monkeypatch.setattr(fusing, "MANY", many)
    m, k, n = (side if i == thin else 25 for i in range(3))
    assert check(torch.bmm, normal(2, m, k), normal(2, k, n)) == (1, after)


def attention(x: torch.Tensor) -> torch.Tensor:
    """(B, T, W): a token sees those before it."""
    hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    scores = x @ x.sin().mT / 2
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ x.cos()


@pytest.mark.parametrize(("tokens", "width", "after"), [(6, 16, 0), (24, 24, 0), (25, 9, 2)])
def test_attention_to_a_few_tokens_is_left_to_the_compiler(tokens, width, after):
    assert check(attention, normal(5, tokens, width)) == (2, after)


def cats(function, *arguments) -> int:
    graph = make_fx(function)(*arguments)
    _compute_once(graph)
    fusing.join_rows(graph)
    for a, b in zip(graph(*arguments), function(*arguments), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    return len(graph.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default))


@pytest.mark.parametrize(
    ("order", "copies"), [((0, 1, 2), 0), ((0, 1), 1), ((1, 0, 2), 1), ((1, 2), 1)]
)
def test_minibatches_that_lie_together_are_not_copied_to_be_one(order, copies):
    assert cats(lambda z: [z.select(1, i).bmm(W) for i in order], normal(3, 3, 4, 5)) == copies


def test_places_of_another_axis_are_no_minibatches():
    assert cats(lambda z: [z.select(2, i).bmm(W) for i in (0, 1)], normal(3, 4, 2, 5)) == 1


MATRICES = [normal(2, 3, 3), normal(2, 3, 3) + 1]
# of two values, often equal ones, and a matrix
STEPS = [
    lambda a, b, w: a @ w,
    lambda a, b, w: a @ w,
    lambda a, b, w: a.sigmoid() + w[:, :1],
    lambda a, b, w: a.tanh() * a,
    lambda a, b, w: a.tanh() + b if a.shape == b.shape else b.relu(),
    lambda a, b, w: (a @ b.mT).tanh() @ b,
    lambda a, b, w: a[:, :2].view(2, 1, 2, 3).flatten(0, 1),
]


@settings(max_examples=25, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), *[st.integers(0, 99)] * 3), max_size=14))
def test_random_programs_keep_their_numbers(steps):
    def function(*values):
        values = list(values)
        for step, i, j, k in steps:
            values.append(step(values[i % len(values)], values[j % len(values)], MATRICES[k % 2]))
        return values

    check(function, normal(2, 4, 3).tanh(), normal(2, 2, 3).tanh(), normal(2, 4, 3).sin())


QUICK = ("IQL", "TD3BC")


@pytest.mark.parametrize(
    "cls",
    [
        pytest.param(c, marks=[] if c.__name__ in QUICK else pytest.mark.slow)
        for c in shipped_methods()
    ],
    ids=lambda c: c.__name__,
)
def test_updates_of_every_method_keep_their_numbers(cls, float64):
    method = small(cls())
    spec, needs = spec_for(method), getattr(method, "needs", ())
    own = environment_spec(spec)
    data = fake_data(own, dtype=torch.float64)
    pipeline = make_pipeline(data, view=view_for(needs, own), batch_size=4, needs=needs)
    carry, step = initial_carry(method, spec, range(2)), make_step(method, pipeline)
    leaves, tree = tree_flatten((carry.state, step.input(vmap(step.draw)(carry.key))))

    def update(*leaves):
        return tree_leaves(vmap(step.update)(*tree_unflatten(list(leaves), tree)))

    with torch.no_grad():
        before, after = check(update, *leaves)
    if cls.__name__ in QUICK:
        assert after <= before * 2 / 3


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("terms", "split"), [(2048, False), (2049, True)])
def test_only_long_sums_are_split_and_inductor_knows_the_options(terms, split):
    graph = make_fx(lambda x: x.sum(1))(torch.zeros(3, terms))
    options = fusing.fuse(graph, GPU)
    assert options["split_reductions"] is split
    assert options["combo_kernels"] and options["deterministic"]
    assert all(hasattr(torch._inductor.config, name) for name in options)


@pytest.mark.parametrize(("more", "written_where_used"), [(0, True), (1, False)])
def test_only_small_values_are_joined_by_who_reads_them(more, written_where_used):
    half = torch.zeros(fusing.SMALL_CAT // 2 + more)
    graph = make_fx(lambda x: torch.cat([x, x]))(half)
    assert fusing.fuse(graph, GPU)["force_pointwise_cat"] is written_where_used


def test_programs_for_a_cpu_stay_as_they_are():
    graph = make_fx(lambda x, y: (network(x), network(y)))(X, Y)
    code = graph.code
    assert fusing.fuse(graph, X.device) == {} and graph.code == code
