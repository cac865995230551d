"""Stacked policies x environments -> one row per episode.

Every method and seed faces the same episodes: their reset seeds are a hash of (task, stream,
number). Episodes are dealt to environments beforehand, so a short episode cannot make room for more
short ones, and an episode's noise depends on its number alone. Evaluation reads the state and draws
from streams of its own: it cannot change training.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.data.pipeline import Pipeline
from offbench.errors import UserError
from offbench.tasks.environments import evaluation_env
from offbench.tasks.task import Task
from offbench.training.imperative import Imperative
from offbench.training.step import bind
from offbench.training.tracing import Program
from offbench.types import Method, Plan, Policy, Spec, TimeStep

if TYPE_CHECKING:
    import gymnasium
    import numpy as np
    import pandas as pd

    from offbench.results.schema import Stream


def env_seeds(task_id: str, stream: "Stream", n: int) -> list[int]:
    """Reset seeds of the first n episodes of a stream: the same for every method and seed."""
    return [_number(f"{task_id}/{stream}/{i}") % 2**31 for i in range(n)]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


class EnvPool:
    """Environments of one task, made when first needed and used again for every evaluation."""

    def __init__(self, task: Task):
        self.task = task
        self._envs: list[gymnasium.Env] = []

    def take(self, n: int) -> "list[gymnasium.Env]":
        while len(self._envs) < n:
            self._envs.append(evaluation_env(self.task))
        return self._envs[:n]

    def check(self, spec: Spec) -> None:
        """Raises UserError where the dataset's sizes are not the environment's."""
        env = self.take(1)[0]
        for name, space, size in (
            ("observation", env.observation_space, spec.obs_dim),
            ("action", env.action_space, spec.action_dim),
        ):
            if space.shape != (size,):
                raise UserError(
                    f"{self.task.id}: the dataset's {name}s have {size} features, "
                    f"environment {self.task.env} has {space.shape}"
                )

    def units(self) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, int | None]:
        """Lower and upper bounds (A,) of the actions that the environment itself takes, and the number of
        the first choice where they are discrete. None where they are in [-1, 1], or continuous."""
        from gymnasium.spaces import Discrete
        from gymnasium.wrappers import RescaleAction

        env: Any = self.take(1)[0]
        if isinstance(space := env.unwrapped.action_space, Discrete):
            return None, None, int(space.start)
        while env is not env.unwrapped:
            if isinstance(env, RescaleAction):
                box: Any = env.env.action_space
                return tuple(box.low.tolist()), tuple(box.high.tolist()), None
            env = env.env
        return None, None, None

    def close(self) -> None:
        for env in self._envs:
            env.close()
        self._envs.clear()


class Expecting(NamedTuple):
    """What a policy with values remembers: the value of the decision that began each episode."""

    value: Tensor  # (N, E)


def make_policy(method: Method | Imperative, pipeline: Pipeline, *, values: bool = True) -> Policy:
    """The method's `act` for N seeds and E environments, as it acts in the raw environment.

    With `values`, of a method that has a `value`, that of each episode's first decision is remembered.
    """
    if isinstance(method, Imperative):
        return pipeline.policy(method.policy())
    valued = values and hasattr(method, "value")

    def one(state: Any, obs: Any, key: Tensor) -> Any:
        bound, inner = bind(method, state)
        decision = bound.act(inner, tree_map(lambda x: x[None], obs), key)
        return tree_map(lambda x: x[0], decision)  # (O,) -> (A,)

    def value_of_one(state: Any, obs: Any, decision: Any) -> Tensor:
        bound: Any
        bound, inner = bind(method, state)
        return bound.value(inner, *tree_map(lambda x: x[None], (obs, decision)))[0]  # (O,) -> ()

    stacked = vmap(vmap(one, in_dims=(None, 0, 0)))
    value = vmap(vmap(value_of_one, in_dims=(None, 0, 0)))
    programs: dict[torch.Size, Program] = {}

    def act(state: Any, step: TimeStep, carry: Any, key: Tensor) -> tuple[Any, Any]:
        obs = step.obs
        if key.shape not in programs:
            programs[key.shape] = Program(lambda x: stacked(*x), (state, obs, key))
        decision = programs[key.shape]((state, obs, key))
        planned = isinstance(decision, Plan)
        decision = (
            decision._replace(action=decision.action.clamp(-1, 1))
            if planned
            else decision.clamp(-1, 1)
        )
        # untraced: a sixth of evaluation at 130 steps an episode
        if valued and step.first.any():
            new = value(state, obs, decision).cpu()
            carry = Expecting(torch.where(step.first.cpu(), new, carry.value))
        return decision, carry

    if not valued:
        return pipeline.policy(Policy(lambda n_seeds, n_envs: (), act))
    start = lambda n_seeds, n_envs: Expecting(torch.zeros(n_seeds, n_envs))
    return pipeline.policy(Policy(start, act, gamma=pipeline.view.gamma))


def evaluate(
    policy: Policy,
    state: Any,
    task: Task,
    *,
    seeds: Sequence[int],
    episodes: int,
    stream: "Stream" = "test",
    update: int = 0,
    n_envs: int = 5,
    pool: EnvPool | None = None,
) -> "pd.DataFrame":
    """Runs `episodes` episodes with each stacked state; `seeds` names the stack's entries.

    `n_envs` environments per seed step together, their observations one forward pass. Episodes of a
    goal-conditioned task are dealt to its `task_ids` in turn: number i plays task_ids[i % len]. Returns one
    row per (member of the stack, episode), with EVALUATION_COLUMNS of `offbench.results.schema` and `member`.

    `success` is that of the last step; where it is the score, that of any step: D4RL and OGBench end an
    episode at the first success, Minari's antmaze goes on.

    `return` and `score` are of the raw rewards. `start_value` and `discounted_return` are there to be
    compared with each other, so both are on the rewards of the method's data, transformed as those are
    (minus the number of goals not met at every step of OGBench's single tasks, -1 where that is sparse; 0
    and at last 1 in D4RL's mazes, unless a transform shifts it), with the method's discount. The return
    adds up what was received and no bootstrap: where an episode was cut short (`truncated`), what would
    have followed, gamma ** length times a value, is not in it.
    """
    pool = pool or EnvPool(task)
    device = next(iter(torch.utils._pytree.tree_leaves(state))).device
    run = _Episodes(pool, policy, list(seeds), episodes, min(n_envs, episodes), stream, device)
    carry = policy.init(run.n_seeds, run.n_envs)
    with torch.no_grad():
        while run.active:
            step, key = run.observe()
            action, carry = policy.act(state, step, carry, key)
            run.step(action.cpu().numpy(), carry)
    return run.frame(update)


class _Episodes:
    """N x E slots; slot e of a seed plays episodes e, e + E, e + 2E, ..."""

    def __init__(
        self,
        pool: EnvPool,
        policy: Policy,
        seeds: list[int],
        episodes: int,
        n_envs: int,
        stream: "Stream",
        device: torch.device,
    ):
        import numpy as np

        self.task, self.seeds, self.stream = pool.task, seeds, stream
        self.n_seeds, self.n_envs, self.episodes = len(seeds), n_envs, episodes
        self.reset_seed = env_seeds(self.task.id, stream, episodes)
        self.envs = pool.take(self.n_seeds * n_envs)
        self.device = device
        self.rows: list[dict[str, Any]] = []
        stream_key = _number(f"{self.task.id}/{stream}")
        # (N, 1)
        self.seed_key = torch.stack([rng.fold(rng.key(s), stream_key) for s in seeds])[:, None]
        shape = (self.n_seeds, n_envs)
        # a Box: the pool has compared its shape with that of the data
        space: Any = self.envs[0].observation_space
        self.obs = np.zeros((*shape, *space.shape), np.float32)
        # the episode each slot plays
        self.number = np.tile(np.arange(n_envs), (self.n_seeds, 1))
        self.t = np.zeros(shape, np.int64)
        self.total = np.zeros(shape, np.float64)
        self.reward = np.zeros(shape, np.float32)  # of the last step
        # success at any step of the episode
        self.reached = np.zeros(shape, bool)
        self.policy, self.discounted = policy, np.zeros(shape, np.float64)
        self.active = [(n, e) for n in range(self.n_seeds) for e in range(n_envs)]
        for slot in self.active:
            self._reset(slot)

    def _reset(self, slot: tuple[int, int]) -> None:
        import numpy as np

        seed = self.reset_seed[self.number[slot]]
        kept = np.random.get_state()
        # OGBench's mazes draw their start from numpy's global generator, not from reset(seed)
        np.random.seed(seed)
        try:
            options = self.task.reset_options(int(self.number[slot]))
            obs, _ = self._env(slot).reset(seed=seed, options=options)
        finally:
            np.random.set_state(kept)
        self.obs[slot], self.t[slot], self.reward[slot] = obs, 0, 0.0
        self.total[slot] = self.discounted[slot] = 0.0
        self.reached[slot] = False

    def _env(self, slot: tuple[int, int]) -> "gymnasium.Env":
        return self.envs[slot[0] * self.n_envs + slot[1]]

    def observe(self) -> tuple[TimeStep, Tensor]:
        """The slots' time step and a key per slot that depends on seed, episode and time."""
        key = rng.fold(
            rng.fold(self.seed_key, torch.from_numpy(self.number)), torch.from_numpy(self.t)
        )
        obs, first = torch.from_numpy(self.obs), torch.from_numpy(self.t == 0)
        reward = torch.from_numpy(self.reward)
        step = TimeStep(obs.to(self.device), reward.to(self.device), first.to(self.device))
        return step, key.to(self.device)

    def step(self, action: "np.ndarray", carry: Any) -> None:
        """One step everywhere; `carry` is what the policy remembers of it."""
        still, gamma = [], self.policy.gamma
        for slot in self.active:
            obs, reward, terminated, truncated, info = self._env(slot).step(action[slot])
            self.obs[slot] = obs
            if gamma is not None:
                self.discounted[slot] += gamma ** self.t[slot] * self.policy.reward(reward)
            self.t[slot] += 1
            self.total[slot] += reward
            self.reward[slot] = reward
            self.reached[slot] |= bool(info.get("success", False))
            if terminated or truncated:
                self._record(slot, terminated, truncated, info, carry)
                self.number[slot] += self.n_envs
                if self.number[slot] >= self.episodes:
                    continue
                self._reset(slot)
            still.append(slot)
        self.active = still

    def _record(
        self, slot: tuple[int, int], terminated: bool, truncated: bool, info: dict, carry: Any
    ) -> None:
        episode, success = int(self.number[slot]), info.get("success")
        if success is None and self.task.score == "success":
            raise UserError(
                f"{self.task.id}: environment {self.task.env} reports no info['success'] at the end of an episode"
            )
        if self.task.score == "success":
            success = self.reached[slot]
        success = None if success is None else bool(success)
        # of a policy that executes chunks
        lengths = getattr(carry, "lengths", None)
        lengths = None if lengths is None else lengths[slot].tolist()
        inner = getattr(carry, "inner", carry)
        valued = self.policy.gamma is not None and isinstance(inner, Expecting)
        self.rows.append(
            {
                "member": slot[0],
                "seed": self.seeds[slot[0]],
                "episode": episode,
                "env_seed": self.reset_seed[episode],
                "return": float(self.total[slot]),
                "score": self.task.normalise(float(self.total[slot]), success),
                "length": int(self.t[slot]),
                "success": success,
                "terminated": bool(terminated),
                "truncated": bool(truncated),
                "plans": int(self.t[slot]) if lengths is None else sum(lengths),
                "chunk_lengths": lengths,
                "start_value": float(inner.value[slot]) if valued else None,
                "discounted_return": float(self.discounted[slot]) if valued else None,
            }
        )

    def frame(self, update: int) -> "pd.DataFrame":
        import pandas as pd

        from offbench.results.schema import typed

        frame = pd.DataFrame(self.rows).sort_values(["member", "episode"], ignore_index=True)
        return typed(frame.assign(stream=self.stream, update=update, task=self.task.id))
