"""What ACSAC promises: causal values of prefixes, an exact fixed point, one rule for ties, lengths that fit."""

import dataclasses
import itertools

import pytest
import torch
from support.prefix_tables import Table, signs
from torch.func import jacrev
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from offbench import rng
from offbench.bench.plan import plan
from offbench.bench.preflight import build
from offbench.data.replay import Episode, from_episodes
from offbench.errors import UserError
from offbench.methods.acsac import ACSAC
from offbench.methods.fql import FQL
from offbench.methods.qc import QC
from offbench.nn import flow
from offbench.testing.contract import fake_data
from offbench.types import Batch, Spec

CUBE_TRIPLE = Spec(obs_dim=46, action_dim=25, gamma=0.99, max_episode_steps=1000, chunk=5)
SMALL = ACSAC(hidden=(12, 12), width=16, heads=2, flow_steps=4)
SPEC = Spec(obs_dim=3, action_dim=8, gamma=0.9, max_episode_steps=50, chunk=4)


def count(tree) -> int:
    return sum(x.numel() for x in tree_leaves(tree))


def double(tree):
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)


def problem(method=SMALL, spec=SPEC, n: int = 5):
    """A float64 state, observations and chunks (n, N, H * A)."""
    state = double(method.init(rng.key(0), spec))
    obs = rng.normal(rng.key(1), (n, spec.obs_dim), torch.float64)
    chunk = rng.normal(rng.key(2), (n, method.n_proposals, spec.action_dim), torch.float64).tanh()
    return state, obs, chunk


# --- sizes


@pytest.mark.parametrize("head, positions", [("shared", "learned"), ("per_position", "sinusoid")])
def test_two_layouts_have_exactly_the_published_number_of_parameters(head, positions):
    method = ACSAC(head=head, positions=positions, polyak_target=True)
    state = method.init(rng.key(0), CUBE_TRIPLE)
    assert count(state.flow) == 838_169
    assert count(state.critic) == count(state.target_critic) == 2 * 404_224
    assert count((state.flow, state.critic, state.target_critic)) == 2_455_065


def test_the_default_is_one_of_them_and_keeps_no_second_copy():
    state = ACSAC().init(rng.key(0), CUBE_TRIPLE)
    assert count(state.critic) == 2 * 404_224 and count(state.target_critic) == 0


def test_the_critics_of_the_baselines_have_the_published_sizes():
    state = QC().init(rng.key(0), CUBE_TRIPLE)
    assert count(state.critic) == 2 * 829_441
    assert count((state.critic, state.target_critic, state.flow)) == 4_155_933


# --- the critic


@pytest.mark.parametrize("head", ["per_position", "shared"])
@pytest.mark.parametrize("positions", ["learned", "sinusoid"])
def test_a_value_does_not_depend_on_later_actions_nor_on_other_proposals(head, positions):
    method = dataclasses.replace(SMALL, head=head, positions=positions)
    state, obs, chunk = problem(method, n=1)
    slope = jacrev(lambda a: method._q(state.critic, obs, a)[:, 0])(chunk)  # (2, N, H, 1, N, H * A)
    slope = slope[:, :, :, 0].unflatten(-1, (4, 2)).abs().amax(-1)  # (2, N, H, N, H)
    for n, h, m, j in itertools.product(range(4), repeat=4):
        if n == m and j <= h:
            assert (slope[:, n, h, m, j] > 0).all()
        else:
            assert (slope[:, n, h, m, j] == 0).all()


def test_chunks_behind_one_state_token_have_the_values_they_have_alone():
    state, obs, chunk = problem()
    together = SMALL._q(state.critic, obs, chunk)
    for n in range(chunk.shape[1]):
        alone = SMALL._q(state.critic, obs, chunk[:, n : n + 1])[:, :, 0]
        assert torch.allclose(together[:, :, n], alone, rtol=0, atol=1e-12)


def test_the_order_of_actions_matters():
    state, obs, chunk = problem()
    swapped = chunk.unflatten(-1, (4, 2))[:, :, [1, 0, 2, 3]].flatten(2)
    a, b = (SMALL._q(state.critic, obs, c)[..., -1] for c in (chunk, swapped))
    assert (a - b).abs().min() > 1e-6


# --- the choice


def test_equal_values_go_to_the_first_proposal_and_the_shortest_prefix():
    state, obs, _ = problem()
    state.critic["head"] = torch.zeros_like(state.critic["head"])  # every prefix is worth 0
    plan = SMALL.act(state, obs, rng.key(5))
    _, chunks = flow.propose(state.flow, obs, rng.key(5), 4, SMALL.flow_steps)
    assert plan.length.tolist() == [1] * 5
    assert torch.equal(plan.action, chunks.unflatten(0, (5, 4))[:, 0])


