"""DoC, DT and averaged returns on ice: `python tests/luck_and_skill.py lake`, twenty minutes of one core.

gymnasium's FrozenLake-v1, 4x4: an action goes where it is meant to with probability `firm` (1/3 is gymnasium's own
ice, and the authors'), else to one of its sides. The data are episodes of up to 100 steps of a policy that takes an
action at random with probability `epsilon` and otherwise the `behaviour`: the best action, as in the authors' data
(theirs are a trained DQN's, with 0.4 at random), or the second best.

Writes results/luck/frozenlake.csv, a row for each policy, and frozenlake_means.csv, their means over data sets with
95 % intervals (Student's t). `success` is the chance of the goal within 100 steps. `form`:

    limit     what endless data teach, exact
    tables    counted in a data set, exact; DoC takes each place for a bandit that pays what came of the episode
    networks  the library's methods, in 100 episodes on the same ice; a data set for all seeds of training

`entry`: doc; no_constraint; dt, asked for success; average, DT on returns averaged over the steps of the same place
and action; bc. `acts`: greedy takes the likeliest action, as the library does, sampled draws it. `asked` is the share
of the largest return, or average, that networks were asked for. `over_dt` is the success over that of dt, asked for
the largest, on the same data set.
"""

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import luck_and_skill as study
import numpy as np
import pandas as pd
import torch
from torch.func import vmap

from offbench import rng
from offbench.data.pipeline import Pipeline, make_pipeline
from offbench.data.replay import Episode, ReplayData, from_episodes
from offbench.data.views import Window
from offbench.training.loop import train
from offbench.types import Policy, Spec, TimeStep

LAKE = Spec(obs_dim=16, action_dim=4, gamma=1.0, max_episode_steps=100, discrete=True)
GOAL, STEPS = 15, 100


class Case(NamedTuple):
    behaviour: str
    epsilon: float
    firm: float
    episodes: int


AUTHORS = Case("best", 0.4, 1 / 3, 100)
SECOND = Case("second", 0.5, 1 / 3, 100)
CASES = (
    *(AUTHORS._replace(episodes=n) for n in (100, 1000, 10_000)),
    AUTHORS._replace(epsilon=0.7), AUTHORS._replace(firm=0.8),
    *(SECOND._replace(episodes=n) for n in (100, 1000, 10_000)),
)  # fmt: skip
WITH_NETWORKS = (AUTHORS, CASES[1], SECOND._replace(episodes=1000))


class Ice(NamedTuple):
    moves: np.ndarray  # (place, action, place) probabilities
    ends: np.ndarray  # (place,) bool, the goal and the holes


@cache
def ice(firm: float) -> Ice:
    import gymnasium

    lake: Any = gymnasium.make("FrozenLake-v1", is_slippery=True, success_rate=firm)
    moves, ends = np.zeros((16, 4, 16)), np.zeros(16, bool)
    for s, row in lake.unwrapped.P.items():
        for a, ways in row.items():
            for p, t, _, end in ways:
                moves[s, a, t] += p
                ends[t] |= end
    return Ice(moves, ends)


def values(policy: np.ndarray, on: Ice, steps: int = STEPS) -> np.ndarray:
    """(..., place) chance of the goal within `steps` of policies (..., place, action)."""
    goal = np.arange(16) == GOAL
    v = np.broadcast_to(goal.astype(float), policy.shape[:-1])
    for _ in range(steps):
        v = np.where(on.ends, goal, (policy * after(v, on)).sum(-1))
    return v


def after(v: np.ndarray, on: Ice) -> np.ndarray:
    """(..., place, action) what v (..., place) is on average after an action."""
    return np.einsum("sat,...t->...sa", on.moves, v)


@cache
def behaviour(case: Case) -> np.ndarray:
    """(place, action) probabilities of the policy that acts in the data."""
    on = ice(case.firm)
    v = np.zeros(16)
    for _ in range(1000):
        # discounted, so that the shorter of two ways counts
        v = np.where(on.ends, np.arange(16) == GOAL, 0.99 * after(v, on).max(-1))
    order = after(v, on).argsort(-1, kind="stable")
    prefers = order[:, -1 if case.behaviour == "best" else -2]
    return (1 - case.epsilon) * np.eye(4)[prefers] + case.epsilon / 4


