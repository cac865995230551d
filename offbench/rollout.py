"""Evaluates stacked policies in vectorised environments: one row per episode.

Every method and seed plays the same episodes: their reset seeds are a hash of (task, stream,
number). Episodes are assigned to environments beforehand, so short episodes are not overrepresented,
and an episode's noise depends on its number alone. Evaluation has its own random streams and cannot
change training.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsFloat

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.data.pipeline import Pipeline
from offbench.errors import Interrupted, UserError, expect
from offbench.tasks.environments import goal_distance
from offbench.tasks.episodes import check_asked, env_seeds, number_of
from offbench.tasks.own_env import played_env, try_environment
from offbench.tasks.task import Task
from offbench.training.imperative import Imperative
from offbench.training.step import bind, check_method
from offbench.training.tracing import Program
from offbench.types import Method, Plan, Policy, Spec, TimeStep

if TYPE_CHECKING:
    import gymnasium
    import numpy as np
    import pandas as pd

    from offbench.results.schema import AnyStream


class EnvPool:
    """Environments of one task, created when first needed and reused for every evaluation.

    An evaluation raises `Interrupted` at the step at which `interrupted()` is true, and tells `watch` each
    step of each environment.
    """

    def __init__(self, task: Task):
        self.task = task
        self.interrupted: Callable[[], bool] = lambda: False
        self.watch: Callable[[PlayedStep], None] | None = None
        self._envs: list[gymnasium.Env] = []

    def take(self, n: int) -> "list[gymnasium.Env]":
        """The first n environments."""
        while len(self._envs) < n:
            self._envs.append(played_env(self.task))
        return self._envs[:n]

    def check(self, spec: Spec) -> None:
        """Raises UserError where dataset and environment differ in observation or action size."""
        env = self.take(1)[0]
        # a goal is an observation, and is shown with each
        seen = 2 * spec.obs_dim if self.task.goals else spec.obs_dim
        for name, space, size in (
            ("observation", env.observation_space, seen),
            ("action", env.action_space, spec.action_dim),
        ):
            if space.shape != (size,):
                raise UserError(
                    f"{self.task.id}: the dataset's {name}s have {size} features, "
                    f"environment {self.task.env} has {space.shape}"
                )
        # those of the ids are known
        if self.task.family == "own":
            try_environment(env, self.task)

    def units(self) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, int | None]:
        """(low (A,), high (A,), first discrete action) of the environment's own action space.

        Bounds are None where they are [-1, 1], the first action is None for continuous ones.
        """
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
        """Closes all environments."""
        for env in self._envs:
            env.close()
        self._envs.clear()


class PlayedStep(NamedTuple):
    """One step of one environment, as an `EnvPool` tells its `watch`."""

    # (member of the stack, environment), an index of what the policy's memory holds
    slot: tuple[int, int]
    episode: int
    # steps of the episode before this one
    t: int
    # the policy's after its decision
    memory: Any
    # to the goal, before the step; None where the environment tells none
    distance: float | None
    # raw
    reward: SupportsFloat
    info: dict[str, Any]
    terminated: bool
    truncated: bool
    # (O,) raw, before the step
    obs: "np.ndarray | None" = None


class StartValues(NamedTuple):
    """Memory of a policy with values: the value of each episode's first decision."""

    value: Tensor  # (N, E)


class Values(NamedTuple):
    """Memory of a policy with values: the value of each environment's last decision."""

    value: Tensor  # (N, E)


