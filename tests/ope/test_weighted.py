"""Importance-weighted estimates held to exact values of small MDPs."""

from itertools import product

import numpy as np
import pytest
import torch
from support.mdps import _episode, random_mdp, random_policy
from support.mutants import finds, mutated_module

from offbench.data.replay import Episode, from_episodes
from offbench.ope import weighted
from offbench.ope.weighted import doubly_robust, wis

GAMMA, T = 0.9, 3
EXACT = 1e-2


def every_walk(terminals: bool = False):
    """Each walk of T steps from each state, as often as a uniform policy makes it; and what the policies earn."""
    mdp, pi = random_mdp(6, terminals=terminals), random_policy(3)
    found, values = [], []
    for start, actions in product(range(4), product(range(3), repeat=T)):
        states, taken = [start], []
        for a in actions:
            if taken and mdp.ends[states[-2], taken[-1]]:
                break
            taken.append(a)
            states.append(int(mdp.successor[states[-1], a, 0]))
        p = np.prod([pi[s, a] for s, a in zip(states, taken)])
        total = sum(GAMMA**t * mdp.reward[s, a] for t, (s, a) in enumerate(zip(states, taken)))
        # a walk that ended stands for all that begin like it
        values.append(p * total * 3.0 ** -(T - len(taken)) / 4)
        found.append(_episode(mdp, states, taken))
    data = from_episodes(found)
    s, a = data.obs.argmax(1), data.action.argmax(1)
    ratio = torch.as_tensor(np.log(pi * 3))[s, a]
    return mdp, pi, data, ratio, float(np.sum(values))


@pytest.mark.parametrize("terminals", [False, True])
def test_wis_is_exact_where_every_walk_is_there(terminals):
    _, _, data, ratio, want = every_walk(terminals)
    found = wis(data, ratio, GAMMA)
    assert abs(float(found.terms.mean()) - want) < EXACT
    assert 1 < found.effective < data.n_episodes
    # without weights it is what the uniform policy earns
    assert abs(float(wis(data, 0 * ratio, GAMMA).terms.mean()) - want) > 10 * EXACT
    assert wis(data, 0 * ratio, GAMMA).effective == pytest.approx(data.n_episodes)


def test_dr_with_exact_values_is_exact_whatever_the_weights_and_has_no_variance():
    """Over an endless horizon: what follows a cut is V."""
    mdp, pi, data, ratio, _ = every_walk()
    q = mdp.q(pi, GAMMA)
    v = (pi * q).sum(1)
    s, a = data.obs.argmax(1), data.action.argmax(1)
    given = torch.as_tensor(q)[s, a], torch.as_tensor(v)[s]
    want = v.mean()
    for weights in (ratio, 0 * ratio + 0.1 * torch.arange(len(ratio))):
        found = doubly_robust(data, weights, *given, GAMMA)
        assert abs(float(found.terms.mean()) - want) < EXACT


@pytest.mark.parametrize("terminals", [False, True])
def test_dr_with_exact_weights_is_exact_whatever_the_values_within_the_walks(terminals):
    mdp, pi, data, ratio, want = every_walk(terminals)
    generator = np.random.default_rng(0)
    q = generator.normal(size=mdp.sizes)
    # consistent: V is the mean of Q; and 0 where the walks are cut, as they are all there is
    v = (pi * q).sum(1)
    s, a = data.obs.argmax(1), data.action.argmax(1)
    values = torch.as_tensor(v)[s]
    values[data.last.unique()] = 0.0
    found = doubly_robust(data, ratio, torch.as_tensor(q)[s, a], values, GAMMA)
    assert abs(float(found.terms.mean()) - want) < EXACT


def test_an_episode_that_was_cut_early_says_nothing_of_later_steps():
    obs = np.zeros((3, 1))
    whole = [obs, np.zeros((2, 1)), np.array([1.0, 5.0]), np.array([False, False])]
    cut = [obs[:2], np.zeros((1, 1)), np.array([3.0]), np.array([False])]
    ended = [obs[:2], np.zeros((1, 1)), np.array([3.0]), np.array([True])]
    for second, want in ((cut, 2 + 0.9 * 5), (ended, 2 + 0.9 * 2.5)):
        data = from_episodes([Episode(*whole), Episode(*second)])
        found = wis(data, torch.zeros(len(data.last)), 0.9)
        assert float(found.terms.mean()) == pytest.approx(want)


