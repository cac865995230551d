"""The task of tests/learned_chunk_bias.py is what it says: V is known, and all lengths are equal."""

import learned_chunk_bias as study
import numpy as np
import pytest

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk


@pytest.mark.parametrize("prize", [False, True])
def test_backups_of_the_true_values_give_the_true_values_for_every_length(prize):
    view = Chunk(study.H, study.GAMMA, pad=True)
    needs = study.METHOD.needs
    pipeline = make_pipeline(study.line(5, prize), view=view, batch_size=256, needs=needs)
    batch = pipeline.sample(rng.key(0))
    true = lambda obs: study.SCALE * study.value_of(study.STEPS * (1 - obs[..., 0]), prize)
    extras = batch.extras
    target = extras["prefix_reward"] + extras["prefix_discount"] * true(extras["prefix_obs"])
    error = (target - true(batch.obs)[:, None]) * extras["valid"]
    assert error.abs().max() < 1e-4 and extras["valid"].mean() > 0.8


@pytest.mark.slow
def test_it_trains_and_says_what_lengths_are_chosen():
    rows = study.learned(study.METHOD, True, 30, [0, 1])
    assert [row["update"] for row in rows] == [1, 1, 3, 3, 10, 10, 30, 30]
    for row in rows:
        assert abs(sum(row[f"share_{k}"] for k in range(1, study.H + 1)) - 1) < 1e-6
        assert all(np.isfinite(x) for x in row.values() if not isinstance(x, str))
    # values begin near 0, which is 74 steps too low
    assert -90 < rows[0]["start_bias"] < -50
