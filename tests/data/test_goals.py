"""The goal view, against the authors' samplers written as plain loops over one element at a time."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.func import vmap

from offbench import rng
from offbench.data.goals import GOAL_EXTRAS, Draw, Goal
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, ReplayData, from_episodes
from offbench.data.sampling import return_weights, top_fraction
from offbench.data.transforms import REWARDS
from offbench.data.views import NStep
from offbench.errors import UserError
from offbench.types import Policy, Spec, TimeStep

fast = settings(max_examples=40, deadline=None, derandomize=True)
ALL = tuple(GOAL_EXTRAS)


def make(lengths: list[int], inside: int = 0) -> ReplayData:
    """Episodes of these lengths; an observation is the number of its row and its square.

    A terminal ends every second episode and lies `inside` the others: none of them may matter.
    """
    episodes, row = [], 0
    for i, n in enumerate(lengths):
        at = row + np.arange(n + 1.0)
        terminal = np.zeros(n, bool)
        terminal[-1 if i % 2 else inside % n] = True
        obs = np.stack([at, at**2], 1)
        episodes.append(Episode(obs, at[:n, None] / 1024, np.ones(n), terminal))
        row += n + 1
    return from_episodes(episodes, terminal_inside=True)


ragged = st.builds(
    make,
    st.lists(st.integers(1, 7), min_size=1, max_size=6).filter(lambda x: max(x) > 1),
    st.integers(0, 5),
)
shares = st.sampled_from(
    [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.2, 0.5, 0.3), (0.0, 0.5, 0.5), (0.3, 0.7, 0.0)]
)  # fmt: skip
views = st.builds(
    Goal,
    gamma=st.floats(0.05, 0.99),
    value_goals=shares,
    geometric=st.booleans(),
    actor_goals=shares,
    actor_geometric=st.booleans(),
    negative=st.booleans(),
    subgoal_steps=st.integers(1, 9),
    option_steps=st.integers(1, 9),
    low_goals=shares,
    low_geometric=st.booleans(),
    low_gamma=st.none() | st.floats(0, 0.99),
)


# --- a plain loop over elements


class Chance(NamedTuple):
    """What decides the goal of one element: numbers in (0, 1), and a row of any episode."""

    offset: float
    later: float
    current: float
    anywhere: int


def chances(key, n: int, anywhere) -> list[Chance]:
    k = rng.split(key, 4)
    numbers = [rng.uniform(k[i], (n,), torch.float64).tolist() for i in range(3)]
    return [Chance(*x) for x in zip(*numbers, anywhere(k[3], n).tolist(), strict=True)]


def final(data: ReplayData, row: int) -> int:
    """The last row of the episode that a transition starts from."""
    valid = data.valid.tolist()
    while valid[row + 1]:
        row += 1
    return row


def choose(data, row: int, c: Chance, shares, geometric: bool, gamma: float):
    """(goal, which kind, the later row): OGBench's `sample_goals` for one element."""
    current, later, _ = shares
    end = final(data, row)
    if geometric:
        offset = 1
        while c.offset <= gamma**offset:
            offset += 1
        ahead = min(row + offset, end)
    else:
        ahead = round(min(row + 1, end) * c.offset + end * (1 - c.offset))
    in_episode = current < 1 and c.later < later / (1 - current)
    if c.current < current:
        return row, "current", ahead, in_episode
    return (ahead, "later", ahead, True) if in_episode else (c.anywhere, "random", ahead, False)


def target(data, row: int, steps: int, kind: str, ahead: int) -> int:
    """The row `steps` later, not beyond a later goal nor the end."""
    if kind == "current":
        return row
    return min(row + steps, ahead if kind == "later" else final(data, row))


def option(data, row: int, steps: int, chosen) -> tuple[int, int]:
    """(goal, end of the option): OTA's `sample_high_goals` for one element."""
    goal, kind, ahead, in_episode = chosen
    end = min(row + steps, ahead if in_episode else final(data, row))
    return end if kind == "current" else goal, end


