"""A method refuses, where it is made, a value that its update would not notice."""

import re
from typing import Annotated

import annotated_types
import pytest
import torch
from support.shipped import shipped_methods

from offbench import ranges
from offbench.errors import UserError
from offbench.methods.acsac import ACSAC
from offbench.methods.cql import CQL
from offbench.methods.discrete_cql import DiscreteCQL
from offbench.methods.dt import DT
from offbench.methods.iql import IQL
from offbench.ranges import check_ranges
from offbench.training.reweighting import DensityWeights


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: IQL(expectile=2), "method.expectile=2 must be in (0, 1)"),
        (lambda: IQL(expectile=1.0), "method.expectile=1 must be in (0, 1)"),
        (lambda: IQL(lr=float("nan")), "method.lr=nan must be above 0"),
        (lambda: IQL(lr="fast"), "method.lr=fast must be above 0"),
        (lambda: IQL(polyak_rate=1.5), "method.polyak_rate=1.5 must be in (0, 1]"),
        (lambda: IQL(actor_decay_steps=-1), "method.actor_decay_steps=-1 must be at least 0"),
        (lambda: IQL(hidden=(64, 0)), "method.hidden=(64,0) must be widths of at least 1"),
        (lambda: CQL(critic_hidden=(0,)), "method.critic_hidden=(0,) must be widths of at least 1"),
        (lambda: DT(dropout=1.0), "method.dropout=1 must be in [0, 1)"),
        (lambda: DT(width=8, heads=3), "method.width=8 must be a multiple of method.heads=3"),
        (lambda: ACSAC(heads=0), "method.heads=0 must be at least 1"),
        (lambda: DiscreteCQL(copy_every=0), "method.copy_every=0 must be at least 1"),
        (
            lambda: DensityWeights(method=IQL(), temperature=0.0),
            "weight.temperature=0 must be above 0",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make()


def test_bounds_that_belong_to_the_range_and_open_settings_are_taken():
    IQL(polyak_rate=1.0, actor_dropout=0.0, expectile=0.001)
    CQL(critic_hidden=None, hidden=[64, 64])
    DiscreteCQL(copy_every=None)
    # a stack binds tensors, of which none is read
    IQL(expectile=torch.tensor(2.0))


@pytest.mark.parametrize("cls", shipped_methods(), ids=lambda c: c.__name__)
def test_every_method_holds_the_ranges_of_its_fields(cls):
    for name in ("lr", "actor_lr"):
        if name in cls.__dataclass_fields__:
            with pytest.raises(UserError, match=f"method.{name}=-1 must be above 0"):
                cls(**{name: -1.0})


@pytest.mark.parametrize("bounds", [ranges, annotated_types])
def test_a_class_from_elsewhere_can_hold_its_own(bounds):
    class Outside:
        share: Annotated[float, bounds.Ge(0), bounds.Le(1)] = 0.5
        gap: Annotated[float, bounds.Gt(0), bounds.Lt(2)] = 3.0

    with pytest.raises(UserError, match=re.escape("method.gap=3 must be in (0, 2)")):
        check_ranges(Outside())
