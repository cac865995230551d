"""Twenty updates of every method give the recorded numbers: a change of results is never an accident.

After an intended change, and a line in the changelog:    PYTHONPATH=tests python tests/methods/test_golden.py

The record is a few sums in float64, compared to 1e-9 (CQL's to 1e-8): robust to the order of additions in a BLAS,
while any change of a formula, a default or a draw moves them by far more.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from offbench.data.pipeline import make_pipeline
from offbench.data.sampling import advantage_weights
from offbench.testing.contract import SPEC, fake_data, sized, view_for
from offbench.training.step import advance, initial_carry, make_step

FOLDER = Path(__file__).parent / "golden"
N_UPDATES = 20
# share of the scale of a group by which numbers may differ
TOLERANCE = 1e-9
# In CQL the last bits, which are another CPU's own, grow to 2e-9 in twenty updates.
GROWING = {"cql": 1e-8}


def exact_data():
    """Fake data on a grid of 1/1024, the same to the last bit on every machine."""
    data = fake_data(dtype=torch.float64)
    return data._replace(
        **{k: torch.round(1024 * getattr(data, k)) / 1024 for k in ("obs", "action", "reward")}
    )


def statistics(tree) -> dict[str, float]:
    """Sums over all numbers of a part of the state: absolute, squared, and weighted by place."""
    x = torch.cat([leaf.double().flatten() for leaf in tree_leaves(tree)])
    place = (torch.arange(len(x), dtype=torch.float64) % 7 - 3) / 3
    return {
        "absolute": x.abs().sum().item(),
        "squared": x.square().sum().item(),
        "by_place": (x * place).sum().item(),
    }


def trace(method) -> dict:
    """What twenty updates of seed 0 come to, with weighted sampling."""
    needs = getattr(method, "needs", ())
    pipeline = make_pipeline(
        exact_data(), view=view_for(needs), weights=[advantage_weights], batch_size=16, needs=needs
    )
    step = make_step(method, pipeline)
    carry = initial_carry(method, pipeline.spec(SPEC), [0]).seed(0)
    carry = tree_map(lambda x: x.double() if x.is_floating_point() else x, carry)
    for _ in range(N_UPDATES):
        carry, metrics = advance(step, carry)
    state = carry.state
    return {
        "key": carry.key.item(),
        "metrics": {name: value.item() for name, value in metrics.items()},
        "state": {k: statistics(part) for k, part in state._asdict().items() if tree_leaves(part)},
    }


def path(method) -> Path:
    return FOLDER / f"{type(method).__module__.rsplit('.')[-1]}.json"


def differences(got: dict, want: dict, where: str = "", tolerance: float = TOLERANCE) -> list[str]:
    """The entries that differ by more than a share of the scale of their group."""
    if got.keys() != want.keys():
        return [f"{where}: {sorted(got)} instead of {sorted(want)}"]
    scale = max((abs(x) for x in want.values() if isinstance(x, float)), default=1.0)
    found = []
    for name in want:
        a, b = got[name], want[name]
        if isinstance(b, dict):
            found += differences(a, b, f"{where}/{name}", tolerance)
        elif abs(a - b) > (tolerance * scale if isinstance(b, float) else 0):
            found.append(f"{where}/{name}: {a!r} instead of {b!r}")
    return found


def test_twenty_updates_give_the_recorded_numbers(shipped_method):
    want = json.loads(path(shipped_method).read_text())
    tolerance = GROWING.get(path(shipped_method).stem, TOLERANCE)
    found = differences(trace(shipped_method), want, tolerance=tolerance)
    assert not found, (
        "results changed; if intended, run `PYTHONPATH=tests python tests/methods/test_golden.py`:\n"
        + "\n".join(found)
    )


def test_a_change_in_the_seventh_digit_of_a_hyper_parameter_is_noticed(shipped_method):
    rate = next(f.name for f in dataclasses.fields(shipped_method) if f.name.endswith("lr"))
    changed = dataclasses.replace(
        shipped_method, **{rate: getattr(shipped_method, rate) * (1 + 1e-6)}
    )
    tolerance = GROWING.get(path(shipped_method).stem, TOLERANCE)
    want = json.loads(path(shipped_method).read_text())
    assert differences(trace(changed), want, tolerance=tolerance)


@pytest.mark.parametrize("record", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_every_record_belongs_to_a_method(record):
    from support.shipped import shipped_methods

    assert record.stem in {c.__module__.rsplit(".")[-1] for c in shipped_methods()}


if __name__ == "__main__":
    from support.shipped import shipped_methods

    for method in [sized(c, (16, 16)) for c in shipped_methods()]:
        path(method).write_text(json.dumps(trace(method), indent=1) + "\n")
        print(path(method).name)