def test_the_terms_vary_as_the_estimate_does_from_sample_to_sample():
    _, _, data, ratio, _ = every_walk()
    from offbench.data.compose import take

    generator, found, said = np.random.default_rng(0), [], []
    first = torch.cat([torch.zeros(1, dtype=torch.long), data.last.unique()[:-1] + 1])
    length = data.last.unique() - first + 1
    for _ in range(200):
        chosen = np.sort(generator.integers(data.n_episodes, size=60))
        own = take(data, chosen)
        rows = torch.cat([torch.arange(int(first[i]), int(first[i] + length[i])) for i in chosen])
        made = wis(own, ratio[rows], GAMMA)
        found.append(float(made.terms.mean()))
        said.append(float(made.terms.std() / 60**0.5))
    assert np.mean(said) == pytest.approx(np.std(found), rel=0.25)


# --- held to the equations, episode by episode


def recorded(seed: int = 0, n: int = 12):
    """(data, log ratios, Q, V) of episodes of one to five steps, half of them ended by the environment."""
    generator, parts = np.random.default_rng(seed), []
    for i in range(n):
        steps = 5 if i == 0 else int(generator.integers(1, 6))
        ends = np.zeros(steps, bool)
        ends[-1] = i % 2 == 0
        what = np.zeros((steps + 1, 1)), np.zeros((steps, 1)), generator.normal(size=steps), ends
        parts.append(Episode(*what))
    data = from_episodes(parts)
    return data, *torch.as_tensor(generator.normal(size=(3, len(data.last))))


def by_hand(data, ratio, gamma: float, times=None, q=None, v=None) -> float:
    """The sums of both estimators as they are written, with each episode there `times` (E,)."""
    first = [0, *(int(x) + 1 for x in data.last.unique())][:-1]
    length = [int(data.last[f]) - f for f in first]
    times, total = [1.0] * len(first) if times is None else times, 0.0
    # of an episode at each step, None where nothing is known
    rho: list[list[float | None]] = []
    for f, n in zip(first, length):
        own: list[float | None] = list(np.exp(np.cumsum(ratio[f : f + n].numpy())))
        ended = bool(data.terminal[f + n - 1])
        rho.append(own + [own[-1] if ended else None] * (max(length) - n))

    def share(i: int, t: int) -> float:
        if t < 0:
            return times[i] / sum(times)
        known = [(c, r[t]) for c, r in zip(times, rho) if r[t] is not None]
        everything = sum(c * r for c, r in known)
        mine = rho[i][t]
        return times[i] * mine / everything if mine is not None and everything > 0 else 0.0

    for i, (f, n) in enumerate(zip(first, length)):
        for t in range(n):
            reward = float(data.reward[f + t]) - (0.0 if q is None else float(q[f + t]))
            total += gamma**t * share(i, t) * reward
            total += 0.0 if v is None else gamma**t * share(i, t - 1) * float(v[f + t])
        if v is not None and not data.terminal[f + n - 1]:
            total += gamma**n * share(i, n - 1) * float(v[f + n])
    return total


def estimates(code, data, ratio, q, v):
    """Both estimators with what by_hand needs for each."""
    yield code.wis(data, ratio, GAMMA), {}
    yield code.doubly_robust(data, ratio, q, v, GAMMA), {"q": q, "v": v}


def test_estimates_are_the_sums_of_the_equations(code=weighted):
    for seed in range(3):
        data, ratio, q, v = recorded(seed)
        for found, values in estimates(code, data, ratio, q, v):
            want = by_hand(data, ratio, GAMMA, **values)
            assert float(found.terms.mean()) == pytest.approx(want, abs=1e-6)


def test_terms_are_what_an_episode_adds_if_it_is_there_more_often(code=weighted):
    data, ratio, q, v = recorded()
    for found, values in estimates(code, data, ratio, q, v):
        for i, term in enumerate(found.terms.tolist()):
            more, less = (
                by_hand(data, ratio, GAMMA, [1 + h * (j == i) for j in range(12)], **values)
                for h in (1e-4, -1e-4)
            )
            slope = (more - less) / 2e-4
            assert term == pytest.approx(float(found.terms.mean()) + 12 * slope, abs=1e-5)


