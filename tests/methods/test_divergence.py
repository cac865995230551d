"""When the values of a run are said to have diverged, and that those of SAC-N do where EDAC's do not."""

import math

import pytest

from offbench.bench.recording import exploded, largest_return
from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk, NStep
from offbench.methods.sac_n import SACN
from offbench.tasks.loading import load_data
from offbench.tasks.locate import load_task
from offbench.testing.contract import fake_data
from offbench.training.loop import train


@pytest.mark.parametrize("view", [NStep(1, 0.9), NStep(5, 0.9), Chunk(3, 0.9)], ids=str)
def test_the_most_that_can_be_earned_is_that_of_the_rewards_learned_from(view):
    data = fake_data()
    largest = max(abs(x) for x in data.reward[data.valid].tolist())
    assert largest_return(make_pipeline(data, view=view)) == pytest.approx(largest / 0.1)
    scaled = make_pipeline(data, view=view, transforms={"reward_affine": {"scale": -3.0}})
    assert largest_return(scaled) == pytest.approx(3 * largest / 0.1)
    # no return's magnitude in any view is larger
    batch = make_pipeline(data, view=view).batch(view.support(data).nonzero().squeeze(1))
    assert (batch.reward.abs() + batch.discount * largest / 0.1).max() <= largest / 0.1 * (1 + 1e-5)


def test_without_a_discount_nothing_is_too_much():
    pipeline = make_pipeline(fake_data(), view=NStep(1, 1.0))
    assert largest_return(pipeline) == math.inf and exploded({"q": 1e30}, math.inf) is None


def test_where_nothing_can_be_earned_there_is_no_scale_to_judge_by():
    assert exploded({"q": 1e-3}, 0.0) is None


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"q": 999.0}, False),
        ({"q": 1001.0}, True),
        ({"q": -1001.0}, True),
        ({"v": 1001.0}, True),
        ({"q": 1.0, "v": 1001.0}, False),
        ({"actor_loss": 1e9}, False),
        ({}, False),
    ],
)
def test_values_ten_times_beyond_it_have_diverged(metrics, told):
    remark = exploded(metrics, 100.0)
    assert (remark is not None) == told
    if told:
        assert "mean" in remark and "1.0e+03" in remark and "1.0e+02" in remark


@pytest.mark.slow
@pytest.mark.parametrize("diversity_weight", [None, 5.0])
def test_critics_that_agree_diverge_and_as_many_diverse_ones_do_not(diversity_weight):
    """An et al. (2021), sections 3 and 4. High rates, so that 500 updates do what takes many thousands."""
    data, spec = load_data(load_task("offbench/hopper/medium-replay-v0"))
    pipeline = make_pipeline(data, batch_size=64)
    fast = {"hidden": (32, 32), "actor_lr": 3e-3, "critic_lr": 3e-3, "polyak_rate": 0.2}
    method = SACN(**fast, n_critics=5, diversity_weight=diversity_weight)
    (point,) = train(method, pipeline, spec, seeds=[0], n_updates=500, backend="eager")
    remark = exploded({k: v.item() for k, v in point.metrics.items()}, largest_return(pipeline))
    assert (remark is not None) == (diversity_weight is None)
    if diversity_weight:
        assert point.metrics["q"].abs().item() < largest_return(pipeline) / 2