@pytest.mark.parametrize("n, h", [(0, 0), (1, 3), (3, 0), (3, 3)])
def test_a_planted_maximum_of_the_smaller_critic_is_found(n, h, monkeypatch):
    state, obs, _ = problem()
    q = rng.normal(rng.key(3), (2, 5, 4, 4), torch.float64)
    q[:, :, n, h] = torch.tensor([9.0, 5.0]).double()[:, None]
    q[0, :, 2, 2] = 99.0  # one critic alone does not decide
    monkeypatch.setattr(ACSAC, "_q", lambda *_: q)
    value, chunk, length = SMALL._best(state.critic, state.flow, obs, rng.key(5))
    _, chunks = flow.propose(state.flow, obs, rng.key(5), 4, SMALL.flow_steps)
    assert length.tolist() == [h + 1] * 5 and (value == 5).all()
    assert torch.equal(chunk, chunks.unflatten(0, (5, 4))[:, n])


@pytest.mark.parametrize("length", [1, 3, 4])
def test_asked_for_a_length_it_executes_the_proposal_best_at_that_length(length):
    state, obs, _ = problem()
    plan = SMALL.act_for(state, obs, rng.key(5), length)
    _, chunks = flow.propose(state.flow, obs, rng.key(5), 4, SMALL.flow_steps)
    chunks = chunks.unflatten(0, (5, 4))  # (E, N, H * A)
    assert plan.length.tolist() == [length] * 5
    q = SMALL._q(state.critic, obs, chunks)  # (2, E, N, H)
    for e in range(5):
        worth = [min(q[c, e, n, length - 1].item() for c in range(2)) for n in range(4)]
        assert torch.equal(plan.action[e], chunks[e, worth.index(max(worth))])
    # free to choose, it takes the best of what it does at each length
    free = SMALL.act(state, obs, rng.key(5))
    asked = [SMALL.act_for(state, obs, rng.key(5), h) for h in (1, 2, 3, 4)]
    values = torch.stack([SMALL.value(state, obs, one) for one in asked])
    assert torch.allclose(SMALL.value(state, obs, free), values.amax(0), rtol=0, atol=1e-12)
    assert torch.equal(free.length, values.argmax(0) + 1) and len(set(free.length.tolist())) > 1


def test_the_first_of_equal_entries_wins():
    x = torch.tensor([[1.0, 3, 3, 2], [0, 0, 0, 0], [-torch.inf, -1, -torch.inf, -1]])
    assert flow.first_argmax(x).tolist() == [1, 0, 1]
    assert flow.first_argmax(torch.full((2, 3), torch.nan)).max() <= 2  # no place outside


def test_chunks_of_one_step_make_it_best_of_n_with_the_smaller_critic(monkeypatch):
    spec = SPEC._replace(action_dim=2, chunk=1)
    state, obs, _ = problem(SMALL, spec)
    bfn = QC(hidden=(12, 12), n_proposals=4, q_aggregate="min", flow_steps=4)
    other = double(bfn.init(rng.key(9), spec))._replace(flow=state.flow)
    q = lambda critic, obs, action: SMALL._q(state.critic, obs, action[:, None])[..., 0, 0]
    monkeypatch.setattr(flow, "q_values", q)
    ours, theirs = SMALL.act(state, obs, rng.key(4)), bfn.act(other, obs, rng.key(4))
    assert torch.equal(ours.action, theirs) and ours.length.tolist() == [1] * 5
    value, _, _ = SMALL._best(state.critic, state.flow, obs, rng.key(4))
    assert torch.allclose(value, q(None, obs, theirs).amin(0), rtol=0, atol=1e-12)


# --- the fixed point, on a table in the critic's place

GAMMA = 0.9