def looped(view: Goal, data: ReplayData, start: list[int], key, anywhere) -> dict[str, list[int]]:
    k = rng.split(key, 4)
    kinds = (
        (view.value_goals, view.geometric),
        (view.actor_goals, view.actor_geometric),
        (view.value_goals, view.geometric),
        (view.low_goals, view.low_geometric),
    )
    value, actor, high, low = (
        [
            choose(data, row, c, *kind, view.gamma)
            for row, c in zip(start, chances(k[i], len(start), anywhere), strict=True)
        ]
        for i, kind in enumerate(kinds)
    )
    options = [option(data, r, view.option_steps, x) for r, x in zip(start, high, strict=True)]
    return {
        "start": start,
        "goal": [x[0] for x in value],
        "actor_goal": [x[0] for x in actor],
        "target": [
            target(data, r, view.subgoal_steps, x[1], x[2])
            for r, x in zip(start, actor, strict=True)
        ],
        "option_goal": [x[0] for x in options],
        "option_end": [x[1] for x in options],
        "low_goal": [x[0] for x in low],
    }


@given(data=ragged, view=views, seed=st.integers(0, 99))
@fast
def test_goals_targets_and_options_are_those_of_a_loop(data, view, seed):
    fitted = view.over(data, ALL)
    start = data.valid.nonzero().squeeze(1).repeat(3)
    rows = fitted.draw(data, start, rng.key(seed))
    want = looped(view, data, start.tolist(), rng.key(seed), fitted.anywhere)
    assert {name: x.tolist() for name, x in rows.items()} == want
    # the rows that are legal, whatever the loop says
    for name, x in rows.items():
        assert data.valid[x].all(), name
    for name in ("target", "option_end"):
        assert (rows[name] >= start).all() and (
            data.episode[rows[name]] == data.episode[start]
        ).all()
    assert ((rows["option_end"] > start) | (start == data.last[start] - 1)).all()


@given(data=ragged, view=views, seed=st.integers(0, 99))
@fast
def test_batches_are_gathered_and_paid_as_a_loop_does(data, view, seed):
    """By row numbers alone: neither recorded rewards nor terminals are read."""
    fitted = view.over(data, ALL)
    start = data.valid.nonzero().squeeze(1)
    rows = fitted.draw(data, start, rng.key(seed))
    batch = fitted.batch(data, rows)
    number = lambda obs: obs[:, 0].long().tolist()
    halves = lambda x: (number(x[:, :2]), number(x[:, 2:]))
    r = {name: x.tolist() for name, x in rows.items()}
    s, n = r["start"], len(start)

    def check(reward, discount, at, goal, gamma):
        for j in range(n):
            reached = at[j] == goal[j]
            assert reward[j].item() == (reached - 1 if view.negative else reached)
            assert discount[j].item() == pytest.approx(0 if reached else gamma, rel=1e-6)

    following = [row + 1 for row in s]
    assert halves(batch.obs) == (s, r["goal"]) and halves(batch.next_obs) == (following, r["goal"])
    assert (batch.action[:, 0] * 1024).long().tolist() == s
    check(batch.reward, batch.discount, s, r["goal"], view.gamma)
    x = batch.extras
    assert halves(x["actor_obs"]) == (s, r["actor_goal"])
    assert halves(x["actor_next_obs"]) == (following, r["actor_goal"])
    ahead = [min(row + view.subgoal_steps, final(data, row)) for row in s]
    assert halves(x["low_actor_obs"]) == (s, ahead)
    assert halves(x["low_actor_next_obs"]) == (following, ahead)
    assert halves(x["target_obs"]) == (s, r["target"])
    assert halves(x["reached_obs"]) == (r["target"], r["actor_goal"])
    assert halves(x["option_obs"]) == (s, r["option_goal"])
    assert halves(x["option_next_obs"]) == (r["option_end"], r["option_goal"])
    check(x["option_reward"], x["option_discount"], r["option_end"], r["option_goal"], view.gamma)
    assert halves(x["low_obs"]) == (s, r["low_goal"])
    assert halves(x["low_next_obs"]) == (following, r["low_goal"])
    low_gamma = 1 - 1 / view.subgoal_steps if view.low_gamma is None else view.low_gamma
    check(x["low_reward"], x["low_discount"], s, r["low_goal"], low_gamma)
    assert len(x) == 14


# --- frequencies


