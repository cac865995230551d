"""Products by oneDNN: the same numbers to rounding, whatever the layout of the matrices, and only where they repay."""

import shutil

import pytest
import torch

from offbench.training import products
from offbench.training.tracing import Program

torch_has_it = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN"
)
M, K, N = 130, 140, 150


def layouts(m: int, k: int):
    """Matrices (m, k): plain, transposed, cut out of larger ones, and with rows or columns that share memory."""
    key = torch.Generator().manual_seed(m)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=key)

    return {
        "plain": random(m, k),
        "transposed": random(k, m).t(),
        "columns": random(m, k + 3)[:, 1 : k + 1],
        "rows of a transposed": random(k + 3, m)[1 : k + 1].t(),
        "every second column": random(m, 2 * k)[:, ::2],
        "every second row": random(2 * m, k)[::2],
        "one row": random(1, k).expand(m, k),
        "one column": random(m, 1).expand(m, k),
        "of a stack": random(m, 3, k)[:, 1],
    }


@pytest.fixture
def chosen(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


def operators(program: Program) -> set[str]:
    ours = [*products.CALLS, *products.CALLS.values()]
    taken = [node.target for node in program.graph.graph.nodes if node.target in ours]
    return {getattr(target, "_opname", target.__name__) for target in taken}


@torch_has_it
@pytest.mark.parametrize("left", layouts(M, K))
@pytest.mark.parametrize("right", layouts(K, N))
def test_a_product_is_the_product_whatever_the_layout(left, right):
    a, b = layouts(M, K)[left], layouts(K, N)[right]
    exact = a.double() @ b.double()
    # the most that rounding does to a sum of K terms
    bound = K * 2**-24 * (a.abs().double() @ b.abs().double())
    assert ((products.mm(a, b) - exact).abs() <= bound).all()
    pairs = (torch.stack([a, a + 1]), torch.stack([b, b - 1]))
    both = products.bmm(*pairs)
    assert both.shape == (2, M, N) and both.is_contiguous()
    assert ((both[0] - exact).abs() <= bound).all()
    torch.testing.assert_close(both, torch.bmm(*pairs), rtol=1e-4, atol=1e-3)


@torch_has_it
@pytest.mark.parametrize(
    ("shapes", "dtype", "taken"),
    [
        (((M, K), (K, N)), torch.float32, {"mm"}),
        (((2, M, K), (2, K, N)), torch.float32, {"bmm"}),
        (((M, K), (K, N)), torch.float64, set()),
        # one side short
        (((1000, 1000), (1000, 31)), torch.float32, set()),
        # small
        (((64, 64), (64, 64)), torch.float32, set()),
    ],
)
def test_large_float32_products_are_taken_and_no_others(chosen, shapes, dtype, taken):
    a, b = (torch.randn(shape, dtype=dtype) for shape in shapes)
    program = Program(lambda x: [(x[0] @ x[1]).relu()], [a, b])
    assert operators(program) == taken
    (got,) = program([a, b])
    torch.testing.assert_close(got, (a @ b).relu(), rtol=1e-4, atol=1e-3)
    # the same bits each time
    assert torch.equal(program([a, b])[0], got)


@torch_has_it
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler is installed")
def test_compiled_programs_call_it_too(chosen):
    a, b = torch.randn(M, K), torch.randn(2, K, N)
    compiled = Program(lambda x: [(x[0] @ x[1]).exp().sum(1)], [a, b], compiled=True)
    (got,) = compiled([a, b])
    torch.testing.assert_close(got, (a @ b).exp().sum(1), rtol=1e-3, atol=1e-2)
    assert operators(compiled)


def test_bfloat16_products_stay(chosen):
    a, b = torch.randn(M, K), torch.randn(K, N)
    assert not operators(Program(lambda x: [x[0] @ x[1]], [a, b], bf16=True))


@pytest.mark.parametrize(
    ("vendor", "capability", "faster"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("vendor_id : AuthenticAMD", "AVX2", False),
        ("vendor_id : GenuineIntel", "AVX512", False),
    ],
)
def test_the_processor_alone_decides(monkeypatch, vendor, capability, faster):
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for library in ("mkl", "mkldnn"):
        monkeypatch.setattr(getattr(torch.backends, library), "is_available", lambda: True)
    assert products.onednn_is_faster.__wrapped__() is faster
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert products.onednn_is_faster.__wrapped__() is False