def all_chunks(transition, n_states: int, h: int):
    """A batch with every chunk from every state; `transition(s, right) -> (reward, s', ended)`."""
    rows = list(itertools.product(range(n_states), *[(0, 1)] * h))
    reward = torch.zeros(len(rows), h, dtype=torch.float64)
    discount, after = torch.zeros_like(reward), torch.zeros(len(rows), h, dtype=torch.long)
    for i, (s, *actions) in enumerate(rows):
        total, factor = 0.0, 1.0
        for j, right in enumerate(actions):
            r, s, ended = transition(s, right)
            total, factor = total + factor * r, factor * GAMMA * (not ended)
            reward[i, j], discount[i, j], after[i, j] = total, factor, s
    one_hot = torch.eye(n_states, dtype=torch.float64)
    extras = {
        "prefix_reward": reward,
        "prefix_discount": discount,
        "prefix_obs": one_hot[after],
        "valid": torch.ones_like(reward),
    }
    action = torch.tensor([r[1:] for r in rows]).double() * 2 - 1
    obs = one_hot[[r[0] for r in rows]]
    return rows, Batch(obs, action, reward[:, -1], discount[:, -1], one_hot[after[:, -1]], extras)


def maze(s: int, right: int) -> tuple[float, int, bool]:
    """Three states in a row: the way to the prize has its cost, and a small reward tempts to stay."""
    table = {
        (0, 0): (0.3, 0, False),
        (0, 1): (-0.5, 1, False),
        (1, 0): (0.1, 0, False),
        (1, 1): (-0.5, 2, False),
        (2, 0): (0.2, 1, False),
        (2, 1): (6.0, 2, True),
    }
    return table[s, right]


def optimal_values(transition, n_states: int) -> list[float]:
    """Value iteration on single steps."""
    v = [0.0] * n_states
    for _ in range(500):
        q = [[transition(s, a) for a in (0, 1)] for s in range(n_states)]
        v = [max(r + GAMMA * (not end) * v[t] for r, t, end in both) for both in q]
    return v


def lookup(rows, batch, v):
    after = torch.tensor(v, dtype=torch.float64)[batch.extras["prefix_obs"].argmax(-1)]
    return batch.extras["prefix_reward"] + batch.extras["prefix_discount"] * after


def tabulate(rows, target, n_states: int):
    """Targets (rows, H) as tables, one per length: (2, S, 2^h)."""
    tables = [torch.zeros(2, n_states, 2 ** (h + 1)).double() for h in range(target.shape[1])]
    for (s, *actions), values in zip(rows, target, strict=True):
        code = 0
        for h, right in enumerate(actions):
            code = 2 * code + right
            tables[h][:, s, code] = values[h]
    return tables


H, STATES = 3, 3
TABLE = Table(n_proposals=24, flow_steps=4)


def backup(tables, rows, batch, key):
    state = SMALL.init(rng.key(0), SPEC)._replace(critic=tables, flow=signs(STATES, H))
    target, _ = TABLE._targets(state, batch, key)
    return tabulate(rows, target, STATES)


def distance(a, b) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def test_proposals_of_the_test_flow_are_signs_in_equal_shares():
    _, a = flow.propose(signs(STATES, H), torch.eye(STATES).double(), rng.key(0), 500, 4)
    assert (a.abs() == 1).all() and (a.mean(0).abs() < 0.1).all()


def test_iterating_the_backup_gives_the_optimal_value_of_every_prefix():
    rows, batch = all_chunks(maze, STATES, H)
    want = tabulate(rows, lookup(rows, batch, optimal_values(maze, STATES)), STATES)
    tables = tabulate(rows, torch.zeros(len(rows), H).double(), STATES)
    errors = [distance(tables, want)]
    for i in range(60):
        tables = backup(tables, rows, batch, rng.key(i))
        errors.append(distance(tables, want))
    assert errors[-1] < 1e-9
    assert all(b <= GAMMA * a + 1e-12 for a, b in itertools.pairwise(errors))


def test_the_backup_brings_any_two_tables_closer():
    rows, batch = all_chunks(maze, STATES, H)
    for i in range(5):
        noise = rng.normal(rng.key(i), (2, len(rows), H), torch.float64)
        a, b = (tabulate(rows, 5 * x, STATES) for x in noise)
        after = distance(*(backup(t, rows, batch, rng.key(50 + i)) for t in (a, b)))
        assert after <= GAMMA * distance(a, b)


def corridor(s: int, right: int) -> tuple[float, int, bool]:
    return {
        (0, 0): (0.3, 0, False),
        (0, 1): (-0.5, 1, False),
        (1, 0): (0.2, 0, False),
        (1, 1): (3.0, 1, True),
    }[s, right]


