"""Imagined sub-trajectories as transitions: recorded data in their place give the recorded transitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offbench.data.batch_extras import support
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, from_episodes
from offbench.data.views import NStep
from offbench.errors import UserError
from offbench.synthetic.rollouts import Rollouts, transitions


def some(n=2, r=3, t=6, *, seed=0, terminals=0.15):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(n, r, t, *shape, generator=g)
    return Rollouts(draw(2), draw(1).tanh(), draw(), torch.rand(n, r, t, generator=g) < terminals)


def as_episodes(rollouts, seed):
    """The rollouts of one seed as a dataset, written step by step."""
    episodes = []
    columns = (x[seed].numpy() for x in rollouts)
    for obs, action, reward, terminal in zip(*columns, strict=True):
        n = len(obs) - 1
        ended = np.flatnonzero(terminal[:n])
        n = ended[0] + 1 if len(ended) else n
        episodes.append(Episode(obs[: n + 1], action[:n], reward[:n], terminal[:n]))
    return from_episodes(episodes)


def pipeline(transforms=(), **view):
    g = np.random.default_rng(3)
    recorded = Episode(
        g.normal(2, 3, (30, 2)), g.uniform(-1, 1, (29, 1)), g.normal(size=29), np.zeros(29, bool)
    )
    return make_pipeline(from_episodes([recorded]), view=NStep(**view), transforms=transforms)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    t=st.integers(2, 7),
    n=st.integers(1, 4),
    pad=st.booleans(),
    share=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_transitions_are_those_of_the_same_episodes_recorded(seed, t, n, pad, share):
    rollouts = some(t=t, seed=seed, terminals=share)
    own = pipeline(("obs_norm",), n=n, gamma=0.9, pad=pad)
    for needs in ((), ("next_action",)):
        wanted = []
        for i in range(2):
            data = as_episodes(rollouts, i)
            try:
                there = own.on(data, needs)
            # no sub-trajectory is long enough
            except UserError:
                with pytest.raises(UserError):
                    transitions(rollouts, own, needs)
                return
            rows = torch.arange(len(data.last))
            rows = rows[support(there.data, there.view, there.extras)]
            wanted.append(there.batch(rows))
        found, count = transitions(rollouts, own, needs)
        for i, batch in enumerate(wanted):
            assert int(count[i]) == len(batch.reward)
            for name in ("obs", "action", "reward", "discount", "next_obs"):
                assert torch.allclose(
                    getattr(found, name)[i, : count[i]], getattr(batch, name), atol=1e-5
                ), name
            if needs:
                got = found.extras["next_action"][i, : count[i]]
                assert torch.equal(got, batch.extras["next_action"])


def test_a_terminal_ends_bootstraps_and_the_end_of_a_sub_trajectory_does_not():
    rollouts = some(n=1, r=1, t=5, terminals=0.0)
    terminal = torch.zeros(1, 1, 5, dtype=torch.bool)
    terminal[0, 0, 2] = True
    batch, count = transitions(rollouts._replace(terminal=terminal), pipeline(gamma=0.9))
    assert count.tolist() == [3] and batch.discount[0, :3].tolist() == pytest.approx([0.9, 0.9, 0])
    whole, count = transitions(rollouts, pipeline(gamma=0.9))
    assert count.tolist() == [4] and whole.discount[0].tolist() == pytest.approx([0.9] * 4)


def test_a_pool_has_room_for_every_transition():
    batch, count = transitions(some(terminals=0.9), pipeline())
    assert batch.reward.shape == (2, 15) and (count < 15).all()
    # what does not exist repeats the first, so that it is finite
    assert torch.equal(batch.obs[0, -1], batch.obs[0, 0])


def test_a_seed_whose_sub_trajectories_all_end_too_early_is_told():
    rollouts = some(n=2, terminals=0.0)
    rollouts.terminal[1, :, 0] = True
    with pytest.raises(UserError, match="every synthetic sub-trajectory of a seed ends before"):
        transitions(rollouts, pipeline(n=2, pad=False))


def test_rewards_are_transformed_as_recorded_ones():
    rollouts = some(terminals=0.0)
    plain, _ = transitions(rollouts, pipeline())
    scaled, _ = transitions(rollouts, pipeline({"reward_affine": {"scale": 3.0, "shift": -1.0}}))
    assert torch.allclose(scaled.reward, 3 * plain.reward - 1)