def exact(data: ReplayData, row: int, shares, geometric: bool, gamma: float) -> np.ndarray:
    """(S,) the probability of each row as the goal of `row` in OGBench's `sample_goals`."""
    p, end = np.zeros(len(data.last)), final(data, row)
    n = end - row
    later = np.zeros_like(p)
    if n == 0:
        later[row] = 1
    elif geometric:
        # n' steps with (1 - gamma) gamma ** (n' - 1); all beyond the end are the end
        for k in range(1, n):
            later[row + k] = (1 - gamma) * gamma ** (k - 1)
        later[end] = gamma ** (n - 1)
    elif n == 1:
        later[end] = 1
    else:
        # a uniform point of [row + 1, end], rounded: half the weight at either end
        later[row + 1 : end + 1] = 1 / (n - 1)
        later[row + 1] /= 2
        later[end] /= 2
    current, share, random = shares
    p[data.valid.numpy()] += random / data.n_transitions
    p[row] += current
    return p + share * later


@pytest.mark.parametrize("geometric", [True, False], ids=["geometric", "uniform"])
@pytest.mark.parametrize(
    "shares", [(0.2, 0.5, 0.3), (0.0, 1.0, 0.0), (0.0, 0.5, 0.5), (0.0, 0.0, 1.0)], ids=str
)
def test_frequencies_are_those_of_the_authors_samplers(shares, geometric):
    """Chi-square of 20,000 draws for each row; one of 8 x 15 is below 1e-5 once in 800 keys."""
    data, gamma, n = make([1, 2, 9, 3]), 0.8, 20_000
    fitted = Goal(gamma).fit(data)
    starts = data.valid.nonzero().squeeze(1)
    draw = Draw(fitted, data, starts.repeat_interleave(n))
    goal, _ = draw.goals(rng.key(5), shares, geometric)
    for row, mine in zip(starts.tolist(), goal.view(-1, n)):
        p = exact(data, row, shares, geometric, gamma)
        assert p.sum() == pytest.approx(1)
        counts = np.bincount(mine.numpy(), minlength=len(p))
        assert not counts[p == 0].any()
        if (p > 0).sum() > 1:
            assert stats.chisquare(counts[p > 0], n * p[p > 0]).pvalue > 1e-5, row


def test_kinds_of_goals_are_independent_of_one_another():
    """The value's and the policy's, the ones of neighbouring elements, and of their start rows."""
    data, n = make([40]), 40_000
    view = Goal(actor_goals=(0.0, 0.0, 1.0), value_goals=(0.0, 0.0, 1.0), low_goals=(0.0, 0.0, 1.0))
    pipeline = make_pipeline(data, view=view, needs=ALL)
    rows = pipeline.draw(rng.key(3), n)
    names = ("start", "goal", "actor_goal", "option_goal", "low_goal")
    columns = {name: rows[name].double() for name in names}
    columns["goal of the element before"] = columns["goal"].roll(1)
    for a, b in itertools.combinations(columns, 2):
        r = np.corrcoef(columns[a], columns[b])[0, 1]
        assert abs(r) < 5 / math.sqrt(n), (a, b, r)


# --- keys


def test_what_a_method_asks_for_changes_nothing_for_another():
    data = make([9, 5])
    everything = make_pipeline(data, view=Goal(subgoal_steps=3), needs=ALL).draw(rng.key(1), 64)
    for k in range(len(ALL)):
        for needs in itertools.combinations(ALL, k):
            rows = make_pipeline(data, view=Goal(subgoal_steps=3), needs=needs).draw(rng.key(1), 64)
            assert all(torch.equal(x, everything[name]) for name, x in rows.items()), needs
            assert ("low_goal" in rows) == ("low_goals" in needs)
    # and start rows are those of a view without goals
    plain = make_pipeline(data, view=NStep(1)).draw(rng.key(1), 64)
    assert torch.equal(everything["start"], plain)


def test_a_seed_draws_the_same_goals_whatever_is_stacked_beside_it():
    pipeline = make_pipeline(make([9, 5]), view=Goal(subgoal_steps=3), needs=ALL)
    keys = torch.stack([rng.key(i) for i in range(5)])
    together = vmap(lambda key: pipeline.draw(key, 32))(keys)
    for i, key in enumerate(keys):
        for name, x in pipeline.draw(key, 32).items():
            assert torch.equal(together[name][i], x), name
    assert not torch.equal(together["goal"][0], together["goal"][1])


