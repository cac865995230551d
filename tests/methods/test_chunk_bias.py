"""What noise does to ACSAC's maximum over prefixes: the study against loops and draws, ACSAC against the study."""

import dataclasses
from itertools import product

import numpy as np
import pandas as pd
import pytest
import simulate_chunk_bias as study
import torch
from support.chunk_bias import (
    GAMMA,
    Setting,
    backup,
    choices,
    corridor,
    equal_lengths,
    exact_max,
    noisy_max,
    over,
    solve,
    steps_to_success,
    sweeps,
    tables,
    updates,
)
from support.mutants import mutated
from support.prefix_tables import Table, signs

from offbench import rng
from offbench.methods.acsac import ACSAC
from offbench.nn import flow
from offbench.types import Batch, Spec

# --- the study against loops

# of the states of a corridor with one stage of luck, two of waiting and two of neither
OUTCOMES = {
    # state: successors after the actions 0 and 1, equally likely; None is success
    0: ([None], [0, 1]),
    1: ([0, 1], [None]),
    2: ([2], [0, 1]),
    3: ([3], [2]),
    4: ([3], [3]),
    5: ([4], [4]),
}
CHANCE = {(0, 0): 0.8 * 0.9, (0, 1): 0.8 * 0.1, (1, 0): 0.2 * 0.1, (1, 1): 0.2 * 0.9}


def prefix_value(s, actions, value):
    """Expected return of some actions, and then the value."""
    if s is None:
        return 0.0
    if not actions:
        return value[s]
    after = OUTCOMES[s][actions[0]]
    return sum(-1 + GAMMA * prefix_value(t, actions[1:], value) for t in after) / len(after)


def test_exact_values_are_those_of_a_loop_over_all_pairs_of_proposals():
    mdp = corridor(2, far=2, middle=2, near=1)
    value = [0.0] * 6
    for _ in range(200):
        best = [
            {c: max(prefix_value(s, c[:k], value) for k in (1, 2)) for c in CHANCE}
            for s in range(6)
        ]
        value = [
            sum(CHANCE[a] * CHANCE[b] * max(of[a], of[b]) for a, b in product(CHANCE, repeat=2))
            for of in best
        ]
    found = solve(mdp, Setting(h=2, n=2, sigma=0.0))
    assert np.abs(found - value).max() < 1e-9
    q = backup(mdp, found)
    for s, (j, c) in product(range(6), enumerate(CHANCE)):
        for k in (1, 2):
            assert abs(q[s, j, k - 1] - prefix_value(s, c[:k], value)) < 1e-9


def test_steps_to_success_are_those_of_episodes():
    mdp = corridor(2, far=2, middle=2, near=1)
    setting = Setting(h=2, n=2, sigma=0.5)
    share = choices(mdp, setting, backup(mdp, solve(mdp, setting)))
    draw, counts = np.random.default_rng(0), []
    for _ in range(2000):
        s, n = 5, 0
        while s is not None:
            c, k = divmod(draw.choice(8, p=share[s].ravel() / share[s].sum()), 2)
            for action in list(CHANCE)[c][: k + 1]:
                if s is not None:
                    s, n = OUTCOMES[s][action][draw.integers(len(OUTCOMES[s][action]))], n + 1
        counts.append(n)
    error = np.std(counts) / len(counts) ** 0.5
    assert abs(np.mean(counts) - steps_to_success(mdp, share)) < 4 * error