def test_effective_episodes_are_counted_at_each_step_and_discounted(code=weighted):
    def data_of(ends: bool):
        obs = np.zeros((3, 1))
        whole = Episode(obs, obs[:2], np.array([1.0, 5.0]), np.array([False, False]))
        return from_episodes([whole, Episode(obs[:2], obs[:1], np.array([3.0]), np.array([ends]))])

    # ratios of 3 and 2, and of 1; the rows of last observations count for nothing
    ratio = torch.tensor([3.0, 2.0, 99.0, 1.0, 99.0]).log()
    at_first = 1 / (0.75**2 + 0.25**2)
    for ends, later in ((False, 1.0), (True, 1 / ((6 / 7) ** 2 + (1 / 7) ** 2))):
        found = code.wis(data_of(ends), ratio, 0.5)
        assert found.effective == pytest.approx((at_first + 0.5 * later) / 1.5)
        share = 6 / 7 if ends else 1.0
        assert float(found.terms.mean()) == pytest.approx(0.75 + 0.25 * 3 + 0.5 * share * 5)


def test_a_policy_that_makes_no_recorded_decision_has_no_episode(code=weighted):
    data, ratio, q, v = recorded()
    never = torch.full_like(ratio, -torch.inf)
    found = code.wis(data, never, GAMMA)
    assert found.effective == 0 and (found.terms == 0).all()
    # what is left is V of the first observations
    starts = torch.cat([torch.zeros(1, dtype=torch.long), data.last.unique()[:-1] + 1])
    robust = code.doubly_robust(data, never, q, v, GAMMA)
    assert float(robust.terms.mean()) == pytest.approx(float(v[starts].mean()))
    # one episode only
    one = torch.where(data.episode == data.episode[0], ratio, -torch.inf)
    assert code.wis(data, one, GAMMA).effective == pytest.approx(1)


def test_what_was_recorded_after_a_terminal_is_no_part_of_an_episode(code=weighted):
    """As in OGBench's single tasks, whose trajectories go on at the goal."""
    generator, whole, ended, kept = np.random.default_rng(1), [], [], []
    for steps, stop in ((5, 2), (4, 4), (5, 1), (3, 3), (4, 2)):
        obs, action = np.zeros((steps + 1, 1)), np.zeros((steps, 1))
        reward, ends = generator.normal(size=steps), np.arange(1, steps + 1) == stop
        # a second terminal later on, and an episode without one
        ends[-1] |= stop == 2
        ends &= steps != 3
        whole.append(Episode(obs, action, reward, ends))
        ended.append(Episode(obs[: stop + 1], action[:stop], reward[:stop], ends[:stop]))
        first = sum(len(x.obs) for x in whole[:-1])
        kept += range(first, first + stop + 1)
    data, cut = from_episodes(whole, terminal_inside=True), from_episodes(ended)
    ratio, q, v = torch.as_tensor(generator.normal(size=(3, len(data.last))))
    of_cut = estimates(code, cut, ratio[kept], q[kept], v[kept])
    for (found, _), (want, _) in zip(estimates(code, data, ratio, q, v), of_cut, strict=True):
        assert torch.allclose(found.terms, want.terms, atol=1e-12)
        assert found.effective == pytest.approx(want.effective)


CHECKS = (
    test_estimates_are_the_sums_of_the_equations,
    test_terms_are_what_an_episode_adds_if_it_is_there_more_often,
    test_effective_episodes_are_counted_at_each_step_and_discounted,
    test_a_policy_that_makes_no_recorded_decision_has_no_episode,
    test_what_was_recorded_after_a_terminal_is_no_part_of_an_episode,
)