def slide(place: np.ndarray, action: np.ndarray, on: Ice, u: np.ndarray) -> np.ndarray:
    """Where actions lead, by uniform draws u."""
    return (on.moves[place, action].cumsum(-1) < u[..., None]).sum(-1).clip(max=GOAL)


def walked(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (101, episode), actions (100, episode) and the number of steps (episode,) of a data set."""
    on, policy, draw = ice(case.firm), behaviour(case).cumsum(-1), np.random.default_rng(seed)
    places = np.zeros((STEPS + 1, case.episodes), int)
    actions = np.zeros((STEPS, case.episodes), int)
    for t, s in enumerate(places[:-1]):
        u, v = draw.random((2, case.episodes))
        actions[t] = (policy[s] < u[:, None]).sum(-1).clip(max=3)
        places[t + 1] = np.where(on.ends[s], s, slide(s, actions[t], on, v))
    return places, actions, (~on.ends[places[:-1]]).sum(0)


def walks(case: Case, seed: int) -> ReplayData:
    """The episodes of a data set."""
    made = []
    for s, a, n in zip(*(x.T for x in walked(case, seed)), strict=True):
        reward, end = np.zeros(n, np.float32), np.zeros(n, bool)
        reward[-1], end[-1] = s[n] == GOAL, ice(case.firm).ends[s[n]]
        one_hot = lambda x, n: np.eye(n, dtype=np.float32)[x]
        made.append(Episode(one_hot(s[: n + 1], 16), one_hot(a[:n], 4), reward, end))
    return from_episodes(made)


# --- with tables


def counted(case: Case, seed: int) -> np.ndarray:
    """(place, action, 2) steps of a data set, by whether the episode reached the goal."""
    places, actions, n = walked(case, seed)
    cell = 8 * places[:-1] + 2 * actions + (places[-1] == GOAL)
    taken = np.arange(STEPS)[:, None] < n
    return np.bincount(cell[taken], minlength=128).reshape(16, 4, 2).astype(float)


def policies(steps: np.ndarray) -> dict[str, np.ndarray]:
    """Entry -> policies (..., place, action) from steps (..., place, action, 2) or their probabilities.

    Where nothing was asked for successfully the data are cloned, where nobody was actions are equal.
    """
    n, won = steps.sum(-1), steps[..., 1]
    average = won / np.maximum(n, 1e-300)
    largest = np.where(n > 0, average, -1).max(-1, keepdims=True)
    shares = {"bc": n, "dt": won, "average": n * (average >= largest - 1e-12)}
    clones = _shares(n, np.full_like(n, 0.25))
    return {entry: _shares(x, clones) for entry, x in shares.items()}


def _shares(x: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    total = x.sum(-1, keepdims=True)
    return np.where(total > 0, x / np.maximum(total, 1e-300), otherwise)


def bandits(steps: np.ndarray, weight: float) -> np.ndarray:
    """DoC's policies (N, place, action): each place a bandit, an arm's reward whether the goal was reached."""
    total = steps.sum((-1, -2))
    known = total > 0
    data = torch.from_numpy(steps[known] / total[known][:, None, None])
    policy = np.full(steps.shape[:-1], 0.25)
    policy[known] = study.tables(data, weight)["arms"].numpy()
    return policy


def greedy(policy: np.ndarray) -> np.ndarray:
    return np.eye(4)[policy.argmax(-1)]


def of_tables(case: Case, n_sets: int) -> list[dict]:
    """Rows of the forms `limit` and `tables`."""
    on, acting = ice(case.firm), behaviour(case)
    lasting = after(values(acting, on, 2000), on)
    limit = policies(acting[..., None] * np.stack([1 - lasting, lasting], -1))
    steps = np.stack([counted(case, seed) for seed in range(n_sets)])
    made = policies(steps) | {
        "doc": bandits(steps, 3.0),
        "no_constraint": bandits(steps, 0.0),
    }
    rows = [{"form": "limit", "entry": "data", "success": values(acting, on)[0]}]
    for acts, of in (("greedy", greedy), ("sampled", lambda x: x)):
        for entry, policy in limit.items():
            got = values(of(policy), on)[0]
            rows.append({"form": "limit", "entry": entry, "acts": acts, "success": got})
        for entry, policy in made.items():
            for i, got in enumerate(values(of(policy), on)[:, 0]):
                row = {"form": "tables", "entry": entry, "acts": acts, "data_set": i}
                rows.append(row | {"success": got})
    return [case._asdict() | row for row in rows]


# --- with networks


def successes(
    method: Any, state: Any, pipeline: Pipeline, on: Ice, *, n: int, episodes: int = 100
) -> np.ndarray:
    """(n,) share of episodes in which each of n seeds' policies reaches the goal; all meet the same ice."""
    act = lambda s, step, c, key: (vmap(method.act)(s, step.obs, key[:, 0]), c)
    policy = pipeline.policy(Policy(lambda n, e: None, act))
    place, draw = np.zeros((n, episodes), int), np.random.default_rng(7)
    reward, memory = torch.zeros(n, episodes), policy.init(n, episodes)
    for t in range(STEPS):
        obs = torch.eye(16)[torch.from_numpy(place)]
        key = rng.split(rng.fold(rng.key(7), t), n)[:, None].expand(n, episodes)
        step = TimeStep(obs, reward, torch.full((n, episodes), t == 0))
        action, memory = policy.act(state, step, memory, key)
        moved = slide(place, action.argmax(-1).numpy(), on, draw.random(episodes)[None])
        place = np.where(on.ends[place], place, moved)
        if on.ends[place].all():
            break
    return (place == GOAL).mean(1)


def entries() -> dict[str, tuple[Any, Window]]:
    larger = {"width": 32, "layers": 1}
    dt = replace(study.METHODS["dt"], **larger)
    doc = {
        name: replace(study.METHODS[name], **larger, past=4) for name in ("doc", "no_constraint")
    }
    asked = {"dt": (dt, Window(4, 1.0)), "average": (dt, Window(4, 1.0))}
    return {name: (method, Window(12, 1.0)) for name, method in doc.items()} | asked


def of_networks(case: Case, data_set: int, seeds: list[int], stops: list[int]) -> list[dict]:
    """Rows of the form `networks` on one data set; with a return to ask for, half of the largest too."""
    data, on, rows = walks(case, data_set), ice(case.firm), []
    for entry, (method, view) in entries().items():
        pipeline = make_pipeline(data, view=view, batch_size=32, needs=method.needs)
        if entry == "average":
            pipeline = study.averaged(pipeline)
        largest = pipeline.view.target_return
        targets = (1.0, 0.5) if entry in ("dt", "average") else (None,)
        for point in train(
            method, pipeline, LAKE, seeds=seeds, n_updates=stops[-1], backend="vmap", stop_at=stops
        ):  # fmt: skip
            for asked in targets:
                asking = pipeline.view._replace(target_return=(asked or 1.0) * largest)
                asks = pipeline._replace(view=asking)
                got = successes(method, point.state, asks, on, n=len(seeds))
                row = {"form": "networks", "entry": entry, "acts": "greedy", "data_set": data_set}
                row |= {"asked": asked, "update": point.update}
                rows += [row | {"seed": s, "success": x} for s, x in zip(seeds, got, strict=True)]
    return [case._asdict() | row for row in rows]


def beside_dt(table: pd.DataFrame) -> pd.DataFrame:
    """With `over_dt`: the success over that of DT, asked for the largest return, on the same data set."""
    same = [*Case._fields, "form", "acts", "data_set", "update"]
    dt = (
        table[(table.entry == "dt") & ~(table.asked < 1)].groupby(same, dropna=False).success.mean()
    )
    beside = table.merge(dt.rename("dt").reset_index(), "left", on=same)
    return table.assign(over_dt=(table.success - beside.pop("dt").to_numpy()))


def rows(n_sets: int = 20, trained_on: int = 5) -> pd.DataFrame:
    """Of frozenlake.csv."""
    made = [row for case in CASES for row in of_tables(case, n_sets)]
    for data_set in range(trained_on):
        for case in WITH_NETWORKS:
            made += of_networks(case, data_set, [0, 1], [200, 400])
    return beside_dt(pd.DataFrame(made))
