"""Where a hierarchical policy heads for, shown as a state of the data.

A sub-goal lies in a space of representations. Of a state s with the goal g it is shown by the observation w of the
data whose representation phi([s; w]) is nearest to what the high level asks for. The method has

    subgoal(state, obs)      what it asks for: (E, O + G) -> (E, R)
    represent(state, obs)    phi of observations that end with a goal: (E, O + G) -> (E, R)
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offbench import rng
from offbench.bench.policy import Loaded
from offbench.types import Policy, TimeStep

# observations of the data that are compared
CANDIDATES = 500


def has_subgoals(method: Any) -> bool:
    """Whether its sub-goals can be shown."""
    return hasattr(method, "subgoal") and hasattr(method, "represent")


def nearest_states(loaded: Loaded, data_obs: np.ndarray, obs: np.ndarray) -> np.ndarray:
    """For raw observations with goals, (E, O + G), the rows of `data_obs` (M, O) that are headed for: (E,).

    A kept policy's only seed decides.
    """
    pairs = np.concatenate([data_obs, data_obs], -1)
    states, shown = _seen(loaded, obs), _seen(loaded, pairs)[:, : data_obs.shape[1]]
    method: Any = loaded.method
    own = torch.utils._pytree.tree_map(lambda x: x[0], loaded.state)
    with torch.no_grad():
        asked = method.subgoal(own, states)
        found = [
            _distances(method, own, state, want, shown).argmin()
            for state, want in zip(states, asked, strict=True)
        ]
    return torch.stack(found).numpy()


def _distances(method: Any, own: Any, state: Tensor, want: Tensor, shown: Tensor) -> Tensor:
    """(M,) from what is asked for in a state (O + G,) to the representation of each candidate (M, O)."""
    here = state[: shown.shape[1]].expand_as(shown)
    return torch.linalg.vector_norm(
        method.represent(own, torch.cat([here, shown], -1)) - want, dim=-1
    )


def _seen(loaded: Loaded, obs: np.ndarray) -> Tensor:
    """Raw observations (E, O + G) as the method sees them."""
    kept: list[Tensor] = []

    def act(state: Any, step: TimeStep, memory: Any, key: Tensor) -> tuple[Any, Any]:
        kept.append(step.obs[0])
        return step.obs, memory

    policy = loaded.pipeline.policy(Policy(lambda n_seeds, n_envs: (), act))
    n = len(obs)
    rows = torch.from_numpy(np.asarray(obs, np.float32))[None]
    policy.act(None, TimeStep.begin(rows), policy.init(1, n), rng.key(0).expand(1, n))
    return kept[0]
