"""A method of the user's own that cannot begin is refused in one line before anything is trained."""

import re
import sys

import pytest

from offbench.bench.memory import check_one
from offbench.bench.plan import plan
from offbench.bench.preflight import preflight
from offbench.bench.settings import Settings
from offbench.errors import UserError

pytestmark = pytest.mark.env

CODE = """
from dataclasses import dataclass

import torch

from offbench.methods.bc import BC


@dataclass(frozen=True, kw_only=True)
class Fine(BC):
    pass


class Narrow(Fine):
    def act(self, state, obs, key):
        return super().act(state, obs, key)[..., :2]


class Flat(Fine):
    def act(self, state, obs, key):
        return super().act(state, obs, key).sum(-1)


class Counts(Fine):
    def init(self, key, spec):
        return super().init(key, spec), 7

    def update(self, state, batch, key):
        inner, metrics = super().update(state[0], batch, key)
        return (inner, state[1] + 1), metrics


class Misspells(Fine):
    def update(self, state, batch, key):
        return super().update(state, batch.observations, key)


class Reads(Fine):
    def update(self, state, batch, key):
        state, metrics = super().update(state, batch, key)
        return state, {k: v.item() for k, v in metrics.items()}


class Draws(Fine):
    def update(self, state, batch, key):
        return super().update(state, batch._replace(action=torch.randn_like(batch.action)), key)


class Tells(Fine):
    def update(self, state, batch, key):
        return super().update(state, batch, key)[0], {"loss": 0.5}


class Grows(Fine):
    def update(self, state, batch, key):
        state, metrics = super().update(state, batch, key)
        return (state, metrics), metrics


class Pairs(Fine):
    def act(self, state, obs, key):
        return super().act(state, obs, key), None


class Numpy(Fine):
    def act(self, state, obs, key):
        return [0.0]


class Twins(Fine):
    def act(self, state, obs, key):
        return (super().act(state, obs, key),) * 2


class Discreet(Fine):
    actions = "discreet"


class Lists(Fine):
    def update(self, state, batch, key):
        state, _ = super().update(state, batch, key)
        return state, {"loss": batch.reward}
"""


def tried(name: str, *settings: str) -> None:
    task = "task=offbench/hopper/medium-replay-v0"
    own = (f"methods=[outsider.{name}]", task, "batch_size=32", "seeds=[0]", "method.hidden=[4]")
    preflight(plan([*own, *settings], bench=True).cells)


@pytest.fixture(autouse=True)
def outsider(tmp_path, monkeypatch):
    (tmp_path / "outsider.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("outsider", None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Narrow", "Narrow: act returned actions (E, 2) for E observations, and (E, 3) are needed"),
        ("Flat", "Flat: act returned actions (E,) for E observations"),
        ("Pairs", "Pairs: act returned something that is no tensor"),
        ("Numpy", "Numpy: act returned something that is no tensor"),
        ("Twins", "Twins: act returned something that is no tensor"),
        ("Counts", "Counts: init returned a state that holds [7]"),
        ("Misspells", "'Batch' object has no attribute 'observations' ("),
        ("Reads", "Reads: update read a tensor's value with .item()"),
        ("Draws", "Draws: update drew from torch's global generator"),
        ("Tells", "Tells: update returned something that is no tensor"),
        ("Grows", "Grows: update returned a state of another structure"),
        ("Lists", "metrics that are no scalars, of shapes {'loss': (32,)}"),
    ],
)
def test_what_would_fail_later_is_one_line_at_once(name, sentence):
    with pytest.raises(UserError) as refused:
        tried(name)
    assert sentence in str(refused.value)
    # a line of the user's file, or the command that says more
    assert re.search(r"\(\S*outsider\.py:\d+\)$|check method._target_=outsider", str(refused.value))


def test_a_kind_of_actions_that_is_misspelt_is_named():
    with pytest.raises(UserError, match="'discreet': did you mean 'discrete'"):
        tried("Discreet")


def test_one_that_no_memory_holds_is_not_tried():
    own = ["methods=[outsider.Fine]", "task=offbench/hopper/medium-replay-v0", "seeds=[0]"]
    (cell,) = plan([*own, "method.hidden=[800000,800000]"], bench=True).cells
    settings = Settings(device="cpu")
    with pytest.raises(UserError, match=r"one run takes .* use a smaller method\.hidden"):
        preflight([cell], fits=lambda one: check_one(one, settings))


@pytest.mark.parametrize(
    "settings",
    [(), ("view=chunk",), ("weight=dw",), ("synthetic=pgd",), ("transforms=[obs_norm]",)],
)
def test_one_that_works_is_not_refused_whatever_is_composed_with_it(settings):
    tried("Fine", *settings)