REWARD = "torch.where(steps.inside, data.reward[steps.row].double(), 0.0)"
ERROR = "torch.where(steps.inside, (data.reward - q)[steps.row].double(), 0.0)"
VALUE = "torch.where(steps.inside, v[steps.row].double(), 0.0)"
RATIO = "torch.where(steps.inside, log_ratio[steps.row].double(), 0.0)"
FIRST = "torch.full_like(weight[:, :1], 1 / n)"
MUTANTS = {
    "rewards after the end": (REWARD, "data.reward[steps.row].double()"),
    "errors after the end": (ERROR, "(data.reward - q)[steps.row].double()"),
    "Q is added": ("(data.reward - q)", "(data.reward + q)"),
    "no Q": ("(data.reward - q)", "data.reward"),
    "no rewards": ("(data.reward - q)", "(-q)"),
    "weights of the same step for V": (f"torch.cat([{FIRST}, weight], 1)", "weight"),
    "the first V has other weights": (FIRST, "weight[:, :1]"),
    "the first V is a sum": ("[:, :1], 1 / n)", "[:, :1], 1)"),
    "V after the end": (VALUE, "v[steps.row].double()"),
    "V is that of one row": (VALUE, "torch.where(steps.inside, v[steps.row[:, :1]].double(), 0.0)"),
    "V after a terminal": ("goes_on = ~steps.ended", "goes_on = steps.last > 0"),
    "no V after a cut": ("goes_on = ~steps.ended", "goes_on = steps.last < 0"),
    "V of the step before a cut": ("v[steps.last[goes_on]]", "v[steps.last[goes_on] - 1]"),
    "V in the place of another": ("length[goes_on]] =", "length[goes_on] - 1] ="),
    "DR without errors": ("[(weight, error), (before, after)]", "[(before, after)]"),
    "DR without V": ("[(weight, error), (before, after)]", "[(weight, error)]"),
    "a step too many": ("inside = row < last[:, None]", "inside = row <= last[:, None]"),
    "a step too few": ("inside = row < last[:, None]", "inside = row < last[:, None] - 1"),
    "ended by the row after the last": (
        "ended = data.terminal[last - 1]",
        "ended = data.terminal[last]",
    ),
    "what was recorded after a terminal counts": (
        "first_rows(data), end_rows(data)",
        "(first := first_rows(data)), data.last[first]",
    ),
    "what ended is cut": ("~inside & ~ended[:, None]", "~inside"),
    "what was cut has ended": ("~inside & ~ended[:, None]", "~inside & ended[:, None]"),
    "ratios after the end": (RATIO, "log_ratio[steps.row].double()"),
    "each ratio alone": (RATIO + ".cumsum(1)", RATIO),
    "products over episodes": (".cumsum(1)", ".cumsum(0)"),
    "a cut is no cut": ("own.masked_fill(steps.cut, -torch.inf)", "own"),
    "normalised over steps": ("torch.logsumexp(own, 0)", "torch.logsumexp(own, 1, keepdim=True)"),
    "not normalised": ("(own - torch.logsumexp(own, 0))", "own"),
    "logarithms of weights": (
        "(own - torch.logsumexp(own, 0)).exp()",
        "(own - torch.logsumexp(own, 0))",
    ),
    "no episode is not a number": (".nan_to_num(0.0)", ""),
    "as many as weigh anything": ("1 / weight.square().sum(0)", "(weight > 0).double().sum(0)"),
    "the largest weight": ("1 / weight.square().sum(0)", "1 / weight.amax(0)"),
    "no episode counts as one": (
        "torch.where(weight.sum(0) > 0, effective, 0.0)",
        "torch.where(weight.sum(0) > 0, effective, 1.0)",
    ),
    "all steps count alike": ("(effective * discount).sum() / discount.sum()", "effective.mean()"),
    "steps of a sum": (" / discount.sum())", ")"),
    "discounts of the next step": ("discount = gamma**steps", "discount = gamma ** (steps + 1)"),
    "not discounted": ("discount = gamma**steps", "discount = 1.0 + 0 * steps"),
    "terms around 0": ("weight * (x - mean)", "weight * x"),
    "terms without discount": ("(discount * weight * (x - mean))", "(weight * (x - mean))"),
    "terms n times too near": ("return total + n * moved", "return total + moved"),
    "terms the other way": ("return total + n * moved", "return total - n * moved"),
    "terms of the last part": ("moved = moved + (", "moved = ("),
    "mean of the last part": ("total = total + (", "total = ("),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_found(name):
    assert finds(mutated_module(weighted, *MUTANTS[name]), CHECKS)


def test_checks_of_mistakes_pass_for_the_source():
    assert not finds(mutated_module(weighted, "DR goes on with V", "DR goes on with V"), CHECKS)
