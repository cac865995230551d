"""What a batch element spans, against an obvious loop over every row of adversarial episodes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offbench.data import views
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, ReplayData, from_episodes
from offbench.data.views import Chunk, NStep, Window
from offbench.errors import UserError
from offbench.types import Plan, Policy, Spec, TimeStep

GAMMA = 0.5  # powers of it are exact, so sums of small integers are too
fast = settings(max_examples=60, deadline=None, derandomize=True)


def make(kinds: list[tuple[int, str, int]]) -> ReplayData:
    """Episodes of (steps, how it ends, where a terminal lies inside); every number in them is different."""
    episodes, count = [], 0
    for n, end, inside in kinds:
        terminal = np.zeros(n, bool)
        terminal[-1] = end == "terminal"
        if end == "inside":
            terminal[inside % n] = True
        obs = count + np.arange(n + 1.0)[:, None]
        action = np.stack([(count + np.arange(n)) / 1024, -(count + np.arange(n)) / 1024], 1)
        episodes.append(Episode(obs, action, count + np.arange(n) + 1.0, terminal))
        count += n + 1
    return from_episodes(episodes, terminal_inside=True)


ragged = st.lists(
    st.tuples(
        st.integers(1, 6), st.sampled_from(["timeout", "terminal", "inside"]), st.integers(0, 5)
    ),
    min_size=1,
    max_size=8,
).map(make)

# length 1 both ways, a terminal inside, one inside at the first step, and a last row of each kind
HAND = [
    [(1, "timeout", 0)],
    [(1, "terminal", 0)],
    [(4, "inside", 1), (1, "timeout", 0), (3, "terminal", 0)],
    [(3, "inside", 0), (2, "timeout", 0), (1, "terminal", 0), (5, "timeout", 0)],
]


def loop(data: ReplayData, row: int, n: int) -> tuple[float, float, int]:
    """reward, discount and end of the span of up to n steps from `row`, step by step."""
    reward, discount, at = 0.0, 1.0, row
    for _ in range(n):
        if at == int(data.last[row]):
            break
        reward += discount * float(data.reward[at])
        discount *= GAMMA
        at += 1
        if bool(data.terminal[at - 1]):
            return reward, 0.0, at
    return reward, discount, at


def check_spans(data: ReplayData, view, n: int) -> None:
    support = view.support(data)
    rows = support.nonzero().squeeze(1)
    if not len(rows):
        return
    batch = view.batch(data, rows)
    for j, row in enumerate(rows.tolist()):
        reward, discount, end = loop(data, row, n)
        assert (batch.reward[j].item(), batch.discount[j].item()) == (reward, discount)
        assert torch.equal(batch.obs[j], data.obs[row]) and torch.equal(
            batch.next_obs[j], data.obs[end]
        )
        if isinstance(view, Chunk):
            assert batch.action[j].tolist() == data.action[row : row + n].flatten().tolist()
        else:
            assert torch.equal(batch.action[j], data.action[row])
    assert batch.extras == ()
    assert {x.dtype for x in batch[:5]} == {torch.float32}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@given(data=ragged)
@fast
def test_n_steps_equal_a_loop(n, data):
    view = NStep(n, GAMMA)
    assert torch.equal(view.support(data), data.valid)
    check_spans(data, view, n)


@pytest.mark.parametrize("h", [1, 2, 3, 4])
@given(data=ragged)
@fast
def test_chunks_equal_a_loop_and_start_only_where_they_fit(h, data):
    view = Chunk(h, GAMMA)
    fits = [row + h <= int(last) for row, last in enumerate(data.last)]
    if any(fits):
        assert view.support(data).tolist() == fits
        check_spans(data, view, h)
    else:
        with pytest.raises(UserError, match=f"view.h={h} is longer than every episode"):
            view.support(data)


def loop_on(data: ReplayData, row: int, n: int, gamma: float) -> float:
    """The return of up to n steps where rewards after a terminal are added too, step by step."""
    steps = range(row, min(row + n, int(data.last[row])))
    return sum(gamma**k * float(data.reward[at]) for k, at in enumerate(steps))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@given(data=ragged, gamma=st.floats(0.5, 0.999))
@fast
def test_both_views_add_rewards_after_a_success_where_they_are_told_to(n, data, gamma):
    """As ColinQiyangLi/qc adds them, in FQL-n and BFN-n as in chunks; the bootstrap stays what it was."""
    data = data._replace(reward=data.reward.double())
    rows = data.valid.nonzero().squeeze(1)
    for cls in (NStep, Chunk):
        if cls is Chunk and n > int((data.last - torch.arange(len(data.last))).max()):
            continue
        on, off = (cls(n, gamma, True, after).batch(data, rows) for after in (True, False))
        want = torch.tensor(
            [loop_on(data, r, n, gamma) for r in rows.tolist()], dtype=torch.float64
        )
        torch.testing.assert_close(on.reward, want, rtol=1e-12, atol=0)
        assert torch.equal(on.discount, off.discount) and torch.equal(on.next_obs, off.next_obs)
    ends = NStep(n, gamma, True, True).batch(data, rows)
    assert torch.equal(ends.discount == 0, torch.tensor([_ends(data, r, n) for r in rows.tolist()]))


def _ends(data: ReplayData, row: int, n: int) -> bool:
    return bool(data.terminal[row : min(row + n, int(data.last[row]))].any())


def test_n_step_returns_without_padding_start_where_chunks_do():
    data = make([(4, "timeout", 0), (2, "terminal", 0)])
    assert torch.equal(NStep(3, GAMMA, pad=False).support(data), Chunk(3, GAMMA).support(data))
    assert torch.equal(NStep(3, GAMMA).support(data), Chunk(3, GAMMA, pad=True).support(data))
    with pytest.raises(UserError, match=r"view\.n=9 is longer than every episode"):
        NStep(9, GAMMA, pad=False).support(data)


@pytest.mark.parametrize("kinds", HAND, ids=str)
def test_the_hand_made_ends_of_episodes_equal_a_loop(kinds):
    for n in range(1, 6):
        check_spans(make(kinds), NStep(n, GAMMA), n)
        if n <= max(k[0] for k in kinds):
            check_spans(make(kinds), Chunk(n, GAMMA), n)


def test_a_time_limit_bootstraps_and_a_terminal_does_not():
    timeout, terminal = (
        NStep(3, GAMMA).batch(make([(2, end, 0)]), torch.tensor([0]))
        for end in ("timeout", "terminal")
    )
    assert timeout.discount.item() == GAMMA**2 and terminal.discount.item() == 0
    assert timeout.reward.item() == terminal.reward.item() == 1 + GAMMA * 2


def test_nothing_beyond_a_terminal_inside_counts():
    data = make([(5, "inside", 1)])
    batch = Chunk(4, GAMMA).batch(data, torch.tensor([0]))
    assert (batch.reward.item(), batch.discount.item(), batch.next_obs.item()) == (
        1 + GAMMA * 2,
        0,
        2,
    )
    after = NStep(2, GAMMA).batch(
        data, torch.tensor([2])
    )  # beyond the goal the data still bootstrap
    assert (after.reward.item(), after.discount.item()) == (3 + GAMMA * 4, GAMMA**2)


@given(data=ragged)
@fast
def test_the_fast_path_of_one_step_equals_the_general_path(data):
    rows = data.valid.nonzero().squeeze(1)
    steps, _, counts = views.spans(data, rows, 1)
    end = views._end(data, rows, 1)
    batch = NStep(1, 0.97).batch(data, rows)
    assert (
        torch.equal(steps[:, 0], rows)
        and counts.all()
        and torch.equal(batch.next_obs, data.obs[end])
    )
    want = torch.where(data.terminal[rows], 0.0, torch.tensor(0.97) ** 1)
    assert torch.equal(batch.discount, want) and torch.equal(batch.reward, data.reward[rows])


def test_batches_keep_the_type_of_the_data_and_its_precision(data64):
    rows = Chunk(3, 0.97).support(data64).nonzero().squeeze(1)
    for n, view in [
        (1, NStep(1, 0.97)),
        (3, NStep(3, 0.97)),
        (1, Chunk(1, 0.97)),
        (3, Chunk(3, 0.97)),
    ]:
        batch = view.batch(data64, rows)
        assert {x.dtype for x in batch[:5]} == {torch.float64}
        assert abs(batch.discount.max().item() - 0.97**n) < 1e-15


@pytest.mark.parametrize(
    "view, words",
    [(NStep(0), "view.n must be at least 1"), (Chunk(0), "view.h must be at least 1")],
)
def test_a_span_of_no_steps_is_refused(view, words, data):
    with pytest.raises(UserError, match=words):
        view.support(data)


def test_a_chunk_longer_than_every_episode_names_the_longest():
    with pytest.raises(UserError, match="longest has 5 steps"):
        Chunk(6).support(make([(5, "timeout", 0), (2, "terminal", 0)]))


def test_only_the_action_size_of_the_spec_changes_and_only_for_chunks():
    spec = Spec(4, 3, 0.9, 50)
    assert NStep(5).spec(spec) == spec
    assert Chunk(5).spec(spec) == Spec(4, 15, 0.9, 50, chunk=5)


# --- acting in chunks


def recorder(h: int, n_actions: int, calls: list) -> Policy:
    """Plans h actions which tell the observation they were planned at and their place in the plan."""

    def act(state, step, carry, key):
        obs = step.obs
        calls.append(obs.clone())
        plan = (
            obs[..., :1, None] * 100 + torch.arange(h)[:, None] * 10 + torch.arange(n_actions)
        )  # (N, E, h, A)
        return plan.flatten(-2).expand(*obs.shape[:-1], h * n_actions), carry

    return Policy(lambda n_seeds, n_envs: None, act)


@given(
    h=st.integers(1, 5),
    lengths=st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=6), min_size=1, max_size=4),
)
@fast
def test_each_environment_executes_its_own_chunk_and_forgets_it_at_the_end_of_an_episode(
    h, lengths
):
    """Two seeds share the lengths of episodes in opposite order, so all phases mix."""
    firsts = [[t == 0 for n in env for t in range(n)] for env in lengths]
    horizon = max(map(len, firsts))
    grid = [[row[t % len(row)] for row in firsts] for t in range(horizon)]  # (T, E)
    policy = Chunk(h).policy(recorder(h, 2, []))
    n_envs = len(lengths)
    carry = policy.init(2, n_envs)
    planned = {}
    for t in range(horizon):
        first = torch.tensor([grid[t], grid[t][::-1]])
        obs = (torch.arange(2 * n_envs).view(2, n_envs, 1) + 10 * t).float()
        step = TimeStep(obs, torch.zeros(2, n_envs), first)
        key = torch.zeros(2, n_envs, dtype=torch.int64)
        action, carry = policy.act(None, step, carry, key)
        assert action.shape == (2, n_envs, 2)
        for s in range(2):
            for e in range(n_envs):
                if first[s, e] or t - planned[s, e] == h:
                    planned[s, e] = t
                seen = s * n_envs + e + 10 * planned[s, e]
                step = t - planned[s, e]
                assert action[s, e].tolist() == [seen * 100 + step * 10, seen * 100 + step * 10 + 1]


def test_a_chunk_policy_asks_for_a_plan_only_when_one_is_needed():
    calls = []
    policy = Chunk(3).policy(recorder(3, 1, calls))
    carry = policy.init(1, 2)
    for t in range(7):
        first = torch.full((1, 2), t == 0)
        step = TimeStep(torch.zeros(1, 2, 1), torch.zeros(1, 2), first)
        _, carry = policy.act(None, step, carry, torch.zeros(1, 2, dtype=torch.int64))
    assert len(calls) == 3  # at steps 0, 3 and 6


@given(seed=st.integers(0, 1000), h=st.integers(1, 5))
@fast
def test_a_plan_is_executed_for_as_many_steps_as_it_says_by_each_environment(seed, h):
    """Lengths and episode ends differ between environments; a loop with a queue each is the judge."""
    generator = np.random.default_rng(seed)
    n, e, horizon = 2, 3, 25
    lengths = generator.integers(1, h + 1, (horizon, n, e))
    firsts = generator.random((horizon, n, e)) < 0.2
    firsts[0] = True

    def act(state, step, carry, key):
        t = int(step.obs[0, 0, 0])
        plan = (1000 * t + torch.arange(h)).float().expand(n, e, h)
        return Plan(plan, torch.from_numpy(lengths[t])), carry + 1

    policy = Chunk(h).policy(Policy(lambda n, e: torch.zeros(n, e), act))
    carry, queue = policy.init(n, e), {}
    asked = np.zeros((n, e))
    for t in range(horizon):
        step = TimeStep(
            torch.full((n, e, 1), float(t)), torch.zeros(n, e), torch.from_numpy(firsts[t])
        )
        action, carry = policy.act(None, step, carry, torch.zeros(n, e, dtype=torch.int64))
        for slot in np.ndindex(n, e):
            if firsts[t][slot] or not queue[slot]:
                queue[slot] = [1000 * t + k for k in range(lengths[t][slot])]
                asked[slot] += 1
            assert action[slot].item() == queue[slot].pop(0)
        assert np.array_equal(carry[0].numpy(), asked)  # what the policy remembers, moved only here


@pytest.mark.parametrize("plans", [False, True])
def test_a_step_view_hands_on_actions_and_the_single_step_of_a_plan(plans):
    action = torch.rand(1, 2, 3)
    answer = Plan(action, torch.ones(1, 2, dtype=torch.int64)) if plans else action
    policy = NStep(3).policy(Policy(lambda n, e: 7, lambda s, step, c, key: (answer, c + 1)))
    assert policy.init(1, 2) == 7
    got, carry = policy.act(None, None, 7, None)
    assert got is action and carry == 8


# --- windows


@pytest.mark.parametrize("k", [1, 2, 4])
@given(data=ragged)
@fast
def test_windows_equal_a_loop(k, data):
    if data.n_transitions == data.n_episodes:
        return
    view = Window(k, GAMMA, return_scale=0.5).fit(data)
    rows = view.support(data).nonzero().squeeze(1)
    assert torch.equal(view.support(data), data.valid)
    batch = view.batch(data, rows)
    context = batch.obs
    assert [x.dtype for x in context] == [torch.float32] * 3 + [torch.int64, torch.bool]
    for j, row in enumerate(rows.tolist()):
        start = row
        while start > 0 and data.episode[start - 1] == data.episode[row]:
            start -= 1
        n, at = 0, row
        while n < k and at < data.last[row]:
            assert context.valid[j, n] and context.timestep[j, n] == at - start
            assert torch.equal(context.obs[j, n], data.obs[at])
            assert torch.equal(context.action[j, n], data.action[at])
            end, total = at, 0.0
            while end < data.last[row]:
                total += data.reward[end].item()
                end += 1
                if data.terminal[end - 1]:
                    break
            assert context.return_to_go[j, n].item() == 0.5 * total
            n, at = n + 1, at + 1
            if data.terminal[at - 1]:
                break
        assert all(not x[j, n:].any() for x in context)  # padding is zeros
        reward, discount, end = loop(data, row, k)
        assert (batch.reward[j].item(), batch.discount[j].item()) == (reward, discount)
        assert torch.equal(batch.next_obs[j], data.obs[end])


def test_what_a_window_takes_from_the_data():
    data = make([(3, "timeout", 0), (1, "terminal", 0), (2, "terminal", 0)])  # 1+2+3, 5, 7+8
    fitted = Window(2).fit(data)
    assert fitted.target_return == 15 and fitted.return_scale == 1 / 15
    # 1+2 up to a terminal after which the recorder went on (3+4), and 6
    inside = make([(4, "inside", 1), (1, "terminal", 0)])
    assert Window(2).fit(inside).target_return == 6 and int(inside.terminal.sum()) == 2
    given = Window(2, 0.99, 3.5, 2.0).fit(data)
    assert given.target_return == 3.5 and given.return_scale == 2
    assert (
        Window(2).spec(Spec(4, 3, 0.9, 50))
        == Spec(4, 3, 0.9, 50, context=2)
        == fitted.spec(Spec(4, 3, 0.9, 50))
    )


@pytest.mark.parametrize("view, words", [(Window(0), "view.k must be at least 1")])
def test_a_window_of_no_steps_is_refused(view, words, data):
    with pytest.raises(UserError, match=words):
        view.fit(data)


@given(seed=st.integers(0, 1000), k=st.integers(1, 4))
@fast
def test_each_environment_sees_its_own_last_steps(seed, k):
    """Against a list per environment, with episodes that end at different times."""
    generator = np.random.default_rng(seed)
    data = make([(5, "timeout", 0), (2, "terminal", 0)])
    view = Window(k, GAMMA, 100.0, 0.5).fit(data)
    n, e, horizon = 2, 3, 14
    firsts = generator.random((horizon, n, e)) < 0.25
    firsts[0] = True
    obs = torch.from_numpy(generator.normal(size=(horizon, n, e, 1))).float()
    reward = torch.from_numpy(generator.integers(-5, 6, (horizon, n, e))).float()
    actions = torch.from_numpy(generator.normal(size=(horizon, n, e, 2))).float()
    seen = []

    def act(state, step, carry, key):
        seen.append(step.obs)
        return actions[len(seen) - 1], carry

    policy = view.policy(Policy(lambda n, e: (), act))
    carry, history = policy.init(n, e), {}
    for t in range(horizon):
        step = TimeStep(obs[t], reward[t], torch.from_numpy(firsts[t]))
        action, carry = policy.act(None, step, carry, torch.zeros(n, e, dtype=torch.int64))
        assert torch.equal(action, actions[t])
        context = seen[-1]
        assert {x.shape[:3] for x in context} == {(n, e, k)}
        for slot in np.ndindex(n, e):
            if firsts[t][slot]:
                history[slot], left = [], 50.0
            else:
                left = history[slot][-1][2] - 0.5 * reward[t][slot].item()
            history[slot].append([obs[t][slot], torch.zeros(2), left, len(history[slot])])
            last = history[slot][-k:]
            for i, (o, a, to_go, when) in enumerate(last):
                assert torch.equal(context.obs[slot][i], o)
                assert torch.equal(context.action[slot][i], a)
                assert context.return_to_go[slot][i].item() == to_go
                assert context.timestep[slot][i].item() == when
            assert context.valid[slot].tolist() == [i < len(last) for i in range(k)]
            assert all(not x[slot][len(last) :].any() for x in context)
            history[slot][-1][1] = actions[t][slot]


def test_a_window_policy_sees_transformed_observations_and_rewards():
    """Acting mirrors the data: transforms first, then the view."""
    data = make([(5, "timeout", 0), (2, "terminal", 0)])
    options = {"obs_norm": {}, "reward_affine": {"scale": 2.0, "shift": 1.0}}
    pipeline = make_pipeline(data, view=Window(3, GAMMA, 8.0, 1.0), transforms=options)
    seen = []

    def act(state, step, carry, key):
        seen.append(step.obs)
        return torch.zeros(1, 1, 2), carry

    policy = pipeline.policy(Policy(lambda n, e: (), act))
    carry = policy.init(1, 1)
    for t in range(2):
        step = TimeStep(data.obs[None, None, t], torch.full((1, 1), 3.0), torch.tensor([[t == 0]]))
        _, carry = policy.act(None, step, carry, torch.zeros(1, 1, dtype=torch.int64))
    assert torch.allclose(seen[-1].obs[0, 0, :2], pipeline.data.obs[:2])
    assert seen[-1].return_to_go[0, 0, :2].tolist() == [8.0, 8.0 - (2 * 3.0 + 1)]
