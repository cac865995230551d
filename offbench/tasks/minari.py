"""Minari's ids: their files, reference scores and environments.

Metadata of a downloaded set win over the list below. `minari.csv` has reference scores published by
third parties.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from offbench.errors import UserError
from offbench.tasks import files
from offbench.tasks.d4rl import KITCHENS
from offbench.tasks.embedded import manifests
from offbench.tasks.tables import table
from offbench.tasks.task import File, Score, Task

_REMOTE = "hf://farama-minari"  # default of minari 0.5.4


def _listed() -> dict[str, tuple[str, int, Score]]:
    """Id -> (environment, time limit, score); `metadata.json` of a set wins over it."""
    ids: dict[str, tuple[str, int, Score]] = {}
    robots = (
        "HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid",
        "InvertedPendulum", "InvertedDoublePendulum", "Pusher", "Reacher", "Swimmer",
    )  # fmt: skip
    limits = {"Pusher": 100, "Reacher": 50}
    for i, env in enumerate(robots):
        for skill in ("simple", "medium", "expert")[i >= 5 :]:
            ids[f"mujoco/{env.lower()}/{skill}-v0"] = (
                f"{env}-v5",
                limits.get(env, 1000),
                "return",
            )
    for hand, env in (
        ("door", "Door"),
        ("hammer", "Hammer"),
        ("pen", "Pen"),
        ("relocate", "Relocate"),
    ):
        for kind in ("human", "cloned", "expert"):
            ids[f"D4RL/{hand}/{kind}-v2"] = (f"AdroitHand{env}-v1", 200, "return")
    for kind in ("complete", "mixed", "partial"):
        ids[f"D4RL/kitchen/{kind}-v2"] = ("FrankaKitchen-v1", 280, "return")
    mazes = {"open": ("Open", 300), "umaze": ("UMaze", 300), "medium": ("Medium", 600), "large": ("Large", 800)}  # fmt: skip
    for maze, (env, limit) in mazes.items():
        for dense in ("", "-dense"):
            ids[f"D4RL/pointmaze/{maze}{dense}-v2"] = (
                f"PointMaze_{env}{'Dense' if dense else ''}-v3", limit, "return",
            )  # fmt: skip
    ants = {
        "umaze": ("UMaze", 700), "umaze-diverse": ("UMaze", 700), "medium-play": ("Medium", 1000),
        "medium-diverse": ("Medium_Diverse_GR", 1000), "large-play": ("Large", 1000),
        "large-diverse": ("Large_Diverse_GR", 1000),
    }  # fmt: skip
    for maze, (env, limit) in ants.items():
        ids[f"D4RL/antmaze/{maze}-v1"] = (f"AntMaze_{env}-v4", limit, "success")
    for kind in ("fourrooms", "fourrooms-random"):
        ids[f"D4RL/minigrid/{kind}-v0"] = ("MiniGrid-FourRooms-v0", 100, "return")
    return ids


LISTED = MappingProxyType(_listed())
_ADROIT_1_2_0 = re.compile(r"gymnasium[-_]robotics *== *1\.2\.0")
_NAME = re.compile(r"(?:[-_\w]+/)*[-_\w]+-v\d+")


def task(name: str) -> Task | None:
    """The task of a Minari id without the prefix `minari/`, listed or with its data on disk; None for an
    unknown one."""
    if not _NAME.fullmatch(name):
        return None
    found = folder(name)
    listed = LISTED.get(name)
    if listed is None and found is None:
        return None
    env, limit, score = listed or (None, 0, "return")
    low, high, source = _reference(name)
    urls = () if listed is None else _files(name)
    described = Task(
        id=f"minari/{name}",
        family="minari",
        env=env,
        env_kwargs=_env_kwargs(name),
        refused=_refused(name),
        max_episode_steps=limit,
        score=score,
        ref_min=low,
        ref_max=high,
        ref_source=source,
        files=urls,
        notes=tuple(_notes(name)),
    )
    return described if found is None else _with_metadata(described, found)


def folder(name: str) -> Path | None:
    """The folder of a complete set, in our cache or minari's; None where there is none."""
    for root in files.search_folders("minari"):
        data = root / name / "data"
        whole = (data / "main_data.hdf5").exists() or any(p.is_dir() for p in data.glob("*"))
        if whole and (data / "metadata.json").exists():
            return root / name
    return None


def _files(name: str) -> tuple[File, ...]:
    """The files of a set at minari's remote (`minari.storage.remotes`): a Hugging Face repository named by
    the first part of the id, or a Google bucket, by `MINARI_REMOTE`."""
    kind, _, owner = os.environ.get("MINARI_REMOTE", _REMOTE).partition("://")
    space, _, rest = name.partition("/")
    folder = {
        "hf": f"https://huggingface.co/datasets/{owner}/{space}/resolve/main/{rest}",
        "gcp": f"https://storage.googleapis.com/{owner}/{name}",
    }.get(kind)
    if folder is None:
        raise UserError(f"MINARI_REMOTE={kind}://{owner} is neither hf://OWNER nor gcp://BUCKET")
    return tuple(
        File(f"{folder.rstrip('/')}/data/{file}", f"minari/{name}/data/{file}")
        for file in ("metadata.json", "main_data.hdf5")
    )


