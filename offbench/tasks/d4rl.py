"""D4RL's ids: their files, reference scores and environments.

`d4rl.csv` has the published references and addresses.
"""

import functools
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from offbench.tasks.environments import antmaze_map, maze2d_map
from offbench.tasks.tables import table
from offbench.tasks.task import File, Task


@functools.cache
def rows() -> Mapping[str, Mapping[str, str]]:
    """Id -> row of `d4rl.csv`, for ids with a file."""
    return MappingProxyType({r["dataset_id"]: r for r in table("d4rl.csv") if r["dataset_url"]})


class _Evaluation(NamedTuple):
    """The environment of a D4RL domain."""

    env: str | None
    obs: int | None
    action: int | None
    kwargs: Mapping[str, Any] = MappingProxyType({})
    adapter: str | None = None
    differs: str = ""
    refused: str | None = None


# One recorded step of D4RL's own code in MuJoCo 2.1.0 against the same step here, uniform actions;
# results/environments.md has the numbers.
_SAME = (
    "MuJoCo 3 through Gymnasium, with masses and contact margins as MuJoCo 2 has them: 300 of 300 steps of "
    "D4RL's {env} in MuJoCo 2.1.0 end in the same state (within 1e-12 of a step's change)"
)
_LOW = "; its reference minimum ({low:g}) is not what uniform actions return there or here ({own})"


def _gym(
    env: str, obs: int, action: int, *, adapter: str = "d4rl-gym", differs: str = ""
) -> _Evaluation:
    same = _SAME.format(env=env.replace("v4", "v2"))
    return _Evaluation(env, obs, action, adapter=adapter, differs=same + differs)