@pytest.mark.parametrize("critics", [1, 2, 10])
def test_quadrature_gives_what_draws_give(critics):
    draw, n, size = np.random.default_rng(0), 3, 60_000
    q, chance = draw.normal(size=(1, 4, 3)), np.array([0.1, 0.2, 0.3, 0.4])
    sigma = np.array([0.2, 0.5, 0.9])
    found = noisy_max(q, chance, n, critics, sigma)
    chunk = draw.choice(4, (size, n), p=chance)
    noisy = q[0, chunk] + (sigma * draw.standard_normal((critics, size, n, 3))).min(0)
    index = noisy.reshape(size, -1).argmax(1)
    best = noisy.max((1, 2))
    assert abs(best.mean() - found.value[0]) < 4 * best.std() / size**0.5
    place = chunk[np.arange(size), index // 3] * 3 + index % 3
    share = np.bincount(place, minlength=12) / size
    assert np.abs(share - found.share[0].ravel()).max() < 4 * (0.25 / size) ** 0.5
    assert abs(found.share.sum() - 1) < 1e-9


def test_quadrature_of_little_noise_is_the_maximum_of_exact_values():
    q = np.random.default_rng(1).normal(size=(2, 8, 3))
    chance = np.full(8, 1 / 8)
    little = noisy_max(q, chance, 4, 2, np.full(3, 0.002))
    exact = exact_max(q, chance, 4)
    assert np.abs(little.value - exact.value).max() < 0.01
    assert np.abs(little.share - exact.share).max() < 0.05


@pytest.mark.parametrize("critics, details", [(1, 32), (2, 32), (10, 32), (2, 0)])
def test_the_fixed_point_of_distinct_proposals_is_that_of_tables_of_noise(critics, details):
    """And of chunks that share their beginnings it is not: one-step prefixes have two values only."""
    mdp, setting = corridor(3, far=8, middle=3, near=1), Setting(h=3, critics=critics)
    each, share = tables(mdp, setting, np.random.default_rng(0), 40, details)
    bias = (each.mean(0) - solve(mdp, setting))[-1]
    chosen = choices(mdp, setting, backup(mdp, solve(mdp, setting))).sum(1)
    gap = np.abs(share - chosen)[mdp.zones["far"]].mean()
    assert (abs(bias) < 0.05 and gap < 0.03) if details else (bias < -0.15 and gap > 0.06)


def test_averaging_over_updates_is_less_noise_in_the_target_and_none_less_in_the_policy():
    mdp, setting = corridor(3, far=8, middle=3, near=1), Setting(h=3, rate=0.1)
    value, planned, executed = updates(mdp, setting, np.random.default_rng(0), 300, 32)
    q = backup(mdp, noisy := solve(mdp, setting))
    unaveraged = solve(mdp, setting._replace(rate=1.0))
    assert np.abs(value - noisy).max() < 0.02 < np.abs(value - unaveraged).max()
    far = mdp.zones["far"]
    for share, online in ((planned, False), (executed, True)):
        of_quadrature = choices(mdp, setting, q, online).sum(1)
        assert np.abs((share - of_quadrature)[far].mean(0)).max() < 0.04


# --- what the study says


def test_where_lengths_are_equal_bias_and_shares_are_known():
    assert abs(equal_lengths(1, 1, 1)[0]) < 1e-9
    # mean of the largest of four normals
    assert abs(equal_lengths(1, 4, 1)[0] - 1.02937537) < 1e-7
    for h, sigma in ((3, 0.05), (3, 0.4), (5, 0.2)):
        mdp, setting = corridor(h, far=18, middle=1, near=1), Setting(h=h, sigma=sigma)
        slope, share = equal_lengths(h, setting.n, setting.critics)
        value, exact = solve(mdp, setting), solve(mdp, setting._replace(sigma=0.0))
        chosen = choices(mdp, setting, backup(mdp, value)).sum(1)
        assert np.abs(chosen[-3:] - share).max() < 0.02
        # with a discount, what is there already weighs less
        bias = value - exact
        grows = bias[-3:] - GAMMA * bias[-4:-1]
        assert np.abs(grows / sigma - slope).max() < 0.02


def test_one_backup_favours_no_length_and_repeated_backups_the_shortest():
    mdp, setting = corridor(5), Setting()
    exact = solve(mdp, setting._replace(sigma=0.0))
    far = mdp.zones["far"]
    once = choices(mdp, setting, backup(mdp, exact)).sum(1)[far]
    assert np.abs(once - 0.2).max() < 1e-9
    value = solve(mdp, setting)
    shares = choices(mdp, setting, backup(mdp, value)).sum(1)[far]
    assert (shares[:, 0] > 0.6).all()
    too_high = over(mdp, value, exact)[far].mean(0)
    assert (np.diff(too_high) < 0).all()


def test_from_values_that_are_too_high_all_lengths_are_as_slow_as_one_step_and_from_too_low_as_five():
    mdp, least = corridor(5), -1 / (1 - GAMMA)
    exact = solve(mdp, Setting(sigma=0.0))[-1]
    of = {(x, k): sweeps(mdp, 4, x, 60, k)[:, -1] for x in (0.0, least) for k in (0, 1, 5)}
    assert np.abs(of[0.0, 0] - of[0.0, 1])[:20].max() < 1e-9
    # five steps are past the end by then
    assert (of[0.0, 5] < exact)[6:].all() and (of[0.0, 0] > exact + 2)[:25].all()
    assert (of[least, 0] >= of[least, 5] - 1e-9).all() and of[least, 0][10] > exact - 1
    assert of[least, 1][25] < least / 2
    assert abs(of[0.0, 0][-1] - exact) < 1e-6 and abs(of[least, 0][-1] - exact) < 1e-6


def test_a_prize_instead_of_costs_is_the_same_task_with_values_from_0_to_1():
    mdp, value = corridor(3, far=2, middle=2, near=1), np.random.default_rng(0).normal(size=6)
    discount = GAMMA ** np.arange(1, 4)
    alive = np.concatenate([np.ones((*mdp.reward.shape[:2], 1)), mdp.after.sum(-1)], -1)
    # a prize of 1 in the state of success: discounted by the steps to it
    prize = ((alive[..., :-1] - alive[..., 1:]) * discount).cumsum(-1)
    of_prize = prize + backup(mdp._replace(reward=0 * mdp.reward), 1 + value * (1 - GAMMA))
    assert np.allclose(of_prize, 1 + backup(mdp, value) * (1 - GAMMA), atol=1e-12)


def test_the_tables_in_the_repository_are_what_the_study_finds():
    read = lambda name: pd.read_csv(study.HERE / name)
    equal = read("equal_lengths.csv")
    for _, row in equal[equal.h == 5].iloc[::7].iterrows():
        slope, share = equal_lengths(5, int(row.n), int(row.critics))
        assert abs(slope - row.slope) < 1e-3
        assert np.abs(share - row.filter(like="share").dropna()).max() < 1e-3
    found = study.propagation(5)
    written = read("propagation.csv").query("sweep <= 5")[list(found)]
    assert np.allclose(written, found, rtol=1e-3)
    rows, policy = study.measured(study.BASE)
    fields = list(Setting._fields)
    ours = pd.Series(study.BASE._asdict())
    written = read("policies.csv")
    (line,) = written[(written[fields] == ours).all(axis=1)].to_dict("records")
    assert all(line[k] == pytest.approx(policy[k], rel=1e-3) for k in policy)
    written = read("corridor.csv")
    written = written[(written[fields] == ours).all(axis=1)][list(rows)]
    numbers = rows.columns.drop("zone")
    assert written.zone.tolist() == rows.zone.tolist()
    assert np.allclose(written[numbers], rows[numbers], rtol=1e-3, atol=1e-6, equal_nan=True)


# --- ACSAC against the study

H, N, KEY = 3, 2, 7
METHOD = Table(n_proposals=N, flow_steps=4, hidden=(4,), width=16, heads=2)


def noisy_tables(mdp, seed: int):
    """Values with noise of two critics (2, S, C, H), equal for equal prefixes, and as tables by length."""
    draw, exact = np.random.default_rng(seed), backup(mdp, solve(mdp, Setting(h=H, sigma=0.0)))
    q = np.stack([exact, exact])
    for k in range(1, H + 1):
        noise = draw.standard_normal((2, len(exact), 2**k))
        q[..., k - 1] += noise.repeat(2 ** (H - k), -1)
    short = [torch.from_numpy(q[:, :, :: 2 ** (H - k), k - 1].copy()) for k in range(1, H + 1)]
    return q, short


def problem(method=METHOD):
    """The corridor of fair coins, two noisy critics on it, and a state of ACSAC with these."""
    mdp = corridor(H, far=4, middle=3, near=1, first=0.5, stick=0.5)
    size = len(mdp.reward)
    (q, critic), (target_q, target) = (noisy_tables(mdp, seed) for seed in (0, 1))
    state = method.init(rng.key(0), Spec(size, H, GAMMA, 50, chunk=H))
    state = state._replace(critic=critic, target_critic=target, flow=signs(size, H))
    return mdp, q, target_q, state


def batch_of(mdp) -> Batch:
    """All chunks from all states, with successors that are drawn."""
    size, n_chunks = mdp.reward.shape[:2]
    draw, one_hot = np.random.default_rng(2), torch.eye(size, dtype=torch.float64)
    rows = mdp.after.reshape(-1, size)
    ends = [draw.choice(size + 1, p=[*p, max(0.0, 1 - p.sum())]) for p in rows]
    after = torch.tensor(ends).view(size * n_chunks, H)
    discount = GAMMA ** torch.arange(1, H + 1).double() * (after < size)
    reward = torch.from_numpy(mdp.reward).view(-1, H)
    extras = {
        "prefix_reward": reward,
        "prefix_discount": discount,
        "prefix_obs": one_hot[after.clamp(max=size - 1)],
        "valid": torch.ones_like(reward),
    }
    obs, last = one_hot.repeat_interleave(n_chunks, 0), extras["prefix_obs"][:, -1]
    return Batch(obs, reward * 0, reward[:, -1], discount[:, -1], last, extras)


def by_loop(q, obs, key):
    """Largest value over proposals and lengths of the smaller critic, and its length: (B,), (B,)."""
    _, chunks = flow.propose(signs(obs.shape[1], H), obs, key, N, 4)
    values, lengths = [], []
    for row, s in enumerate(obs.argmax(1).tolist()):
        best, length = -np.inf, 0
        for chunk in chunks[row * N : (row + 1) * N].tolist():
            code = sum(2 ** (H - 1 - j) * (a > 0) for j, a in enumerate(chunk))
            for k in range(1, H + 1):
                value = min(q[critic, s, code, k - 1] for critic in (0, 1))
                if value > best:
                    best, length = value, k
        values.append(best), lengths.append(length)
    return torch.tensor(values, dtype=torch.float64), torch.tensor(lengths)


def differs(method) -> bool:
    """Whether targets and their lengths are not those of the loop."""
    mdp, q, target_q, state = problem(method)
    batch = batch_of(mdp)
    target, length = method._targets(state, batch, rng.key(KEY))
    want = target_q if method.polyak_target else q
    value, lengths = by_loop(want, batch.extras["prefix_obs"].flatten(0, 1), rng.key(KEY))
    expected = batch.extras["prefix_reward"] + batch.extras["prefix_discount"] * value.view(-1, H)
    off = (target - expected).abs().max() > 1e-12
    return bool(off) or not torch.equal(length, lengths)


def test_the_targets_of_acsac_are_those_of_the_loop():
    assert not differs(METHOD)
    assert not differs(dataclasses.replace(METHOD, polyak_target=True))


@pytest.mark.parametrize(
    "old, new",
    [
        ("values.amin(0)", "values.amax(0)"),
        ("values.amin(0)", "values.mean(0)"),
        ("values.amin(0)", "values[0]"),
        ("index % q.shape[-1] + 1", "q.shape[-1] - index % q.shape[-1]"),
        ("flow.first_argmax(q.flatten(1))", "flow.first_argmax(q.mean(1)).clamp(max=2)"),
        ("critic = state.target_critic", "critic = state.critic"),
        ('extras["prefix_discount"] * value', 'extras["prefix_discount"][:, :1] * value'),
    ],
)
def test_a_mistake_in_the_targets_is_found(old, new):
    wrong = mutated(ACSAC, old, new)
    wrong._q = Table._q
    fields = {f.name: getattr(METHOD, f.name) for f in dataclasses.fields(METHOD)}
    assert differs(wrong(**fields | {"polyak_target": "target" in old}))


def test_what_acsac_chooses_has_the_values_and_lengths_of_the_study():
    """Means over many draws of proposals: of the targets by the target critics, of the policy by the online."""
    mdp, q, target_q, state = problem()
    size, n = len(q[0]), 3000
    obs = torch.eye(size, dtype=torch.float64).repeat_interleave(n, 0)
    for critic, noisy in ((state.critic, q), (state.target_critic, target_q)):
        want = exact_max(noisy.min(0), mdp.chance, N)
        value, _, length = METHOD._best(critic, state.flow, obs, rng.key(3))
        value, length = value.view(size, n).numpy(), length.view(size, n).numpy()
        error = value.std(1) / n**0.5 + 1e-9
        assert (np.abs(value.mean(1) - want.value) < 4.5 * error).all()
        share = (length[..., None] == np.arange(1, H + 1)).mean(1)
        assert np.abs(share - want.share.sum(1)).max() < 4.5 * (0.25 / n) ** 0.5
    plan = METHOD.act(state, obs[:n], rng.key(4))
    best = METHOD._best(state.critic, state.flow, obs[:n], rng.key(4))
    assert torch.equal(plan.length, best[2])