def _refused(name: str) -> str | None:
    if name.startswith("D4RL/minigrid"):
        return (
            "it observes a picture and a text, which are not read from Minari's sets; the same rooms are "
            "in d4rl/minigrid-fourrooms-v0 (other data)"
        )
    return None


def _env_kwargs(name: str) -> Mapping[str, Any]:
    if name.startswith("D4RL/kitchen"):
        kind = name.split("/")[-1].rsplit("-", 1)[0]
        return {"tasks_to_complete": list(KITCHENS[f"kitchen-{kind}"])}
    if name.startswith("D4RL/antmaze"):
        return {"continuing_task": False}
    if name.startswith("D4RL/pointmaze"):
        return {"continuing_task": True, "reset_target": False}
    return {}


def _with_metadata(task: Task, folder: Path) -> Task:
    """The task with environment, time limit and references of the set's `metadata.json`."""
    # its import is heavy, and needed only where data are here
    from offbench.tasks.formats.minari import metadata

    meta = metadata(folder, name=task.id)
    changes: dict[str, Any] = {"obs_dim": meta.observation.size, "action_dim": meta.action.size}
    ref = meta.eval_env or meta.env
    if ref is not None:
        changes |= {"env": ref.id, "env_kwargs": ref.kwargs, "refused": None}
        changes["max_episode_steps"] = ref.max_episode_steps or task.max_episode_steps or 1000
        if ref.max_episode_steps is not None:
            changes["env_kwargs"] = {**ref.kwargs, "max_episode_steps": ref.max_episode_steps}
        which = "evaluation" if meta.eval_env is not None else "recording"
        changes["differs"] = f"nothing known: the {which} environment of its metadata"
        if meta.other_maze:
            changes["differs"] = (
                "the maze its metadata name for evaluation has other walls (Minari issue 304)"
            )
        if ref.id.startswith("AdroitHand") and any(map(_ADROIT_1_2_0.fullmatch, meta.requirements)):
            changes |= {
                "adapter": "adroit-1.2.0",
                "differs": "rewards and ends of Gymnasium-Robotics 1.2.0, as recorded",
            }
    if meta.ref_min is not None and meta.ref_max is not None and meta.ref_max > meta.ref_min:
        changes |= {"ref_min": meta.ref_min, "ref_max": meta.ref_max, "ref_source": "its metadata"}
    return replace(task, **changes)


def _reference(name: str) -> tuple[float | None, float | None, str]:
    """(ref_min, ref_max, source) of a published table; None where there are none."""
    plain = re.sub(r"-v\d+$", "", name)
    for row in table("minari.csv"):
        if row["minari_dataset_id_prefix"] == plain and row["ref_min_score"]:
            source = f"{row['confidence']}: Minari's metadata, quoted by a third party"
            return float(row["ref_min_score"]), float(row["ref_max_score"]), source
    if plain.startswith("D4RL/kitchen"):
        return 0.0, 4.0, "number of subtasks"
    if plain.startswith("D4RL/antmaze"):
        return 0.0, 1.0, "success"
    if plain.startswith("mujoco/") and (found := _measured(plain.split("/")[1])):
        return found
    if plain.startswith("mujoco/walker2d/"):
        # a 0 of the scale without its 100 scales nothing
        low = next(
            row["ref_min_score"]
            for row in table("minari.csv")
            if row["minari_dataset_id_prefix"] == "mujoco/walker2d"
        )
        return None, None, f"minimum {low}, measured here; no maximum: a score is the return itself"
    return None, None, "none: a score is the return itself"


def _measured(robot: str) -> tuple[float, float, str] | None:
    """Reference returns measured for an embedded set in the same environment."""
    found = manifests().get(f"offbench/{robot}/medium-replay-v0")
    if found is None or found[1]["score"]["kind"] != "return":
        return None
    score = found[1]["score"]
    source = f"measured for {found[1]['id']} in {found[1]['env']['id']}: uniform actions and our best policy"
    return float(score["ref_min"]), float(score["ref_max"]), source


def _notes(name: str) -> list[str]:
    notes = []
    if name.startswith("mujoco/"):
        _, robot, rest = name.split("/")
        skill = rest.rsplit("-", 1)[0]
        notes.append(
            f"not D4RL's {robot}-{skill}-v2: other policies, other data, another environment"
        )
        notes.append("its metadata have no reference scores")
    if name.startswith("D4RL/pointmaze"):
        notes.append("not D4RL's maze2d: collected again, goals move, another reference scale")
    if name.startswith(("D4RL/door", "D4RL/hammer", "D4RL/relocate")):
        notes.append(
            "its reward grows with the distance of hand and object (the sign is wrong in AdroitHand "
            "version 1, mended in version 2); that of D4RL's sets shrinks with it"
        )
    if name.startswith("D4RL/pen"):
        notes.append("a dropped pen does not end the episode, as in D4RL's pen sets")
    if name.startswith("D4RL/antmaze"):
        notes.append("a success is a goal reached at any step")
        notes.append("not D4RL's antmaze: collected again; the goal is part of the observation")
    return notes


def check_hdf5(task_id: str, metadata_file: Path) -> None:
    """Raises UserError, before the download, for Arrow data: many files, whose names are not known."""
    from offbench.tasks.formats.minari import metadata

    if metadata(metadata_file.parent.parent, name=task_id).data_format != "hdf5":
        name = task_id.removeprefix("minari/")
        raise UserError(
            f"{task_id}: its data are Arrow files; get them with: minari download {name}"
        )