_GYM = {
    "halfcheetah": _gym("HalfCheetah-v4", 17, 6),
    "hopper": _gym("Hopper-v4", 11, 3, differs=_LOW.format(low=-20.27, own="about 20")),
    "walker2d": _gym("Walker2d-v4", 17, 6),
    "ant": _gym(
        "Ant-v4", 111, 8, adapter="d4rl-ant",
        differs=_LOW.format(low=-325.6, own="about -55")
        + "; the 84 contact forces of the data are 0 there and are shown as 0 here",
    ),
}  # fmt: skip
_HAND = {"pen": (45, 24), "door": (39, 28), "hammer": (46, 26), "relocate": (39, 30)}
_HAND_DIFFERS = {
    hand: "MuJoCo 3 and Gymnasium-Robotics' model, equal to D4RL's but for visual meshes; D4RL's rewards and "
    f"ends, contacts as MuJoCo 2 finds them: of 300 steps in MuJoCo 2.1.0 {share} end within 1e-3 of a "
    "step's change of the same state" + more
    for hand, share, more in (
        ("pen", "all", ""), ("hammer", "all", ""), ("relocate", "all", ""),
        (
            "door", "94 %",
            " (the others touch the door with a box or a finger); D4RL's door-human-v0 itself: 300 of 300",
        ),
    )
}  # fmt: skip
KITCHENS = {
    "kitchen-complete": ("microwave", "kettle", "light switch", "slide cabinet"),
    "kitchen-partial": ("microwave", "kettle", "light switch", "slide cabinet"),
    "kitchen-mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}


def task(name: str) -> Task | None:
    """The task of a D4RL id without the prefix `d4rl/`; None for an unknown one."""
    row = rows().get(name)
    if row is None:
        return None
    domain = row["domain"]
    evaluation = _evaluation(name, domain)
    return Task(
        id=f"d4rl/{name}",
        family="d4rl",
        env=evaluation.env,
        env_kwargs=dict(evaluation.kwargs),
        adapter=evaluation.adapter,
        refused=evaluation.refused,
        differs=evaluation.differs,
        max_episode_steps=int(row["max_episode_steps"]),
        score="success" if domain == "antmaze" else "return",
        ref_min=float(row["ref_min_score"]) if row["ref_min_score"] else None,
        ref_max=float(row["ref_max_score"]) if row["ref_max_score"] else None,
        ref_source=row["source"],
        obs_dim=evaluation.obs,
        action_dim=evaluation.action,
        files=(File(row["dataset_url"], f"d4rl/{row['dataset_url'].rsplit('/', 1)[-1]}"),),
        notes=tuple(_notes(name, row)),
    )


def _notes(name: str, row: Mapping[str, str]) -> list[str]:
    notes = []
    if row["in_infos_py"] != "yes" and row["ref_min_score"]:
        notes.append(
            "its reference scores are in the registration of its environment only: "
            "d4rl.get_normalized_score raises KeyError for this id"
        )
    if row["deprecated"] == "True":
        notes.append("superseded by a later version, whose data differ")
    if "longhorizon" in name:
        notes.append("the same file as without longhorizon, evaluated over more steps")
    if row["domain"] == "gym_mujoco":
        notes.append(
            "v0, v1 and v2 share reference scores and nothing else; "
            "Minari's mujoco/... sets of the same name are other data from other policies"
        )
    if row["domain"] == "antmaze":
        notes.append("a success is a reached goal; rewards are 0 and 1 as in the file")
    if row["domain"] == "minigrid":
        notes.append(
            "its reference maximum is above what an episode can give (1): no policy scores 35"
        )
    if row["domain"] == "maze2d":
        notes.append("not Minari's D4RL/pointmaze, which has another reference scale")
    return notes


def _evaluation(name: str, domain: str) -> _Evaluation:
    head = name.split("-")[0]
    if domain == "gym_mujoco":
        return _GYM[head]
    if domain == "antmaze":
        return _of_antmaze(name)
    if domain == "maze2d":
        return _of_maze2d(name)
    if domain == "adroit":
        obs, action = _HAND[head]
        limit = int(rows()[name]["max_episode_steps"])
        return _Evaluation(
            f"AdroitHand{head.capitalize()}-v1", obs, action, {"max_episode_steps": limit},
            "d4rl-hand", _HAND_DIFFERS[head],
        )  # fmt: skip
    if domain == "kitchen":
        tasks = list(KITCHENS[name.rsplit("-", 1)[0]])
        return _Evaluation(
            "FrankaKitchen-v1", 60, 9, {"tasks_to_complete": tasks}, "d4rl-kitchen",
            "Gymnasium-Robotics' model, equal to D4RL's; its positions and goal (60), D4RL's noise. In "
            "MuJoCo 2.1.0 the arm moves alike (within 1e-3 of a step's change in 93 of 100 steps), the "
            "kettle stands 0.1 mm lower",
        )  # fmt: skip
    if domain == "minigrid":
        limit = int(rows()[name]["max_episode_steps"])
        return _Evaluation(
            "MiniGrid-FourRooms-v0", 147, 7, {"goal_pos": (12, 12), "max_episode_steps": limit}, "image",
            "a later MiniGrid, of the same rules; D4RL's goal and limit are set here; uniform actions return "
            "0.019 +- 0.006 (400 episodes of MiniGrid 3.2.0; the reference minimum is 0.0144)",
        )  # fmt: skip
    package = {"gym_bullet": "pybullet", "pointmaze_bullet": "pybullet"}.get(domain, domain)
    return _Evaluation(
        None, None, None, refused=f"its environment needs {package}, which is not supported"
    )


def _of_antmaze(name: str) -> _Evaluation:
    size = re.sub(r"^antmaze-|(-play|-diverse)?-v\d$", "", name)
    limit = int(rows()[name]["max_episode_steps"])
    return _Evaluation(
        {"umaze": "AntMaze_UMaze-v4", "medium": "AntMaze_Medium-v4", "large": "AntMaze_Large-v4"}[
            size.removeprefix("eval-")
        ],
        29, 8,
        {"maze_map": antmaze_map(size), "continuing_task": True, "max_episode_steps": limit},
        "d4rl-antmaze",
        _SAME.format(env="antmaze") + " (23 of 24 where the ant touches a wall)" + (
            "" if name.endswith("-v2") else "; the goal is drawn for every episode, as version 2 does "
            "(D4RL draws it once for an environment: the same mean over seeds, more spread between them)"
        ),
    )  # fmt: skip


def _of_maze2d(name: str) -> _Evaluation:
    size = re.sub(r"^maze2d-|(-dense)?-v\d$", "", name)
    kwargs = {
        "maze_map": maze2d_map(size),
        "max_episode_steps": int(rows()[name]["max_episode_steps"]),
        "reward_type": "dense" if "-dense-" in name else "sparse",
        "continuing_task": True,
        "reset_target": False,
    }
    return _Evaluation(
        "PointMaze_UMaze-v3", 4, 2, kwargs, "d4rl-maze2d",
        _SAME.format(env="maze2d"),
    )  # fmt: skip
