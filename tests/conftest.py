"""Shared by all tests: one thread, every shipped method as a parameter, small fake data."""

import gc
import hashlib

import pytest
import torch
from support.shipped import shipped_methods

from offbench.tasks import cache
from offbench.testing.contract import fake_data, sized

torch.set_num_threads(1)
# tracing allocates so many objects that collecting among all that is imported took a fifth of its time
gc.freeze()
gc.set_threshold(100_000, 20, 20)


# One of each kind for `make test`: one step, two minibatches, chunks, a sequence model, discrete actions.
KINDS = ("IQL", "TD3BC", "QC", "DT", "DiscreteCQL")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", metavar="I/N", help="the I-th of N parts of the tests, by name: 0/4 to 3/4"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (part := config.getoption("--part")) is None:
        return
    i, n = map(int, part.split("/"))
    chosen = [x for x in items if hashlib.sha256(x.nodeid.encode()).digest()[0] % n == i]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[x for x in items if x not in kept])
    items[:] = chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of `shipped_method` runs for every method, those beyond KINDS in `make test-all` alone."""
    if "shipped_method" in metafunc.fixturenames:
        methods = [
            pytest.param(sized(c, (16, 16)), marks=[] if c.__name__ in KINDS else pytest.mark.slow)
            for c in shipped_methods()
        ]
        metafunc.parametrize("shipped_method", methods, ids=lambda m: type(m).__name__)


@pytest.fixture(scope="session")
def data():
    return fake_data()


@pytest.fixture(scope="session")
def data64():
    return fake_data(dtype=torch.float64)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Nothing is read from, or left in, the cache of whoever runs the tests; it keeps small sets, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cache.cached.__kwdefaults__, "min_rows", 10_000)
        patch.setenv("OFFBENCH_DATA", str(tmp_path_factory.mktemp("cache")))
        yield
