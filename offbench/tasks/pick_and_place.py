"""Pick and place in the plane: a small environment of offbench's own on which action chunks matter.

A hand moves over a square, grasps an object and puts it down at a goal. The way is long and coarse, its
ends are precise: a jaw that closes beside the object pushes it away, and an object that is let go of in
motion slides on. The reward is -1 a step until the object lies at the goal, let go of.

    observation   hand (2), object (2), jaw, held; positions in [-1, 1], the jaw 0 (open) to 1; then what is near:
                  from the hand to the object (2) and to the goal (2) in units of NEAR, clipped to [-1, 1]
    action        velocity of the hand (2), of the jaw (closing is positive), each in [-1, 1]

The dynamics are deterministic and written for any leading axes, so a recipe moves many hands at once.
"""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

# of the hand, and of the jaw, a step
SPEED, JAW_SPEED = 0.05, 0.4
# the jaw holds from CLOSED on and lets go below OPEN
CLOSED, OPEN = 0.8, 0.4
# from the hand to an object that is grasped, and to one that a closing jaw pushes away by PUSH
REACH, BUMP, PUSH = 0.1, 0.2, 0.1
# an object let go of slides on by so many steps of the hand
SLIDE = 2.0
GOAL, TOLERANCE = (0.6, 0.6), 0.1
MAX_EPISODE_STEPS = 120
NEAR = 0.25

Array = NDArray[np.float64]


class State(NamedTuple):
    """Positions of hand and object (..., 2), of the jaw (...,), and whether the object is held (...,)."""

    hand: Array
    object: Array
    jaw: Array
    held: NDArray[np.bool_]

    @property
    def obs(self) -> NDArray[np.float32]:
        """(..., 10)."""
        single = np.stack([self.jaw, self.held.astype(float)], -1)
        near = [np.clip((x - self.hand) / NEAR, -1, 1) for x in (self.object, np.array(GOAL))]
        return np.concatenate([self.hand, self.object, single, *near], -1).astype(np.float32)

    @property
    def solved(self) -> NDArray[np.bool_]:
        """Whether the object lies at the goal, (...,)."""
        return ~self.held & (_distance(self.object, np.array(GOAL)) <= TOLERANCE)


def start(rng: np.random.Generator, n: tuple[int, ...] = ()) -> State:
    """Hand and object at random places, the object not at the goal."""
    hand, place = rng.uniform(-0.9, 0.9, (2, *n, 2))
    goal = np.array(GOAL)
    near = _distance(place, goal) <= 3 * TOLERANCE
    place = np.where(near[..., None], -place, place)
    return State(hand, place, np.zeros(n), np.zeros(n, bool))


def advance(state: State, action: NDArray[np.floating]) -> State:
    """The state one step later; actions (..., 3) are clipped to [-1, 1]."""
    clipped = np.clip(np.asarray(action, float), -1.0, 1.0)
    hand = np.clip(state.hand + SPEED * clipped[..., :2], -1.0, 1.0)
    moved = hand - state.hand
    jaw = np.clip(state.jaw + JAW_SPEED * clipped[..., 2], 0.0, 1.0)
    away = state.object - hand
    far = np.linalg.norm(away, axis=-1)
    closing = ~state.held & (state.jaw < CLOSED) & (jaw >= CLOSED)
    held = (state.held & (jaw >= OPEN)) | (closing & (far <= REACH))
    pushed = closing & (far > REACH) & (far <= BUMP)
    push = PUSH * away / np.maximum(far, 1e-9)[..., None]
    left = state.held & ~held
    place = state.object + pushed[..., None] * push + left[..., None] * SLIDE * moved
    place = np.where(held[..., None], hand, np.clip(place, -1.0, 1.0))
    return State(hand, place, jaw, held)


def _distance(a: Array, b: Array) -> Array:
    return np.linalg.norm(a - b, axis=-1)


class PickAndPlace(gymnasium.Env):
    """The environment for one hand; `info` has the object's `distance` to the goal, and `success` where it lies there."""

    observation_space = Box(-1.0, 1.0, (10,), np.float32)
    action_space = Box(-1.0, 1.0, (3,), np.float32)
    state: State

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = start(self.np_random)
        return self.state.obs, self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state = advance(self.state, action)
        info = self._info()
        solved = info["success"]
        return self.state.obs, float(solved) - 1.0, solved, False, info

    def _info(self) -> dict[str, Any]:
        far = _distance(self.state.object, np.array(GOAL))
        return {"success": bool(self.state.solved), "distance": float(far)}


gymnasium.register(
    "offbench/PickAndPlace-v0",
    "offbench.tasks.pick_and_place:PickAndPlace",
    max_episode_steps=MAX_EPISODE_STEPS,
)