# --- composed


def test_a_policy_sees_state_and_goal_normalised_as_in_the_data():
    data = make([9, 5])
    pipeline = make_pipeline(data, view=Goal(), transforms=["obs_norm"], batch_size=64)
    plain = make_pipeline(data, view=Goal(), batch_size=64)
    batch, raw = pipeline.sample(rng.key(0)), plain.sample(rng.key(0))
    assert torch.equal(batch.reward, raw.reward) and not torch.equal(batch.obs, raw.obs)
    seen = []
    act = lambda state, step, memory, key: (seen.append(step.obs), memory)
    policy = pipeline.policy(Policy(lambda n, e: (), act))
    step = TimeStep(raw.obs[None], torch.zeros(1, 64), torch.zeros(1, 64, dtype=torch.bool))
    policy.act(None, step, (), rng.key(0))
    assert torch.equal(seen[0][0], batch.obs)
    state, goal = batch.obs[:, :2], batch.obs[:, 2:]
    mean, std = data.obs[data.valid].mean(0), data.obs[data.valid].std(0, correction=0)
    for x, y in ((state, raw.obs[:, :2]), (goal, raw.obs[:, 2:])):
        assert torch.allclose(x, (y - mean) / std, rtol=1e-2, atol=1e-2)


def test_samplers_choose_where_elements_start_and_goals_still_come_from_everywhere():
    data = make([6, 6, 6, 6])
    reward = torch.where(data.valid, data.episode.float(), 0.0)  # the last episode is the best
    data = data._replace(reward=reward)
    best = lambda d: top_fraction(d, fraction=0.25)
    shares = (0.0, 0.5, 0.5)
    pipeline = make_pipeline(data, view=Goal(value_goals=shares), weights=[best])
    rows = pipeline.draw(rng.key(0), 4000)
    assert set(data.episode[rows["start"]].tolist()) == {3}
    assert set(data.episode[rows["goal"]].tolist()) == {0, 1, 2, 3}
    weighted = make_pipeline(data, view=Goal(value_goals=shares), weights=[return_weights])
    rows = weighted.draw(rng.key(0), 4000)
    starts = torch.bincount(data.episode[rows["start"]], minlength=4)
    assert starts[3] > 10 * starts[1] and (data.episode[rows["goal"]] == 0).any()


def test_terminals_inside_an_episode_are_not_read():
    lengths = [7, 4]
    one, other = (make(lengths, inside) for inside in (2, 4))
    assert not torch.equal(one.terminal, other.terminal)
    needs = ("next_action", *ALL)
    a, b = (
        make_pipeline(d, view=Goal(subgoal_steps=3), needs=needs, batch_size=256).sample(rng.key(2))
        for d in (one, other)
    )
    for name, x in a.extras.items():
        assert torch.equal(x, b.extras[name]), name
    assert torch.equal(a.discount, b.discount) and torch.equal(a.reward, b.reward)
    # the action that follows is recorded, except after the last: no element starts there
    assert torch.equal(a.extras["next_action"], a.action + 1 / 1024)
    assert set(a.obs[:, 0].long().tolist()) == {0, 1, 2, 3, 4, 5, 8, 9, 10}


def test_other_data_may_have_shorter_episodes_and_only_its_own_goals():
    """Held-out episodes go through the view that was fitted to the others."""
    pipeline = make_pipeline(make([30, 30]), view=Goal(subgoal_steps=25), needs=("subgoals",))
    held_out = pipeline.on(make([3, 1]), ("subgoals",))
    rows = held_out.draw(rng.key(0), 200)
    assert rows["goal"].max() < 5 and not held_out.data.terminal.any()
    assert set(held_out.batch(rows).extras) == set(pipeline.sample(rng.key(0)).extras)
    assert pipeline.uniform(("subgoals",)).view.asked == ("subgoals",)


