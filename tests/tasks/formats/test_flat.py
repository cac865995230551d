"""Flat arrays become the same set as their episodes, whatever is known of what follows an end."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offbench.data.replay import Episode, from_episodes, from_flat
from offbench.errors import UserError


def same(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b))


def rows(episodes):
    """(obs, action, reward, terminal, end, next_obs), one row a step."""
    obs = np.concatenate([e.obs[:-1] for e in episodes])
    after = np.concatenate([e.obs[1:] for e in episodes])
    end = np.concatenate([np.arange(len(e.action)) == len(e.action) - 1 for e in episodes])
    action, reward, terminal = (
        np.concatenate([getattr(e, f) for e in episodes]) for f in ("action", "reward", "terminal")
    )
    return obs, action, reward, terminal, end, after


def make(lengths, terminals, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for n, ended in zip(lengths, terminals):
        terminal = np.zeros(n, bool)
        terminal[-1] = ended
        made.append(
            Episode(
                rng.standard_normal((n + 1, 3)),
                rng.uniform(-1, 1, (n, 2)),
                rng.standard_normal(n),
                terminal,
            )
        )
    return made


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=8))
def test_rows_with_their_successors_are_the_same_set_as_their_episodes(shape):
    episodes = make(*zip(*shape))
    obs, action, reward, terminal, end, after = rows(episodes)
    whole = from_episodes(episodes)
    assert same(from_flat(obs, action, reward, terminal, end, next_obs=after), whole)
    assert same(from_flat(obs, action, reward, terminal, end, next_obs=after[end]), whole)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=8))
def test_without_successors_only_the_last_step_of_an_unfinished_episode_is_lost(shape):
    episodes, kept = make(*zip(*shape)), []
    for e in episodes:
        if e.terminal[-1]:
            kept.append(e._replace(obs=np.concatenate([e.obs[:-1], e.obs[-2:-1]])))
        elif len(e.action) > 1:
            kept.append(Episode(e.obs[:-1], e.action[:-1], e.reward[:-1], e.terminal[:-1]))
    obs, action, reward, terminal, end, _ = rows(episodes)
    if not kept:
        with pytest.raises(UserError, match="no transition"):
            from_flat(obs, action, reward, terminal, end)
    else:
        assert same(from_flat(obs, action, reward, terminal, end), from_episodes(kept))


def test_the_last_row_ends_an_episode_marked_or_not_and_bootstraps():
    obs, action, reward, terminal, end, after = rows(make([3, 4], [True, False]))
    end[-1] = False
    data = from_flat(obs, action, reward, terminal, end, next_obs=after)
    assert data.n_episodes == 2 and data.n_transitions == 7
    assert data.terminal.tolist() == [False, False, True] + [False] * 6


def test_nothing_given_is_written_to():
    given = rows(make([3, 4], [True, False]))
    given = [x.astype(np.float32) if x.dtype == np.float64 else x for x in given]
    before = [x.copy() for x in given]
    for after in (None, given[5]):
        from_flat(*given[:5], next_obs=after)
        assert all(np.array_equal(a, b) for a, b in zip(given, before))


GOOD = rows(make([3, 4], [True, False]))
COLUMNS = ("obs", "action", "reward", "terminal", "end", "next_obs")


def changed(**changes):
    return {k: changes.get(k, v.copy()) for k, v in zip(COLUMNS, GOOD)}


def nan(field, row):
    x = GOOD[COLUMNS.index(field)].copy()
    x[row] = np.nan
    return changed(**{field: x})


BAD = {
    "1-D observations": (changed(obs=np.zeros(7)), "must be 2-D"),
    "a column of rewards": (changed(reward=np.zeros((7, 1))), "rewards .* must be 1-D"),
    "lengths": (changed(action=np.zeros((6, 2))), "differ in length: 7 observations, 6 actions"),
    "no rows": ({k: v[:0] for k, v in changed().items()}, "no episodes"),
    "text": (changed(reward=np.array(["a"] * 7)), "reward holds <U1, not numbers"),
    "objects": (changed(obs=np.array([[None] * 3] * 7)), "obs holds object"),
    "complex": (changed(obs=GOOD[0] * 1j), "obs holds complex128"),
    "half a terminal": (changed(terminal=np.full(7, 0.5)), "terminal must be 0 or 1, found 0.5"),
    "nan": (nan("obs", 4), "episode 1: obs is not finite .* step 1"),
    "nan after": (nan("next_obs", 6), "episode 1: obs is not finite .* step 4"),
    "nan action": (nan("action", 2), "episode 0: action is not finite .* step 2"),
    "too large for float32": (changed(reward=np.full(7, 1e300)), "reward is not finite"),
    "action": (changed(action=GOOD[1] * 5), "outside \\[-1, 1\\]"),
    "terminal inside": (
        changed(terminal=np.eye(7, dtype=bool)[4], end=np.eye(7, dtype=bool)[2]),
        "episode 1: terminal at step 1, before its last step 3",
    ),
    "successors": (changed(next_obs=np.zeros((5, 3))), "next observations \\(5, 3\\)"),
    "no features": (
        changed(obs=np.zeros((7, 0)), next_obs=np.zeros((7, 0))),
        "obs has no features",
    ),
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_in_flat_arrays_is_one_line_that_names_it(mistake):
    arrays, words = BAD[mistake]
    with pytest.raises(UserError, match=f"^mine: .*{words}|^mine: {words}") as error:
        from_flat(**arrays, name="mine")
    assert "\n" not in str(error.value)


def test_a_million_rows_take_less_than_two_and_a_half_times_their_memory():
    import subprocess
    import sys

    code = """
import numpy as np, resource, torch
from offbench.data.replay import from_flat
torch.set_num_threads(1)
n = 1_000_000
obs, action = np.zeros((n, 17), np.float32), np.zeros((n, 6), np.float32)
obs[:], action[:] = 1, 0.5
end = np.arange(n) % 1000 == 999
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak() - obs.nbytes - action.nbytes
data = from_flat(obs, action, np.ones(n, np.float32), np.zeros(n, bool), end, next_obs=obs)
print((peak() - before) / sum(x.nbytes for x in data))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 2.5
