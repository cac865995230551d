"""OGBench's ids: their files and environments.

An id is a set, optionally with its size, sparse rewards, one of its five tasks, the validation file.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from offbench.tasks.task import File, Task

_URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
_LARGE = (
    "cube-double",
    "cube-triple",
    "cube-quadruple",
    "puzzle-4x4",
    "puzzle-4x5",
    "puzzle-4x6",
    "scene",
)


def _sets() -> dict[str, str]:
    """Name of a set -> its environment."""
    sets: dict[str, str] = {}

    def add(env: str, *kinds: str) -> None:
        sets.update({f"{env}-{kind}-v0": f"{env}-v0" for kind in kinds})

    for size in ("medium", "large", "giant", "teleport"):
        add(f"pointmaze-{size}", "navigate", "stitch")
    for visual in ("", "visual-"):
        for size in ("medium", "large", "giant", "teleport"):
            explore = () if size == "giant" else ("explore",)
            add(f"{visual}antmaze-{size}", "navigate", "stitch", *explore)
        for size in ("medium", "large", "giant"):
            add(f"{visual}humanoidmaze-{size}", "navigate", "stitch")
        arms = ["cube-single", "cube-double", "cube-triple", "cube-quadruple", "scene"]
        for arm in [*arms, "puzzle-3x3", "puzzle-4x4", "puzzle-4x5", "puzzle-4x6"]:
            add(f"{visual}{arm}", "play", "noisy")
    for size in ("arena", "medium"):
        add(f"antsoccer-{size}", "navigate", "stitch")
    for size in ("easy", "medium", "hard"):
        add(f"powderworld-{size}", "play")
    return sets


SETS = MappingProxyType(_sets())
DEFAULT_TASKS: Mapping[str, int] = MappingProxyType(
    {
        "pointmaze": 1,
        "antmaze": 1,
        "humanoidmaze": 1,
        "antsoccer": 4,
        "cube": 2,
        "scene": 2,
        "puzzle-3x3": 4,
        "puzzle-4x4": 4,
        "puzzle-4x5": 2,
        "puzzle-4x6": 2,
    }
)
"""The task that `-singletask-v0` means, by the beginning of an environment's name."""


class Parsed(NamedTuple):
    """A parsed id."""

    # the published set: "cube-single-play-v0"
    base: str
    # "-100m" or ""
    large: str
    sparse: bool
    task: int | None
    validation: bool

    @property
    def name(self) -> str:
        """The id without the prefix `ogbench/`."""
        stem = self.base.removesuffix("-v0") + self.large
        if self.sparse:
            stem += "-sparse"
        if self.task is not None:
            stem += f"-singletask-task{self.task}"
        return f"{stem}-v0" + ("-val" if self.validation else "")

    @property
    def env(self) -> str:
        """The environment id."""
        env = SETS[self.base].removesuffix("-v0")
        return f"{env}-v0" if self.task is None else f"{env}-singletask-task{self.task}-v0"


_NAME = re.compile(
    r"(?P<base>[a-z0-9-]+?)(?P<large>-100m)?(?P<sparse>-sparse)?"
    r"(?P<single>-singletask(?:-task(?P<task>[1-5]))?)?-v0(?P<val>-val)?"
)


def parse(name: str) -> Parsed | None:
    """The parts of an id without the prefix `ogbench/`; None for an unknown one."""
    match = _NAME.fullmatch(name)
    if match is None or f"{match['base']}-v0" not in SETS:
        return None
    base = f"{match['base']}-v0"
    single, powder = match["single"] is not None, base.startswith("powderworld")
    if (match["sparse"] and not single) or (single and powder):
        return None
    if match["large"] and not (base.endswith("-play-v0") and base.startswith(_LARGE)):
        return None
    task = int(match["task"]) if match["task"] else (default_task(base) if single else None)
    return Parsed(base, match["large"] or "", bool(match["sparse"]), task, bool(match["val"]))


def default_task(name: str) -> int:
    """The number of the task that a `-singletask-v0` id stands for."""
    env = name.removeprefix("visual-")
    return next(task for head, task in DEFAULT_TASKS.items() if env.startswith(head))


def task(name: str) -> Task | None:
    """The task of an OGBench id without the prefix `ogbench/`; None for an unknown one."""
    parsed = parse(name)
    if parsed is None:
        return None
    stem = parsed.base.removesuffix("-v0") + parsed.large + "-v0"
    file = f"{stem}-val.npz" if parsed.validation else f"{stem}.npz"
    if parsed.large:
        # a folder of parts
        file = stem
    visual = parsed.base.startswith("visual-")
    notes = list(_notes(parsed))
    refused = None
    if parsed.base.startswith("powderworld"):
        refused = "powderworld's actions are choices and its observations pictures; not supported"
    elif visual and parsed.task is None:
        refused = "its observations and goals are pictures; no method here has an encoder for them"
    return Task(
        id=f"ogbench/{parsed.name}",
        family="ogbench",
        env=None if refused else parsed.env,
        refused=refused,
        adapter="goal" if parsed.task is None else "flat" if visual else None,
        task_ids=(1, 2, 3, 4, 5) if parsed.task is None and refused is None else (),
        differs="nothing: OGBench's own environment"
        + (
            ", which rewards every condition; the score is the success alike"
            if parsed.sparse
            else ""
        ),
        max_episode_steps=_limit(parsed.base),
        score="success",
        ref_min=0.0,
        ref_max=1.0,
        ref_source="success",
        obs_dim=64 * 64 * 3 if visual else None,
        files=(File(f"{_URL}/{file}", f"ogbench/{file}"),),
        terminal_inside=parsed.task is not None,
        notes=tuple(notes),
    )


def _notes(parsed: Parsed) -> list[str]:
    notes = []
    if parsed.task is None:
        notes.append(
            "goal-conditioned (view=goal): no rewards; episodes play task_id 1 to 5 in turn, the goal appended to the observation"
        )
    else:
        notes.append(
            "rewards of the state before the action (ogbench 1.2); the data go on at the goal"
        )
        if parsed.task == default_task(parsed.base):
            notes.append("the default task, also called -singletask-v0")
    if parsed.large:
        notes.append(
            "100 files in a folder; their names are not known here, so it is not downloaded"
        )
    return notes


def _limit(base: str) -> int:
    """Time limit of evaluation episodes, as registered by OGBench."""
    env = SETS[base].removeprefix("visual-").removesuffix("-v0")
    if env.startswith("humanoidmaze"):
        return 4000 if env.endswith("giant") else 2000
    limits = {
        "cube-single": 200,
        "cube-double": 500,
        "cube-triple": 1000,
        "cube-quadruple": 1000,
        "scene": 750,
        "puzzle-3x3": 500,
        "puzzle-4x4": 500,
        "puzzle-4x5": 1000,
        "puzzle-4x6": 1000,
        "powderworld": 500,
    }
    return next((n for head, n in limits.items() if env.startswith(head)), 1000)