@pytest.mark.parametrize("negative, gamma", [(True, 0.9), (False, 0.8)])
def test_a_return_of_an_episode_is_what_the_value_of_its_start_means(negative, gamma):
    """The environment pays 1 on arrival; the value is that of one element after another, back from the goal."""
    data = make([6])
    fitted = Goal(gamma, negative=negative).fit(data)
    goal = torch.tensor([4])
    value, steps = 0.0, 4
    for row in range(4, -1, -1):
        batch = fitted.batch(data, {"start": torch.tensor([row]), "goal": goal})
        value = batch.reward.item() + batch.discount.item() * value
    policy = fitted.policy(Policy(lambda n, e: (), lambda *x: x))
    paid = [policy.reward(float(t == steps - 1)) for t in range(steps)]
    assert sum(gamma**t * r for t, r in enumerate(paid)) == pytest.approx(value, rel=1e-6)


def test_the_spec_has_the_goal_behind_the_observation():
    spec = Spec(4, 3, 0.9, 50)
    assert Goal().spec(spec) == Spec(8, 3, 0.9, 50, goal_dim=4)
    assert make_pipeline(make([4]), view=Goal()).spec(spec) == Goal().spec(spec)


# --- refused


@pytest.mark.parametrize(
    "view, words",
    [
        (Goal(value_goals=(0.5, 0.4, 0.2)), r"view.value_goals=\[0.5, 0.4, 0.2\] must be three"),
        (Goal(actor_goals=(0.5, 0.5)), "view.actor_goals"),
        (Goal(low_goals=(-0.5, 1.0, 0.5)), "view.low_goals"),
        (Goal(1.0), "gamma=1.0: geometric goals need a discount above 0 and below 1"),
        (Goal(0.0), "gamma=0.0"),
        (Goal(low_gamma=1.0, subgoal_steps=3), "view.low_gamma must be in"),
        (Goal(subgoal_steps=0), "view.subgoal_steps must be at least 1, got 0"),
        (Goal(subgoal_steps=8), "view.subgoal_steps=8 is longer than every episode .*7 steps"),
        (Goal(subgoal_steps=7, option_steps=8), "view.option_steps=8 is longer than every"),
    ],
    ids=str,
)
def test_a_view_that_makes_no_sense_is_refused(view, words):
    with pytest.raises(UserError, match=words) as error:
        make_pipeline(make([7, 2]), view=view, needs=ALL)
    assert "\n" not in str(error.value)


def test_a_method_that_learns_from_later_states_is_given_no_others():
    needs = ("actor_goals", "later_goals")
    words = r"view.value_goals=\[0.2, 0.5, 0.3\] must be \[0, 1, 0\]"
    with pytest.raises(UserError, match=words):
        make_pipeline(make([7]), view=Goal(), needs=needs)
    assert make_pipeline(make([7]), view=Goal().for_needs(needs), needs=needs)


def test_settings_that_a_method_does_not_ask_for_are_not_held_against_it():
    make_pipeline(make([7, 2]), view=Goal(subgoal_steps=25), needs=("actor_goals",))
    make_pipeline(make([7, 2]), view=Goal(1.0, geometric=False))
    with pytest.raises(UserError, match=r"gamma=1\.0: geometric goals"):
        make_pipeline(make([30]), view=Goal(1.0, geometric=False), needs=["low_goals"])


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_a_transform_of_recorded_rewards_is_refused(name):
    with pytest.raises(UserError, match=f"transforms.{name} changes recorded rewards"):
        make_pipeline(make([7]), view=Goal(), transforms=[name])


@pytest.mark.parametrize("name", ["return_to_go", "sparse_return_to_go"])
def test_returns_of_recorded_rewards_are_refused(name):
    with pytest.raises(UserError, match=f"{name} is of recorded rewards"):
        make_pipeline(make([7]), view=Goal(), needs=[name])


def test_windows_are_not_asked_for_in_place_of_goals():
    with pytest.raises(UserError, match="windows of steps, which view=goal does not give"):
        make_pipeline(make([7]), view=Goal(), needs=["context"])


def test_data_without_episodes_and_views_without_goals_are_refused():
    with pytest.raises(UserError, match="view=goal needs trajectories"):
        make_pipeline(make([1, 1, 1]), view=Goal())
    for extra in ALL:
        with pytest.raises(UserError, match="use view=goal, and a task with goals"):
            make_pipeline(make([7]), view=NStep(1), needs=[extra])
