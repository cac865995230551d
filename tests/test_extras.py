"""What methods ask of the data beside a transition, against loops over episodes."""

import pytest
import torch

from offbench import rng
from offbench.errors import UserError
from offbench.extras import discounted_to_go
from offbench.pipeline import make_pipeline
from offbench.testing import SPEC, fake_batch, fake_data
from offbench.views import Chunk, NStep

VIEWS = [NStep(1, 0.9), NStep(3, 0.9), Chunk(2, 0.9), Chunk(4, 0.9)]


@pytest.fixture
def data():
    """Terminals at ends of episodes, and some inside, as OGBench has them."""
    data = fake_data(dtype=torch.float64)
    inside = (torch.arange(len(data.last)) % 11 == 5) & data.valid
    return data._replace(terminal=data.terminal | inside)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_the_next_action_starts_where_the_span_ended(data, view):
    pipeline = make_pipeline(data, view=view, needs=["next_action"])
    starts, h = view.support(data), getattr(view, "h", 1)
    n = getattr(view, "n", h)
    kept = set(pipeline.sampler.rows.tolist())
    for row in range(len(data.last)):
        end, stopped = row, False
        while end < data.last[row] and end - row < n and not stopped:
            stopped = bool(data.terminal[end])
            end += 1
        possible = bool(starts[row]) and (stopped or bool(starts[end]))
        assert (row in kept) == possible
        if possible:
            batch = pipeline.batch(torch.tensor([row]))
            want = torch.zeros(h, 2) if stopped else data.action[end : end + h]
            assert torch.equal(batch.extras["next_action"][0], want.flatten().double())
            assert (batch.discount[0] == 0) == stopped


def test_the_return_to_go_is_the_discounted_sum_to_the_end_or_a_terminal(data):
    got = discounted_to_go(data, 0.9)
    for row in range(len(data.last)):
        want, power, here = 0.0, 1.0, row
        while here < data.last[row]:
            want += power * data.reward[here].item()
            power *= 0.9
            if data.terminal[here]:
                break
            here += 1
        assert got[row].item() == pytest.approx(want, abs=1e-12)
    batch = make_pipeline(data, view=NStep(1, 0.9), needs=["return_to_go"]).batch(
        torch.tensor([7, 3])
    )
    assert torch.equal(batch.extras["return_to_go"], got[[7, 3]])


def test_extras_see_transformed_rewards(data):
    options = {"reward_affine": {"scale": 2.0}}
    pipeline = make_pipeline(data, transforms=options, needs=["return_to_go"])
    assert torch.allclose(pipeline.extras[0].column, 2 * discounted_to_go(data, 0.99))


def test_two_minibatches_split_extras_too():
    batch = fake_batch(minibatches=2, needs=["next_action", "return_to_go"])
    assert batch.extras["next_action"].shape == (2, 16, SPEC.action_dim)
    assert batch.extras["return_to_go"].shape == (2, 16)


def test_a_pipeline_with_extras_moves_as_one(data):
    pipeline = make_pipeline(data, needs=["return_to_go"]).to("meta")
    assert pipeline.extras[0].column.device.type == "meta"


def test_an_unknown_extra_names_the_nearest(data):
    with pytest.raises(UserError, match="next_action"):
        make_pipeline(data, needs=["next_actions"])


def test_draws_without_extras_are_as_before(data):
    plain, more = make_pipeline(data), make_pipeline(data, needs=["return_to_go"])
    assert torch.equal(plain.sample(rng.key(0)).obs, more.sample(rng.key(0)).obs)