def make_policy(
    method: Method | Imperative,
    pipeline: Pipeline,
    *,
    values: Literal["first", "every", "none"] = "first",
    length: int | None = None,
) -> Policy:
    """The policy of a method in the raw environment, for N seeds and E environments.

    Args:
        values: keep the value of each episode's first decision, or of every decision, if the method has a
            `value`.
        length: the steps of a chunk to execute, of a method with `act_for`; None: as it decides itself.
    """
    check_method(method)
    expect("pipeline", pipeline, Pipeline, "a pipeline, as of make_pipeline")
    # a PyTorch class
    if isinstance(method, Imperative):
        return pipeline.policy(method.policy())
    if length is not None and not hasattr(method, "act_for"):
        raise UserError(f"length={length}: {type(method).__name__} has no chunks of a given length")
    valued = values != "none" and hasattr(method, "value")

    def one(state: Any, obs: Any, key: Tensor) -> Any:
        bound: Any
        bound, inner = bind(method, state)
        act, asked = (bound.act, ()) if length is None else (bound.act_for, (length,))
        decision = act(inner, tree_map(lambda x: x[None], obs), key, *asked)
        return tree_map(lambda x: x[0], decision)  # (O,) -> (A,)

    def value_of_one(state: Any, obs: Any, decision: Any) -> Tensor:
        bound: Any
        bound, inner = bind(method, state)
        return bound.value(inner, *tree_map(lambda x: x[None], (obs, decision)))[0]  # (O,) -> ()

    stacked = _traced(vmap(vmap(one, in_dims=(None, 0, 0))))
    value = vmap(vmap(value_of_one, in_dims=(None, 0, 0)))
    every_value = _traced(value)

    def act(state: Any, step: TimeStep, memory: Any, key: Tensor) -> tuple[Any, Any]:
        obs = step.obs
        decision = stacked(key.shape, state, obs, key)
        if isinstance(decision, Plan):
            decision = decision._replace(action=decision.action.clamp(-1, 1))
        else:
            decision = decision.clamp(-1, 1)
        if valued and values == "every":
            memory = Values(every_value(key.shape, state, obs, decision).cpu())
        # untraced: a sixth of evaluation at 130 steps an episode
        elif valued and step.first.any():
            new = value(state, obs, decision).cpu()
            memory = StartValues(torch.where(step.first.cpu(), new, memory.value))
        return decision, memory

    if not valued:
        return pipeline.policy(Policy(lambda n_seeds, n_envs: (), act))
    kept = Values if values == "every" else StartValues
    start = lambda n_seeds, n_envs: kept(torch.zeros(n_seeds, n_envs))
    return pipeline.policy(Policy(start, act, gamma=pipeline.view.gamma))


