"""A traced program gives the bits of the function it was traced from, whatever it computes once or writes over."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from offbench.data.pipeline import make_pipeline
from offbench.nn import optim
from offbench.testing.contract import SPEC
from offbench.training.engine import Engine
from offbench.training.step import initial_carry, make_step
from offbench.training.tracing import Program

A = torch.linspace(-2, 3, 16, dtype=torch.float64).view(4, 4)
B = torch.linspace(5, -4, 16, dtype=torch.float64).view(4, 4).square()
CONSTANT = torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4)


def written_over(program: Program) -> list[str]:
    """The operations that write into one of their operands."""
    names = [getattr(n.target, "__name__", "") for n in program._run.graph.nodes]
    backward = [n for n in program._run.graph.nodes if "grad_input" in n.kwargs]
    return [n for n in names if n.endswith("_") and not n.endswith("__")] + [
        str(n.target) for n in backward
    ]


def check(function) -> Program:
    """Twice, as what the first call spoils shows in the second; arguments and constants stay as they are."""
    arguments, constant = (A.clone(), B.clone()), CONSTANT.clone()
    want = tree_leaves(function(A.clone(), B.clone()))
    program = Program(lambda x: function(*x), arguments)
    for _ in range(2):
        got = tree_leaves(program(arguments))
        assert all(map(torch.equal, got, want))
    assert torch.equal(arguments[0], A) and torch.equal(arguments[1], B)
    assert torch.equal(CONSTANT, constant)
    return program


# --- writing over dead values


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda a, b: (a @ b).relu(), "relu_"),
        (lambda a, b: (a @ b).view(-1).tanh(), "tanh_"),
        (lambda a, b: (a @ b) + b[0], "add_"),
        (lambda a, b: b[0] + (a @ b), "add_"),
        (lambda a, b: b - (a @ b).clamp(-1, 1), "clamp_"),
        (lambda a, b: ((a @ b) * a).exp().sum(), "mul_"),
        (lambda a, b: (a @ b)[1:3].relu(), "relu_"),
        (
            lambda a, b: torch.ops.aten.threshold_backward(a @ b, b, 0),
            "aten.threshold_backward.grad_input",
        ),
        (lambda a, b: torch.ops.aten.tanh_backward(a @ b, b), "aten.tanh_backward.grad_input"),
    ],
)
def test_a_value_that_nothing_reads_again_is_written_over(function, name):
    assert name in written_over(check(function))


def _a_later_view(a, b):
    y = a @ b
    first = y[0]
    return y.relu() + first


def _a_view_of_what_is_read_later(a, b):
    y = a @ b
    return y.view(-1).relu(), y.exp()


def _the_result_of_writing_is_read_twice(a, b):
    y = (a @ b).relu()
    flat = y.view(-1)
    return y + 1, flat.exp()


def _a_chain_through_views(a, b):
    y = (a @ b).relu().view(2, 8).mul(3).view(-1)
    return y.view(4, 4)[1] + y.view(4, 4).sum(0), y


def _both_halves_of_one_value(a, b):
    top, bottom = (a @ b).chunk(2)
    return top.relu() + bottom, bottom.exp()


def _itself_turned(a, b):
    y = a @ b
    return y * y.T


def _a_list_of_views(a, b):
    rows = (a @ b).unbind(0)
    return rows[0].relu(), rows[1] + rows[0]


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a.relu(),  # an argument
        lambda a, b: a.view(-1)[3:].relu(),
        lambda a, b: a.T.contiguous().T.relu(),
        lambda a, b: CONSTANT.relu() + a,
        lambda a, b: CONSTANT[1].relu() + CONSTANT[1] + a,
        lambda a, b: (y := a @ b).relu() + y,
        lambda a, b: ((y := a @ b), y.relu()),
        _a_later_view,
        _a_view_of_what_is_read_later,
        _the_result_of_writing_is_read_twice,
        _a_chain_through_views,
        _both_halves_of_one_value,
        _itself_turned,
        _a_list_of_views,
        lambda a, b: (a @ b).sum(0).expand(4, 4).relu(),  # one number seen many times
        lambda a, b: (a @ b).T.relu(),
        lambda a, b: (a @ b).sum(0) + b,  # too small to take the result
        lambda a, b: (a @ b).float() * b,  # of another type
        lambda a, b: b - (a @ b),  # sides cannot be changed
        lambda a, b: torch.add(b, a @ b, alpha=3),
        lambda a, b: (y := a @ b) + y,
        lambda a, b: (y := a @ b).clone() * y.view(-1)[:4],
    ],
)
def test_a_value_that_is_still_needed_is_never_written_over(function):
    check(function)


# --- computing once


def _calls(program: Program) -> int:
    return sum(n.op == "call_function" for n in program._run.graph.nodes)


@pytest.mark.parametrize(
    ("function", "calls"),
    [
        (lambda a, b: a.exp() @ a.exp(), 2),
        (lambda a, b: (a[0] * 2) @ (a[0] * 2), 3),
        (lambda a, b: torch.arange(4) + torch.arange(4), 2),
        (lambda a, b: CONSTANT.exp() @ CONSTANT.exp() + a, 3),
        (lambda a, b: torch.cat([a, b]) @ torch.cat([b, a]).T, 4),  # two that are not the same
        (lambda a, b: (a.sum(0), a.sum(1)), 2),
        (lambda a, b: (a.to(torch.float32) * 1, a.to(torch.float64) * 1.0), None),
        (lambda a, b: ((a > 0).sum() * 1, (a > 0).sum() * 1.0, (a > 0).sum() * True), 5),
    ],
)
def test_the_same_operation_on_the_same_values_is_computed_once(function, calls):
    program = check(function)
    assert calls is None or _calls(program) == calls


def test_two_draws_stay_two():
    program = Program(lambda x: (torch.rand(4) + x, torch.rand(4) + x), torch.zeros(4))
    assert not torch.equal(*program(torch.zeros(4)))


def _writes_into_one_of_two_alike(a, b):
    one, two = torch.zeros_like(a), torch.zeros_like(a)
    one[0] = b[0]
    return one + a, two + a


def _reads_before_and_after_writing(a, b):
    y = a.clone()
    before = y[0] * 2
    y.add_(b)
    return before, y[0] * 2


def _writes_through_a_view(a, b):
    y = a @ b
    row, before = y[1], y.exp()
    row.mul_(3)
    return before, y.exp()


def _writes_into_what_was_copied(a, b):
    one, two = a.clone(), a.clone()
    return one.relu_() + two, two.mul_(2)


@pytest.mark.parametrize(
    "function",
    [
        _writes_into_one_of_two_alike,
        _reads_before_and_after_writing,
        _writes_through_a_view,
        _writes_into_what_was_copied,
    ],
)
def test_functions_that_write_themselves_stay_right(function):
    check(function)


# --- both, in what is trained


def test_training_programs_write_activations_and_their_gradients_in_place(data):
    from offbench.methods.td3_bc import TD3BC

    method = TD3BC(hidden=(8, 8))
    step = make_step(method, make_pipeline(data, batch_size=4))
    program = Engine(step, initial_carry(method, SPEC, (0, 1)))._update
    names = [getattr(n.target, "__name__", "") for n in program._run.graph.nodes]
    assert names.count("relu_") == 16 and "relu" not in names
    assert "threshold_backward.default" not in names


def test_metrics_given_out_are_not_written_over_by_the_next_step():
    def update(state):
        new, opt = optim.Adam(0.1).step([torch.ones(4)], state["opt"], state["p"])
        return {"p": new, "opt": opt}, {"seen": new[0], "part": new[0][:2]}

    p = [torch.arange(4.0)]
    state = {"p": p, "opt": optim.Adam(0.1).init(p)}
    n = len(tree_leaves(state))
    program = Program(update, state, reuse=n)
    state, metrics = program(tree_map(torch.clone, state))
    kept = tree_map(torch.clone, metrics)
    program(state)
    assert all(map(torch.equal, tree_leaves(metrics), tree_leaves(kept)))


def test_programs_are_traced_in_two_threads_at_once():
    """A policy is traced where episodes are played, while training traces its update or another policy."""

    def trace(_) -> bool:
        function = lambda x: (x @ x).sin().sum() + sum((x * i).cos().sum() for i in range(10))
        return torch.equal(Program(function, A)(A), function(A))

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(trace, range(6)))