@pytest.mark.slow
def test_the_network_reaches_the_values_of_dynamic_programming():
    """The whole update on all chunks at once, the proposals held fixed, traced: within 1e-3 everywhere."""
    rows, batch = all_chunks(corridor, 2, 2)
    want = lookup(rows, batch, optimal_values(corridor, 2))
    method = ACSAC(hidden=(4,), width=32, heads=2, layers=1, n_proposals=12, flow_steps=2)
    fixed = signs(2, 2)
    state = double(method.init(rng.key(0), Spec(2, 2, GAMMA, 50, chunk=2)))._replace(flow=fixed)
    leaves, tree = tree_flatten(state)
    keys = iter(rng.split(rng.key(1), 2300))
    for lr, n in ((2e-3, 1500), (1e-3, 500), (2e-4, 300)):
        phase = dataclasses.replace(method, lr=lr)

        def step(key, *leaves, phase=phase):
            state, _ = phase.update(tree_unflatten(list(leaves), tree), batch, key)
            return tree_leaves(state._replace(flow=fixed))

        program = make_fx(step)(rng.key(0), *leaves)
        with torch.no_grad():
            for _ in range(n):
                leaves = program(next(keys), *leaves)
    state = tree_unflatten(leaves, tree)
    got = method._q(state.critic, batch.obs, batch.action[:, None])[:, :, 0]
    assert (got - want).abs().max() < 1e-3


# --- lengths


def chance(s: int, right: int, luck: int) -> tuple[float, int, bool]:
    """From 0 to 1 or 2 by luck, seen only on arrival; there the side to take is the one that came up.

    From 3 to 4, where the side to take is always the same.
    """
    if s == 0:
        return 0.0, 1 + luck, False
    if s in (1, 2):
        return float(right == s - 1), 5, True
    return (0.0, 4, False) if s == 3 else (float(right), 5, True)


def test_it_replans_where_luck_decides_and_goes_on_where_nothing_is_to_be_learned():
    """With few proposals a chunk in the hand that ends well is worth more than the next draw."""
    n_states, h = 6, 2
    method = Table(n_proposals=2, flow_steps=4)
    outcomes = [all_chunks(lambda s, a, k=k: chance(s, a, k), n_states, h) for k in (0, 1)]
    tables = tabulate(outcomes[0][0], torch.zeros(len(outcomes[0][0]), h).double(), n_states)
    state = SMALL.init(rng.key(0), SPEC)._replace(flow=signs(n_states, h))
    for _ in range(3):  # two steps and it is over
        targets = [
            method._targets(state._replace(critic=tables), batch, rng.key(100 * k + i))[0]
            for i in range(100)
            for k, (_, batch) in enumerate(outcomes)
        ]
        tables = tabulate(outcomes[0][0], torch.stack(targets).mean(0), n_states)
    obs = torch.eye(n_states).double()[[0] * 200 + [3] * 200]
    plan = method.act(state._replace(critic=tables), obs, rng.key(7))
    assert (plan.length[:200] == 1).all()
    ends_well = plan.action[200:, 1] > 0
    assert (plan.length[200:][ends_well] == 2).all() and 0.6 < ends_well.double().mean() < 0.9
    assert (plan.length[200:][~ends_well] == 1).all()


# --- padding


def test_what_lies_beyond_an_episode_changes_no_critic():
    method, (state, obs, chunk) = SMALL, problem()
    noise = lambda k, *shape: rng.normal(rng.key(k), shape, torch.float64)
    valid = torch.tensor(
        [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    ).double()
    extras = {
        "prefix_reward": noise(1, 5, 4),
        "prefix_discount": torch.full((5, 4), 0.9).double(),
        "prefix_obs": noise(2, 5, 4, 3),
        "valid": valid,
    }
    batch = Batch(obs, chunk[:, 0], noise(3, 5), noise(4, 5), noise(5, 5, 3), extras)
    gone = (valid == 0)[..., None]
    other = batch._replace(
        action=torch.where(gone, 0.5, batch.action.unflatten(-1, (4, 2))).flatten(1),
        extras=extras
        | {
            "prefix_reward": torch.where(gone[..., 0], 7.0, extras["prefix_reward"]),
            "prefix_obs": torch.where(gone, 7.0, extras["prefix_obs"]),
        },
    )
    a, b = (method.update(state, x, rng.key(8))[0].critic for x in (batch, other))
    for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True):
        assert torch.allclose(x, y, rtol=0, atol=1e-12)
    full = batch._replace(extras=extras | {"valid": torch.ones_like(valid)})
    c = method.update(state, full, rng.key(8))[0].critic
    assert not torch.allclose(a["head"], c["head"], rtol=0, atol=1e-9)


