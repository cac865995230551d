"""Play data of the pick-and-place environment (`offbench.tasks.pick_and_place`).

A script carries the object from place to place for as long as a trajectory lasts, half of the time to
one of five spots, the goal among them. It remembers what no observation shows: where it is heading, by
which waypoint, how fast, how hastily it grasps, and noise that is correlated over steps. So single actions
look undecided where sequences of them do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offbench.recipes import Progress, unwatched
from offbench.recipes.store import Collected, Episode, success_score
from offbench.tasks import pick_and_place as game

ENV = "offbench.tasks.pick_and_place:offbench/PickAndPlace-v0"

# where half of the placements go, and their spread
SPOTS = np.array([(-0.6, -0.6), (-0.6, 0.6), (0.0, 0.0), (0.6, -0.6), (0.6, 0.6)])
SPREAD = 0.04
# distance from the object at which the jaw begins to close, drawn for each grasp: a hasty one misses
HASTE = (0.03, 0.3)
# correlation of the noise over steps, and its size at full speed
RHO, NOISE = 0.9, 0.2
# distance from its aim within which the hand is slow, so slow, and its noise so small, of full speed
CLOSE, SLOW, STEADY = 0.12, 0.4, 0.3
_SCORE_EPISODES, _SCORE_SEED = 200, 30_000
APPROACH, GRASP, DETOUR, CARRY, RELEASE = range(5)


class Script:
    """The behaviour policy of `n` hands: what each is up to, which no observation shows."""

    def __init__(self, n: int, rng: np.random.Generator, noise: float = NOISE):
        self.n, self.rng, self.noise = n, rng, noise
        self.phase = np.full(n, APPROACH)
        self.waited = np.zeros(n, int)
        self.drift = np.zeros((n, 2))
        self.target, self.via = np.zeros((2, n, 2))
        self.speed, self.reach = np.ones(n), np.full(n, HASTE[0])
        self._plan(np.ones(n, bool))

    def _plan(self, which: NDArray[np.bool_]) -> None:
        """Where to carry the object next, by which waypoint and how fast, for some hands."""
        rng, n = self.rng, self.n
        spot = SPOTS[rng.integers(len(SPOTS), size=n)] + rng.normal(0.0, SPREAD, (n, 2))
        anywhere = rng.uniform(-0.9, 0.9, (n, 2))
        target = np.where((rng.random(n) < 0.5)[:, None], spot, anywhere)
        via, speed = rng.uniform(-0.8, 0.8, (n, 2)), rng.uniform(0.5, 1.0, n)
        reach = rng.uniform(*HASTE, n)
        self.target[which], self.via[which] = target[which], via[which]
        self.speed[which], self.reach[which] = speed[which], reach[which]

    def act(self, state: game.State) -> NDArray[np.float64]:
        """Actions (n, 3); the phases of the hands go on."""
        phase, hand = self.phase, state.hand
        # what was grasped beside, or dropped
        lost = ((phase == DETOUR) | (phase == CARRY)) & ~state.held
        phase = np.where(lost, APPROACH, phase)
        aim = np.select(
            [(phase == APPROACH)[:, None] | (phase == GRASP)[:, None], (phase == DETOUR)[:, None]],
            [state.object, self.via],
            self.target,
        )
        gap = aim - hand
        far = np.linalg.norm(gap, axis=-1)
        precise = np.isin(phase, (GRASP, RELEASE)) | (far < CLOSE)
        top = np.where(precise, SLOW, self.speed)
        move = gap / game.SPEED
        move *= np.minimum(1.0, top / np.maximum(np.linalg.norm(move, axis=-1), 1e-9))[:, None]
        fresh = self.rng.normal(0.0, 1.0, (self.n, 2))
        self.drift = RHO * self.drift + (1 - RHO**2) ** 0.5 * fresh
        move += self.noise * np.where(precise, STEADY, 1.0)[:, None] * self.drift
        close = np.isin(phase, (GRASP, DETOUR, CARRY))
        jaw = np.where(close, 0.9, -0.9) + self.noise * STEADY * self.rng.normal(size=self.n)
        self._next_phase(phase, far, state)
        return np.clip(np.concatenate([move, jaw[:, None]], -1), -1.0, 1.0)

    def _next_phase(self, phase: NDArray[Any], far: NDArray[Any], state: game.State) -> None:
        """`far`: (n,) distance from the hand to what it aims at."""
        done = {
            APPROACH: (far < self.reach) & (state.jaw < 0.1),
            GRASP: self.waited >= 3,
            DETOUR: far < 0.2,
            CARRY: far < 0.03,
            RELEASE: ~state.held,
        }
        over = np.select([phase == p for p in done], list(done.values()), default=False)
        missed = (phase == GRASP) & over & ~state.held
        new = np.where(over, (phase + 1) % 5, phase)
        new = np.where(missed, APPROACH, new)
        self._plan((phase == RELEASE) & over | missed)
        self.waited = np.where(new == self.phase, self.waited + 1, 0)
        self.phase = new


def play(
    *, episodes: int, steps: int, seed: int, root: Path, progress: Progress = unwatched
) -> Collected:
    """`episodes` trajectories of `steps` steps, all hands at once."""
    rng = np.random.default_rng(seed)
    state = game.start(rng, (episodes,))
    script = Script(episodes, rng)
    obs, actions, solved = [state.obs], [], []
    for i in range(steps):
        action = script.act(state).astype(np.float32)
        state = game.advance(state, action)
        obs.append(state.obs)
        actions.append(action)
        solved.append(state.solved)
        progress((i + 1) * episodes, steps * episodes)
    o, a, s = (np.stack(x, 1) for x in (obs, actions, solved))
    cuts = np.zeros(steps, bool)
    cuts[-1] = True
    return Collected(
        episodes=[
            Episode(o[i], a[i], s[i].astype(np.float32) - 1, s[i], cuts, seed)
            for i in range(episodes)
        ],
        env=ENV,
        max_episode_steps=game.MAX_EPISODE_STEPS,
        terminal_inside=True,
        algorithm="script with hidden aims and correlated noise",
        how=(
            f"{episodes} trajectories of {steps} steps: a script carries the object to one place after "
            "another, half of them one of five spots; reward -1 until the object lies at the goal, "
            "termination there."
        ),
        seeds={"recipe": seed},
        score=success_score(
            solved_share(None), solved_share(0.0), episodes=_SCORE_EPISODES, first_seed=_SCORE_SEED
        ),
    )


def solved_share(noise: float | None, n: int = _SCORE_EPISODES) -> float:
    """Share of episodes that the script, told the goal, solves in time; None: uniform actions."""
    rng = np.random.default_rng(_SCORE_SEED)
    state, script = game.start(rng, (n,)), Script(n, rng, noise or 0.0)
    script.target[:] = game.GOAL
    script.via[:] = game.GOAL
    script.speed[:], script.reach[:] = 1.0, HASTE[0]
    solved = np.zeros(n, bool)
    for _ in range(game.MAX_EPISODE_STEPS):
        action = rng.uniform(-1.0, 1.0, (n, 3)) if noise is None else script.act(state)
        state = game.advance(state, action)
        solved |= state.solved
    return float(solved.mean())