def _traced(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` of trees, traced once for each shape of keys, which is given first."""
    programs: dict[torch.Size, Program] = {}

    def run(shape: torch.Size, *trees: Any) -> Any:
        if shape not in programs:
            programs[shape] = Program(lambda x: fn(*x), trees)
        return programs[shape](trees)

    return run


def evaluate(
    policy: Policy,
    state: Any,
    task: Task | EnvPool,
    *,
    seeds: Sequence[int],
    episodes: int,
    stream: "AnyStream" = "test",
    update: int = 0,
    n_envs: int = 5,
) -> "pd.DataFrame":
    """Plays `episodes` episodes with each stacked state; `seeds` are those of the stack's members.

    An `EnvPool` of the task keeps its environments for the next evaluation.

    `n_envs` environments per seed step together, with one forward pass for all. Episode i of a
    goal-conditioned task plays task_ids[i % len]. Returns one row per (member, episode), with
    EVALUATION_COLUMNS of `offbench.results.schema` and `member`.

    `success` is that of the last step; where it is the score, that of any step: D4RL and OGBench end an
    episode at the first success, Minari's antmaze goes on.

    `return` and `score` are of raw rewards. `start_value` and `discounted_return` can be compared with each
    other: both are of transformed rewards (in OGBench's single tasks minus the number of goals not met at
    every step, -1 where that is sparse; in D4RL's mazes 0, 1 at the goal, before any shift), with the method's
    discount. `discounted_return` has no bootstrap: of a `truncated` episode, gamma ** length times the value
    of its last observation is missing.
    """
    expect("policy", policy, Policy, "a policy, as of make_policy")
    expect("task", task, (Task, EnvPool), "a task, as of load_task")
    check_asked(state, seeds, episodes, n_envs)
    pool = task if isinstance(task, EnvPool) else EnvPool(task)
    device = next(iter(torch.utils._pytree.tree_leaves(state))).device
    run = _Episodes(pool, policy, list(seeds), episodes, min(n_envs, episodes), stream, device)
    memory = policy.init(run.n_seeds, run.n_envs)
    with torch.no_grad():
        while run.active:
            if pool.interrupted():
                raise Interrupted
            step, key = run.observe()
            action, memory = policy.act(state, step, memory, key)
            run.step(action.cpu().numpy(), memory)
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
        stream: "AnyStream",
        device: torch.device,
    ):
        import numpy as np

        self.task, self.seeds, self.stream = pool.task, seeds, stream
        self.watch = pool.watch
        self.n_seeds, self.n_envs, self.episodes = len(seeds), n_envs, episodes
        self.reset_seed = env_seeds(self.task.id, stream, episodes)
        self.envs = pool.take(self.n_seeds * n_envs)
        self.device = device
        self.rows: list[dict[str, Any]] = []
        stream_key = number_of(f"{self.task.id}/{stream}")
        # (N, 1)
        self.seed_key = torch.stack([rng.fold(rng.key(s), stream_key) for s in seeds])[:, None]
        shape = (self.n_seeds, n_envs)
        # a Box: the pool has checked its shape
        space: Any = self.envs[0].observation_space
        self.obs = np.zeros((*shape, *space.shape), np.float32)
        # the episode each slot plays
        self.number = np.tile(np.arange(n_envs), (self.n_seeds, 1))
        self.t = np.zeros(shape, np.int64)
        self.total = np.zeros(shape, np.float64)
        # reward of the last step
        self.reward = np.zeros(shape, np.float32)
        # success at any step of the episode
        self.reached = np.zeros(shape, bool)
        self.policy, self.discounted = policy, np.zeros(shape, np.float64)
        # of each slot to its goal, where someone watches
        self.distance: dict[tuple[int, int], float | None] = {}
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
            obs, info = self._env(slot).reset(seed=seed, options=options)
        finally:
            np.random.set_state(kept)
        self.obs[slot], self.t[slot], self.reward[slot] = obs, 0, 0.0
        self.total[slot] = self.discounted[slot] = 0.0
        self.reached[slot] = False
        if self.watch is not None:
            self.distance[slot] = goal_distance(self._env(slot), info)

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

    def step(self, action: "np.ndarray", memory: Any) -> None:
        """One step of every active slot; `memory` is the policy's after its decision."""
        still, gamma = [], self.policy.gamma
        for slot in self.active:
            obs, reward, terminated, truncated, info = self._env(slot).step(action[slot])
            if self.watch is not None:
                self._tell(slot, memory, reward, terminated, truncated, info)
            self.obs[slot] = obs
            if gamma is not None:
                self.discounted[slot] += gamma ** self.t[slot] * self.policy.reward(reward)
            self.t[slot] += 1
            self.total[slot] += reward
            self.reward[slot] = reward
            self.reached[slot] |= bool(info.get("success", False))
            if terminated or truncated:
                self._record(slot, terminated, truncated, info, memory)
                self.number[slot] += self.n_envs
                if self.number[slot] >= self.episodes:
                    continue
                self._reset(slot)
            still.append(slot)
        self.active = still

    def _tell(self, slot: tuple[int, int], memory: Any, reward: SupportsFloat, *end: Any) -> None:
        """Tells who watches of a step; `end`: terminated, truncated, info."""
        assert self.watch is not None
        terminated, truncated, info = end
        seen = int(self.number[slot]), int(self.t[slot]), memory, self.distance[slot]
        obs = self.obs[slot].copy()
        self.watch(PlayedStep(slot, *seen, reward, info, terminated, truncated, obs))
        self.distance[slot] = goal_distance(self._env(slot), info)

    def _record(
        self, slot: tuple[int, int], terminated: bool, truncated: bool, info: dict, memory: Any
    ) -> None:
        episode, success = int(self.number[slot]), info.get("success")
        if success is None and self.task.score == "success":
            raise UserError(
                f"{self.task.id}: environment {self.task.env} reports no info['success'] at the end of an episode"
            )
        if self.task.score == "success":
            success = self.reached[slot]
        success = None if success is None else bool(success)
        # of policies that execute chunks
        lengths = getattr(memory, "lengths", None)
        lengths = None if lengths is None else lengths[slot].tolist()
        inner = getattr(memory, "inner", memory)
        valued = self.policy.gamma is not None and isinstance(inner, StartValues)
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
                "task_id": self.task.goal_of(episode),
            }
        )

    def frame(self, update: int) -> "pd.DataFrame":
        import pandas as pd

        from offbench.results.schema import typed

        frame = pd.DataFrame(self.rows).sort_values(["member", "episode"], ignore_index=True)
        return typed(frame.assign(stream=self.stream, update=update, task=self.task.id))