# --- mistakes


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ACSAC(n_proposals=0), "method.n_proposals=0 must be at least 1"),
        (lambda: QC(n_proposals=-1), "method.n_proposals=-1 must be at least 1"),
        (lambda: FQL(flow_steps=0), "method.flow_steps=0 must be at least 1"),
        (lambda: ACSAC(width=100), "method.width=100 must be a multiple of 2 x method.heads=8"),
    ],
)
def test_impossible_settings_are_refused_when_they_are_made(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_a_recording_without_ends_of_episodes_is_refused():
    cell = plan(["method=qc", "task=offbench/cube-single-play-v0"], bench=False).cells[0]
    walk = rng.normal(rng.key(0), (301, 5)).numpy()
    data = from_episodes([Episode(walk, walk[:300, :2] * 0, walk[:300, 0], walk[:300, 0] > 9)])
    spec = Spec(5, 2, 0.99, max_episode_steps=20)
    with pytest.raises(UserError, match="one episode of 300 steps where the environment allows 20"):
        build(cell, data, spec)
    build(cell, data, spec._replace(max_episode_steps=100))


CHUNKED = [
    "acsac",
    "qc",
    "qc_fql",
    "qgf",
    "dqc",
    "cgq",
    "bfn+chunk",
    "fql+chunk",
    "ifql+chunk",
    "iql+chunk",
    "td3_bc+chunk",
    "rebrac+chunk",
]


@pytest.mark.parametrize("entry", CHUNKED)
def test_discrete_actions_and_chunks_that_do_not_fit_are_refused(entry):
    def cell(*more):
        task = "task=offbench/cube-single-play-v0"
        return plan([f"methods=[{entry}]", task, *more], bench=True).cells[0]

    data, spec = fake_data(), Spec(5, 2, 0.99, 100)
    build(cell(), data, spec)
    with pytest.raises(UserError, match=r"view\.h=31 is longer than every episode"):
        build(cell("view.h=31"), data, spec)
    with pytest.raises(UserError, match=r"view\.h must be at least 1, got 0"):
        build(cell("view.h=0"), data, spec)
    with pytest.raises(UserError, match="chunks of discrete actions are not supported"):
        build(cell(), data, spec._replace(discrete=True))
    walk = rng.normal(rng.key(0), (1301, 5)).numpy()
    whole = from_episodes([Episode(walk, walk[:1300, :2] * 0, walk[:1300, 0], walk[:1300, 0] > 9)])
    with pytest.raises(UserError, match="no ends of episodes are recorded"):
        build(cell(), whole, spec)


@pytest.mark.parametrize("entry", ["dqc", "dqc+dw"])
def test_a_policy_of_more_steps_than_its_chunks_is_refused_before_training(entry):
    task = "task=offbench/cube-single-play-v0"
    cell = plan([f"methods=[{entry}]", task, "method.policy_chunk=6"], bench=True).cells[0]
    with pytest.raises(UserError, match=r"policy_chunk=6 is longer than a chunk of 5: .*view\.h=6"):
        build(cell, fake_data(), Spec(5, 2, 0.99, 100))


@pytest.mark.parametrize("entry", ["fql+nstep5", "bfn+nstep5", "ifql+nstep5", "fql_n"])
def test_methods_of_flows_learn_from_n_steps_as_entries(entry):
    cell = plan([f"methods=[{entry}]", "task=offbench/cube-single-play-v0"], bench=True).cells[0]
    added = {} if entry.startswith("ifql") else {"rewards_after_terminal": True}  # FQL-n, BFN-n
    assert cell.pipeline["view"] == {"name": "nstep", "n": 5} | added
    _, pipeline = build(cell, fake_data(), Spec(5, 2, 0.99, 100))
    assert pipeline.spec(Spec(5, 2, 0.99, 100)).chunk == 1
    assert pipeline.sample(rng.key(0)).extras["valid"].shape == (64, 1)


def test_a_methods_own_view_keeps_its_settings_when_the_length_is_changed():
    view = lambda entry: (
        plan([f"methods=[{entry}]", "task=offbench/cube-single-play-v0"], bench=True)
        .cells[0]
        .pipeline["view"]
    )
    own = {"name": "chunk", "h": 5, "pad": True, "rewards_after_terminal": True}
    assert view("acsac") == view("acsac+chunk") == own
    assert view("qc+chunk10") == own | {"h": 10}
    assert view("iql+chunk") == own | {"pad": False, "rewards_after_terminal": False}
    steps = {"name": "nstep", "n": 5}
    assert view("bfn+nstep5") == steps | {"rewards_after_terminal": True}
    assert view("iql+nstep5") == steps and view("bfn") == steps | {"n": 1}
