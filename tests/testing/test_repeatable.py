"""No update of any method has an operation whose bits differ from run to run on a GPU."""

import dataclasses

import pytest
import torch
from support.shipped import shipped_methods
from torch.func import grad, vmap

from offbench import rng
from offbench.data.goals import Goal
from offbench.data.pipeline import make_pipeline
from offbench.data.sampling import advantage_weights, return_weights
from offbench.data.views import Chunk, NStep, Window
from offbench.errors import UserError
from offbench.methods.bc import BC
from offbench.testing import checks_update
from offbench.testing.contract import SPEC, fake_data, sized, small, view_for
from offbench.testing.repeatable import unrepeatable
from offbench.training.reweighting import DensityWeights, resample
from offbench.training.step import initial_carry, make_step

VIEWS = (NStep(3), Chunk(4), Chunk(4, pad=True))


def spec_of(method):
    discrete = getattr(method, "actions", "continuous") == "discrete"
    return SPEC._replace(discrete=True, action_dim=3) if discrete else SPEC


def found_in(method, **options) -> list[str]:
    """What draws, gathers and updates of two stacked seeds have that may not repeat."""
    spec, needs = spec_of(method), getattr(method, "needs", ())
    options = {"view": view_for(needs, spec)} | options
    pipeline = make_pipeline(fake_data(spec), batch_size=8, needs=needs, **options)
    step = make_step(method, pipeline)
    carry = initial_carry(method, pipeline.spec(spec), [0, 1])

    def advance(state, key):
        draw = step.draw(rng.fold(key, 0))
        return step.update(state, step.input(draw))

    return unrepeatable(vmap(advance), carry.state, carry.key)


@pytest.mark.parametrize("cls", shipped_methods(), ids=lambda c: c.__name__)
def test_no_update_adds_in_an_order_left_to_chance(cls):
    assert not found_in(small(sized(cls, (8,))), weights=[return_weights])


@pytest.mark.slow
@pytest.mark.parametrize("cls", shipped_methods(), ids=lambda c: c.__name__)
def test_none_does_in_any_view_with_learned_weights(cls):
    in_all_views(small(sized(cls, (8,))))


def test_the_simplest_method_does_not_in_any_view_with_learned_weights():
    in_all_views(BC(hidden=(8,)))


def in_all_views(method):
    composed = 0
    needs = getattr(method, "needs", ())
    own = view_for(needs)
    views = (Window(4),) if "context" in needs else (own,) if isinstance(own, Goal) else VIEWS
    for view in views:
        for wrapped in (method, DensityWeights(method=method, hidden=(8,))):
            try:
                assert not found_in(wrapped, view=view, weights=[advantage_weights])
            # a view that the method does not learn from, or without an extra that it needs
            except UserError:
                continue
            composed += 1
    assert composed >= 2


# --- faults that are found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gathering(BC):
    """Counts the coordinates that are large, by adding into a table."""

    form: str = "scatter_add"

    def update(self, state, batch, key):
        new, metrics = super().update(state, batch, key)
        place = (batch.reward > 0).long()
        table, ones = torch.zeros(2, 1), torch.ones(len(place), 1)
        forms = {
            "scatter_add": lambda: table[:, 0].scatter_add(0, place, ones[:, 0]),
            "index_add": lambda: table.index_add(0, place, ones),
            "index_put": lambda: table.index_put((place,), ones, accumulate=True),
            "cumsum": lambda: batch.reward.cumsum(0),
            "embedding": lambda: grad(lambda t: torch.nn.functional.embedding(place, t).sum())(
                table
            ),
            "index": lambda: grad(lambda t: t[place].square().sum())(table),
            "gather": lambda: grad(lambda t: t.gather(0, place[:, None]).square().sum())(table),
        }
        return new, metrics | {"table": forms[self.form]().mean()}


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ("scatter_add", "scatter_add"),
        ("index_add", "index_add"),
        ("index_put", "index_put"),
        ("cumsum", "cumsum"),
        ("embedding", "embedding_dense_backward"),
        ("index", "index_put"),
        ("gather", "scatter_add"),
    ],
)
def test_a_planted_sum_without_order_is_named(form, named):
    assert found_in(Gathering(form=form, hidden=(8,))) == [named]


def test_sums_of_whole_numbers_and_products_are_no_fault():
    x, i = torch.ones(5, 5), torch.arange(5)
    assert not unrepeatable(lambda: (i.cumsum(0), (x > 0).cumsum(0), x @ x, x.sum(0), x[i]))


def test_the_contract_tells_the_author_of_a_method():
    note = checks_update.check_resume(Gathering(hidden=(8,), form="index_add"))
    assert note and "index_add" in note and "GPU" in note
    assert checks_update.check_resume(BC(hidden=(8,))) is None


# --- the forms that repeat have the values of those that do not


def test_resampling_has_the_rows_of_running_sums():
    for seed in range(20):
        weight = rng.normal(rng.key(seed), (256,)).softmax(-1)
        edges = weight.cumsum(-1)
        at = (torch.arange(256) + rng.uniform(rng.key(seed), ())) / 256
        want = (edges[:-1] / edges[-1] <= at[:, None]).sum(-1)
        assert torch.equal(resample(rng.key(seed), weight), want)


def test_returns_of_every_length_have_the_bits_of_running_sums():
    data, view = fake_data(), Chunk(25, pad=True)
    rows = view.support(data).nonzero().squeeze(-1)
    paid = view.prefixes(data, rows)[0]
    steps = torch.minimum(rows[:, None] + torch.arange(25), data.last[rows][:, None])
    # zero beyond the episode, where the differences are
    one = torch.cat([paid[:, :1], paid.diff(dim=1)], 1) != 0
    powers = 0.99 ** torch.arange(25, dtype=torch.float32)
    want = (data.reward[steps] * powers * one).cumsum(1)
    assert torch.equal(paid, want) and one.any()
