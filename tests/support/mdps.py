"""Small Markov decision processes with exact values, and data of them in exact proportions."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offbench import rng
from offbench.data.replay import Episode, ReplayData, from_episodes
from offbench.types import Plan, Policy, TimeStep


@dataclass(frozen=True)
class MDP:
    """Every action of a state leads to one of k successors, equally often."""

    successor: np.ndarray  # (S, A, k) int
    reward: np.ndarray  # (S, A)
    ends: np.ndarray  # (S, A) bool: the environment terminates

    @property
    def sizes(self) -> tuple[int, int]:
        return self.reward.shape

    def q(self, policy: np.ndarray, gamma: float) -> np.ndarray:
        """(S, A) exact values of a policy (S, A) of probabilities."""
        n_s, n_a = self.sizes
        p = np.zeros((n_s, n_a, n_s))
        for s, a, s_ in product(range(n_s), range(n_a), range(n_s)):
            p[s, a, s_] = (self.successor[s, a] == s_).mean() * (not self.ends[s, a])
        r_pi = (policy * self.reward).sum(1)
        p_pi = np.einsum("sa,sat->st", policy, p)
        v = np.linalg.solve(np.eye(n_s) - gamma * p_pi, r_pi)
        return self.reward + gamma * p @ v

    def start_values(self, policy: np.ndarray, gamma: float, states: np.ndarray) -> np.ndarray:
        return (policy * self.q(policy, gamma)).sum(1)[states]


def random_mdp(seed: int = 0, *, k: int = 1, terminals: bool = False) -> MDP:
    generator = np.random.default_rng(seed)
    ends = np.zeros((4, 3), bool)
    if terminals:
        ends[[0, 2], [1, 2]] = True
    return MDP(generator.integers(4, size=(4, 3, k)), generator.uniform(-1, 2, (4, 3)), ends)


def random_policy(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(3), 4)


def greedy(choices: list[int]) -> np.ndarray:
    return np.eye(3)[choices]


def single_steps(mdp: MDP) -> tuple[ReplayData, np.ndarray]:
    """Each (state, action, successor) once, an episode that is cut after it; and the states they begin in."""
    n_s, n_a = mdp.sizes
    found = []
    for s, a, s_ in product(range(n_s), range(n_a), range(mdp.successor.shape[2])):
        found.append(_episode(mdp, [s, mdp.successor[s, a, s_]], [a]))
    starts = np.repeat(np.arange(n_s), n_a * mdp.successor.shape[2])
    return from_episodes(found), starts


def walks(
    mdp: MDP, behaviour: np.ndarray, n: int, limit: int, seed: int = 0
) -> tuple[ReplayData, np.ndarray]:
    """n episodes of a policy, cut at a time limit; and the states they begin in."""
    generator, found, starts = np.random.default_rng(seed), [], []
    for i in range(n):
        states, actions = [i % mdp.sizes[0]], []
        while len(actions) < limit and not (actions and mdp.ends[states[-2], actions[-1]]):
            a = generator.choice(mdp.sizes[1], p=behaviour[states[-1]])
            actions.append(a)
            states.append(generator.choice(mdp.successor[states[-1], a]))
        found.append(_episode(mdp, states, actions))
        starts.append(states[0])
    return from_episodes(found), np.array(starts)


def _episode(mdp: MDP, states: list[int], actions: list[int]) -> Episode:
    n_s, n_a = mdp.sizes
    at = states[: len(actions)], actions
    return Episode(np.eye(n_s)[states], np.eye(n_a)[actions], mdp.reward[at], mdp.ends[at])


def acting(policies: np.ndarray) -> tuple[Policy, Tensor]:
    """N tabular policies (N, S, A) as a `Policy` with its state; one-hot actions."""

    def act(state: Tensor, step: TimeStep, memory: None, key: Tensor) -> tuple[Tensor, None]:
        p = torch.einsum("neo,noa->nea", step.obs, state)
        u = torch.stack([rng.uniform(k, (), torch.float64) for k in key.flatten()])
        choice = (p.cumsum(-1) < u.view(*key.shape, 1)).sum(-1).clamp(max=p.shape[-1] - 1)
        return torch.nn.functional.one_hot(choice, p.shape[-1]).to(p.dtype), None

    return Policy(lambda n, e: None, act), torch.as_tensor(policies, dtype=torch.float32)


def table_policy(plans: np.ndarray, lengths: np.ndarray | None = None) -> tuple[Policy, Tensor]:
    """One policy of plans (S, h) of actions, of which `lengths` (S,) are executed; one-hot."""
    whole = torch.eye(3)[torch.as_tensor(plans)].flatten(1)

    def act(state: Tensor, step: TimeStep, memory: None, key: Tensor) -> tuple[Any, None]:
        at = step.obs.argmax(-1)
        plan = state[torch.arange(len(state))[:, None], at]
        return (plan if lengths is None else Plan(plan, torch.as_tensor(lengths)[at])), None

    return Policy(lambda n, e: None, act), whole[None]


def plan_values(mdp: MDP, plans: np.ndarray, lengths: np.ndarray, gamma: float) -> np.ndarray:
    """(S,) exact values of plans in an MDP without chance."""
    v = np.zeros(mdp.sizes[0])
    for _ in range(300):
        new = np.zeros_like(v)
        for s in range(len(v)):
            at, total, discount = s, 0.0, 1.0
            for a in plans[s][: lengths[s]]:
                total += discount * mdp.reward[at, a]
                discount *= gamma * (not mdp.ends[at, a])
                at = mdp.successor[at, a, 0]
            new[s] = total + discount * v[at]
        v = new
    return v
