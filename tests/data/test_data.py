"""The one constructor of a dataset lays episodes out as drawn and refuses every malformed one in one line."""

import numpy as np
import pytest
import torch

from offbench.data.replay import Episode, episode_returns, first_rows, from_episodes
from offbench.errors import UserError


def episode(n: int = 3, terminal_at: int | None = None, start: float = 0.0) -> Episode:
    terminal = np.zeros(n, bool)
    if terminal_at is not None:
        terminal[terminal_at] = True
    obs = start + np.arange(n + 1.0)[:, None] * [1.0, 10.0]
    return Episode(obs, np.full((n, 1), 0.5), np.arange(1.0, n + 1), terminal)


def test_episodes_are_laid_out_as_drawn_in_the_module():
    data = from_episodes([episode(3, terminal_at=2), episode(2, start=100)])
    assert data.obs[:, 0].tolist() == [0, 1, 2, 3, 100, 101, 102]
    assert data.action[:, 0].tolist() == [0.5, 0.5, 0.5, 0, 0.5, 0.5, 0]
    assert data.reward.tolist() == [1, 2, 3, 0, 1, 2, 0]
    assert data.terminal.tolist() == [False, False, True, False, False, False, False]
    assert data.last.tolist() == [3, 3, 3, 3, 6, 6, 6]
    assert data.episode.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.valid.tolist() == [True, True, True, False, True, True, False]
    assert (data.n_episodes, data.n_transitions) == (2, 5)
    assert first_rows(data).tolist() == [0, 4]
    assert episode_returns(data).tolist() == [6, 3]
    types = [torch.float32] * 3 + [torch.bool] + [torch.int64] * 2
    assert [x.dtype for x in data] == types


def test_first_rows_and_returns_survive_episodes_of_one_step():
    data = from_episodes([episode(1), episode(1, terminal_at=0), episode(2), episode(1)])
    assert first_rows(data).tolist() == [0, 2, 4, 7]
    assert episode_returns(data).tolist() == [1, 1, 3, 1]
    assert data.valid.tolist() == [True, False] * 2 + [True, True, False] + [True, False]


def test_returns_are_summed_in_float64_and_ignore_padding():
    data = from_episodes([episode(2)])
    data = data._replace(reward=torch.tensor([1e8, 1.0, 77.0]))
    assert episode_returns(data).tolist() == [1e8 + 1]


def test_an_action_at_the_bound_may_be_off_by_rounding_and_is_clipped():
    data = from_episodes([episode(2)._replace(action=np.array([[1 + 1e-6], [-1 - 1e-6]]))])
    assert data.action[:2, 0].tolist() == [1, -1]


def test_terminals_inside_are_kept_when_permitted():
    data = from_episodes([episode(4, terminal_at=1)], terminal_inside=True)
    assert data.terminal.tolist() == [False, True, False, False, False]


def nan_in(field: str, row: int) -> Episode:
    e = episode(4)
    x = getattr(e, field).copy()
    x[row] = np.nan
    return e._replace(**{field: x})


BAD = {
    "no steps": (
        Episode(np.zeros((1, 2)), np.zeros((0, 1)), np.zeros(0), np.zeros(0, bool)),
        "has no steps",
    ),
    "nan in obs": (nan_in("obs", 4), "obs is not finite .* step 4"),
    "nan in action": (nan_in("action", 2), "action is not finite .* step 2"),
    "nan in reward": (nan_in("reward", 0), "reward is not finite .* step 0"),
    "infinite reward": (
        episode(2)._replace(reward=np.array([1.0, np.inf])),
        "reward is not finite .* step 1",
    ),
    "as many observations as actions": (
        episode(3)._replace(obs=np.zeros((3, 2))),
        "need 4 observations.* found 3",
    ),
    "too many observations": (
        episode(3)._replace(obs=np.zeros((5, 2))),
        "need 4 observations.* found 5",
    ),
    "a reward short": (episode(3)._replace(reward=np.zeros(2)), "3 rewards .* found 4, 2 and 3$"),
    "a terminal short": (
        episode(3)._replace(terminal=np.zeros(2, bool)),
        "3 terminals, found 4, 3 and 2$",
    ),
    "flat observations": (episode(3)._replace(obs=np.zeros(4)), "must be 2-D"),
    "flat actions": (episode(3)._replace(action=np.zeros(3)), "must be 2-D"),
    "a column of rewards": (episode(3)._replace(reward=np.zeros((3, 1))), "must be 1-D"),
    "a column of terminals": (episode(3)._replace(terminal=np.zeros((3, 1), bool)), "must be 1-D"),
    "action too large": (episode(2)._replace(action=np.array([[0.0], [1.5]])), "actions reach 1.5"),
    "action too small": (episode(2)._replace(action=np.array([[0.0], [-2.0]])), "actions reach 2,"),
    "terminal inside": (episode(4, terminal_at=1), "terminal at step 1, before its last step 3"),
    "other observations": (
        episode(2)._replace(obs=np.zeros((3, 5))),
        "obs has 5 features, earlier episodes 2",
    ),
    "other actions": (
        episode(2)._replace(action=np.zeros((2, 3))),
        "action has 3 features, earlier episodes 1",
    ),
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_malformed_episode_is_refused_in_one_line_that_names_it(mistake):
    bad, words = BAD[mistake]
    with pytest.raises(UserError, match=f"mine/hopper: episode 1.*{words}") as error:
        from_episodes([episode(3), bad], name="mine/hopper")
    assert "\n" not in str(error.value)


def test_no_episodes_are_refused():
    with pytest.raises(UserError, match="mine: no episodes"):
        from_episodes([], name="mine")
