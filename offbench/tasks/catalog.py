"""Ids of the field -> what they are, where they come from, and what they are judged in.

    d4rl/hopper-medium-v2                              also: hopper-medium-v2
    minari/mujoco/hopper/medium-v0                     also: mujoco/hopper/medium-v0
    ogbench/cube-single-play-v0                        also: cube-single-play-v0
    ogbench/cube-single-play-singletask-task2-v0       also: ...-singletask-v0 (the default task)
    ogbench/scene-play-sparse-singletask-task1-v0      rewards -1 until all is done
    ogbench/cube-quadruple-play-100m-v0                a folder of parts
    ogbench/cube-single-play-v0-val                    the validation file
    offbench/hopper/medium-replay-v0                   embedded, see datasets/

`card(id).id` is the form with the family's name: sets that sound alike but differ
(`hopper-medium-v2`, `mujoco/hopper/medium-v0`) are never one column of a table. Nothing heavy is
imported before data are loaded.
"""

import csv
import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from offbench.errors import UserError, unknown
from offbench.tasks import files

if TYPE_CHECKING:
    from offbench.data.replay import ReplayData

Family = Literal["d4rl", "minari", "ogbench", "offbench"]


class File(NamedTuple):
    """One file of a set: where it comes from, and its name under `offbench.tasks.files.cache_dir()`."""

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Card:
    id: str
    family: Family
    version: str  # "v2"
    # judged in; None: in nothing that is here, see `refused`
    env: str | None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    # see offbench.tasks.environments
    adapter: str | None = None
    # why it cannot be judged here
    refused: str | None = None
    # from the simulator the published scores are from
    differs: str = ""
    max_episode_steps: int
    score: Literal["return", "success"]
    # of the return; None: not known, scores are returns
    ref_min: float | None = None
    ref_max: float | None = None
    ref_source: str = ""
    # of the data, where known before they are read
    obs_dim: int | None = None
    action_dim: int | None = None
    files: tuple[File, ...] = ()
    terminal_inside: bool = False
    # goal-conditioned: judged on these tasks of its environment
    task_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(file.url for file in self.files)

    @property
    def sha256(self) -> str | None:
        return self.files[0].sha256 if len(self.files) == 1 else None

    @property
    def summary(self) -> str:
        """One line for a list."""
        how = {"d4rl": "HDF5", "minari": "Minari", "ogbench": "npz", "offbench": "embedded"}
        where = f"evaluated in {self.env}" if self.env else "no environment here"
        return f"{how[self.family]}, {where}, score: {self.score}"


# --- ids ------------------------------------------------------------------------------------


def card(dataset_id: str, *, kind: str = "dataset") -> Card:
    """What an id means; `kind` is what an error calls it. Raises UserError naming the nearest ids for an unknown one."""
    name = canonical(dataset_id)
    makers: Mapping[str, Callable[[str], Card | None]] = {
        "d4rl": _d4rl,
        "minari": _minari,
        "ogbench": _ogbench,
    }
    family, _, rest = name.partition("/")
    if name in _embedded_ids():
        return _embedded(name)
    made = makers[family](rest) if family in makers else None
    if made is None:
        raise _unknown(kind, dataset_id)
    return made


def _unknown(kind: str, dataset_id: str) -> UserError:
    """Sets that sound like it where there are any, else the ids that are spelt nearly so."""
    alike = sounds_like(dataset_id)
    family = dataset_id.partition("/")[0]
    alike = tuple(name for name in alike if name.startswith(f"{family}/")) or alike
    if not alike:
        return unknown(kind, dataset_id, _choices(dataset_id))
    tail = " These are different data." if len(alike) > 1 else ""
    return UserError(
        f"unknown {kind} {dataset_id!r}: did you mean {' or '.join(map(repr, alike))}?{tail}"
    )


def sounds_like(dataset_id: str) -> tuple[str, ...]:
    """Listed ids, other than this one, with the same words in another spelling, of the version
    given if there are any: `hopper/medium-v0` sounds like `d4rl/hopper-medium-v0` and
    `minari/mujoco/hopper/medium-v0`."""
    words, version = _sound(dataset_id)
    alike = [name for name in _by_sound().get(words, ()) if name != canonical(dataset_id)]
    same = [name for name in alike if _sound(name)[1] == version]
    return tuple(same or alike)


_FAMILIES = re.compile(r"^((d4rl|minari|ogbench|offbench|mujoco|gym)/)+")


def _sound(dataset_id: str) -> tuple[str, str]:
    """(words, version) of an id, without the names of families and of the task in it."""
    plain = _FAMILIES.sub("", dataset_id.strip("/").lower())
    plain = re.sub(r"[/_ ]+", "-", plain)
    match = re.fullmatch(r"(.*?)(?:-?(v\d+))?", plain)
    assert match is not None
    words = re.sub(
        r"^(pointmaze|maze2d)-(?=(open|umaze|medium|large)(-dense)?$)", "maze2d-", match[1]
    )
    return words, match[2] or ""


@functools.cache
def _by_sound() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in ids():
        words = _sound(name)[0]
        found[words] = (*found.get(words, ()), name)
    return MappingProxyType(found)


def said(dataset_id: str) -> str | None:
    """What a short id was taken for, where another set sounds like it; None where nothing is to be said."""
    name = canonical(dataset_id)
    if name == dataset_id:
        return None
    others = [n for n in sounds_like(name) if n.split("/")[0] != name.split("/")[0]]
    return f"{dataset_id} is {name}, not {' or '.join(others)} (other data)" if others else None


def canonical(dataset_id: str) -> str:
    """The id with its family in front and its task spelled out; unknown ones as they are."""
    name = dataset_id.strip("/")
    if name in _embedded_ids():
        return name
    family, _, rest = name.partition("/")
    if family in ("mujoco", "D4RL"):
        return f"minari/{name}"
    if family == "ogbench" or not rest:
        plain = rest or name
        if plain in _d4rl_rows() and family != "ogbench":
            return f"d4rl/{plain}"
        parsed = _parse_ogbench(plain)
        if parsed is not None:
            return f"ogbench/{parsed.name}"
    return name


def _choices(dataset_id: str) -> list[str]:
    """Ids as they were spelled: with the family where one was given."""
    family, _, rest = dataset_id.partition("/")
    known = ids()
    if not rest:
        return [name.split("/", 1)[1] for name in known]
    same = [name for name in known if name.startswith(f"{family}/")]
    return same or [*known, *(n.removeprefix("minari/") for n in known)]


@functools.cache
def ids() -> tuple[str, ...]:
    """Every id that is listed, without aliases, validation files and sparse variants."""
    d4rl = [f"d4rl/{name}" for name in _d4rl_rows()]
    minari = [f"minari/{name}" for name in _MINARI]
    ogbench = [f"ogbench/{name}" for name in _OGBENCH_SETS]
    single = [
        f"ogbench/{name.removesuffix('-v0')}-singletask-task{task}-v0"
        for name in _OGBENCH_SETS
        if not name.startswith("powderworld")
        for task in range(1, 6)
    ]
    return (*_embedded_ids(), *d4rl, *minari, *ogbench, *single)


def _embedded_ids() -> tuple[str, ...]:
    from offbench.tasks.task import manifests

    return tuple(manifests())


def _embedded(name: str) -> Card:
    from offbench.tasks.task import manifests

    m = manifests()[name][1]
    return Card(
        id=m["id"],
        family="offbench",
        version=m["id"].rsplit("-", 1)[-1],
        env=m["env"]["id"],
        env_kwargs=m["env"].get("kwargs") or {},
        max_episode_steps=m["max_episode_steps"],
        score=m["score"]["kind"],
        ref_min=m["score"]["ref_min"],
        ref_max=m["score"]["ref_max"],
        ref_source=f"measured: {m['score'].get('episodes')} episodes of uniform actions and of the best policy",
        files=(File("", f"minari/{m['id']}/data/main_data.hdf5", None, m["sha256"]),),
        terminal_inside=m.get("terminal_inside", False),
        notes=(m["summary"],),
    )


# --- D4RL -----------------------------------------------------------------------------------

_HERE = Path(__file__).resolve().parent


@functools.cache
def _table(name: str) -> tuple[Mapping[str, str], ...]:
    with (_HERE / name).open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


@functools.cache
def _d4rl_rows() -> Mapping[str, Mapping[str, str]]:
    """Rows of the table that name a file, by id."""
    rows = {row["dataset_id"]: row for row in _table("d4rl.csv") if row["dataset_url"]}
    return MappingProxyType(rows)


class _Judge(NamedTuple):
    """Where a D4RL domain is judged."""

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
) -> _Judge:
    same = _SAME.format(env=env.replace("v4", "v2"))
    return _Judge(env, obs, action, adapter=adapter, differs=same + differs)


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
_KITCHENS = {
    "kitchen-complete": ("microwave", "kettle", "light switch", "slide cabinet"),
    "kitchen-partial": ("microwave", "kettle", "light switch", "slide cabinet"),
    "kitchen-mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}


def _d4rl(name: str) -> Card | None:
    row = _d4rl_rows().get(name)
    if row is None:
        return None
    judge, domain = _judge(name, row["domain"]), row["domain"]
    return Card(
        id=f"d4rl/{name}",
        family="d4rl",
        version=name.rsplit("-", 1)[-1],
        env=judge.env,
        env_kwargs=judge.kwargs,
        adapter=judge.adapter,
        refused=judge.refused,
        differs=judge.differs,
        max_episode_steps=int(row["max_episode_steps"]),
        score="success" if domain == "antmaze" else "return",
        ref_min=float(row["ref_min_score"]) if row["ref_min_score"] else None,
        ref_max=float(row["ref_max_score"]) if row["ref_max_score"] else None,
        ref_source=row["source"],
        obs_dim=judge.obs,
        action_dim=judge.action,
        files=(File(row["dataset_url"], f"d4rl/{row['dataset_url'].rsplit('/', 1)[-1]}"),),
        notes=tuple(_d4rl_notes(name, row)),
    )


def _d4rl_notes(name: str, row: Mapping[str, str]) -> list[str]:
    notes = []
    if row["in_infos_py"] != "yes" and row["ref_min_score"]:
        notes.append(
            "its reference scores are in the registration of its environment only: "
            "d4rl.get_normalized_score raises KeyError for this id"
        )
    if row["deprecated"] == "True":
        notes.append("superseded by a later version, whose data differ")
    if "longhorizon" in name:
        notes.append("the same file as without longhorizon, judged over more steps")
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


def _judge(name: str, domain: str) -> _Judge:
    head = name.split("-")[0]
    if domain == "gym_mujoco":
        return _GYM[head]
    if domain == "antmaze":
        return _judge_antmaze(name)
    if domain == "maze2d":
        return _judge_maze2d(name)
    if domain == "adroit":
        obs, action = _HAND[head]
        limit = int(_d4rl_rows()[name]["max_episode_steps"])
        return _Judge(
            f"AdroitHand{head.capitalize()}-v1", obs, action, {"max_episode_steps": limit},
            "d4rl-hand", _HAND_DIFFERS[head],
        )  # fmt: skip
    if domain == "kitchen":
        tasks = list(_KITCHENS[name.rsplit("-", 1)[0]])
        return _Judge(
            "FrankaKitchen-v1", 60, 9, {"tasks_to_complete": tasks}, "d4rl-kitchen",
            "Gymnasium-Robotics' model, equal to D4RL's; its positions and goal (60), D4RL's noise. In "
            "MuJoCo 2.1.0 the arm moves alike (within 1e-3 of a step's change in 93 of 100 steps), the "
            "kettle stands 0.1 mm lower",
        )  # fmt: skip
    if domain == "minigrid":
        limit = int(_d4rl_rows()[name]["max_episode_steps"])
        return _Judge(
            "MiniGrid-FourRooms-v0", 147, 7, {"goal_pos": (12, 12), "max_episode_steps": limit}, "image",
            "a later MiniGrid, of the same rules; D4RL's goal and limit are set here; uniform actions return "
            "0.019 +- 0.006 (400 episodes of MiniGrid 3.2.0; the reference minimum is 0.0144)",
        )  # fmt: skip
    package = {"gym_bullet": "pybullet", "pointmaze_bullet": "pybullet"}.get(domain, domain)
    return _Judge(
        None, None, None, refused=f"its environment needs {package}, which is not supported"
    )


def _judge_antmaze(name: str) -> _Judge:
    size = re.sub(r"^antmaze-|(-play|-diverse)?-v\d$", "", name)
    from offbench.tasks.environments import antmaze_map

    limit = int(_d4rl_rows()[name]["max_episode_steps"])
    return _Judge(
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


def _judge_maze2d(name: str) -> _Judge:
    size = re.sub(r"^maze2d-|(-dense)?-v\d$", "", name)
    from offbench.tasks.environments import maze2d_map

    kwargs = {
        "maze_map": maze2d_map(size),
        "max_episode_steps": int(_d4rl_rows()[name]["max_episode_steps"]),
        "reward_type": "dense" if "-dense-" in name else "sparse",
        "continuing_task": True,
        "reset_target": False,
    }
    return _Judge(
        "PointMaze_UMaze-v3", 4, 2, kwargs, "d4rl-maze2d",
        _SAME.format(env="maze2d"),
    )  # fmt: skip


# --- Minari ---------------------------------------------------------------------------------

_MINARI_REMOTE = "hf://farama-minari"  # minari 0.5.4's own default


def _minari_ids() -> dict[str, tuple[str, int, Literal["return", "success"]]]:
    """Id -> environment, limit, score; what `metadata.json` of the set says comes first."""
    made: dict[str, tuple[str, int, Literal["return", "success"]]] = {}
    robots = (
        "HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid",
        "InvertedPendulum", "InvertedDoublePendulum", "Pusher", "Reacher", "Swimmer",
    )  # fmt: skip
    limits = {"Pusher": 100, "Reacher": 50}
    for i, env in enumerate(robots):
        for skill in ("simple", "medium", "expert")[i >= 5 :]:
            made[f"mujoco/{env.lower()}/{skill}-v0"] = (
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
            made[f"D4RL/{hand}/{kind}-v2"] = (f"AdroitHand{env}-v1", 200, "return")
    for kind in ("complete", "mixed", "partial"):
        made[f"D4RL/kitchen/{kind}-v2"] = ("FrankaKitchen-v1", 280, "return")
    mazes = {"open": ("Open", 300), "umaze": ("UMaze", 300), "medium": ("Medium", 600), "large": ("Large", 800)}  # fmt: skip
    for maze, (env, limit) in mazes.items():
        for dense in ("", "-dense"):
            made[f"D4RL/pointmaze/{maze}{dense}-v2"] = (
                f"PointMaze_{env}{'Dense' if dense else ''}-v3", limit, "return",
            )  # fmt: skip
    ants = {
        "umaze": ("UMaze", 700), "umaze-diverse": ("UMaze", 700), "medium-play": ("Medium", 1000),
        "medium-diverse": ("Medium_Diverse_GR", 1000), "large-play": ("Large", 1000),
        "large-diverse": ("Large_Diverse_GR", 1000),
    }  # fmt: skip
    for maze, (env, limit) in ants.items():
        made[f"D4RL/antmaze/{maze}-v1"] = (f"AntMaze_{env}-v4", limit, "success")
    for kind in ("fourrooms", "fourrooms-random"):
        made[f"D4RL/minigrid/{kind}-v0"] = ("MiniGrid-FourRooms-v0", 100, "return")
    return made


_MINARI = MappingProxyType(_minari_ids())
_ADROIT_1_2_0 = re.compile(r"gymnasium[-_]robotics *== *1\.2\.0")
_MINARI_NAME = re.compile(r"(?:[-_\w]+/)*[-_\w]+-v\d+")


def _minari(name: str) -> Card | None:
    """A listed set, or one that lies in a folder of Minari's."""
    if not _MINARI_NAME.fullmatch(name):
        return None
    folder = _minari_folder(name)
    listed = _MINARI.get(name)
    if listed is None and folder is None:
        return None
    env, limit, score = listed or (None, 0, "return")
    low, high, source = _minari_reference(name)
    urls = () if listed is None else _minari_files(name)
    made = Card(
        id=f"minari/{name}",
        family="minari",
        version=name.rsplit("-", 1)[-1],
        env=env,
        env_kwargs=_minari_kwargs(name),
        refused=_minari_refused(name),
        max_episode_steps=limit,
        score=score,
        ref_min=low,
        ref_max=high,
        ref_source=source,
        files=urls,
        notes=tuple(_minari_notes(name)),
    )
    return made if folder is None else _with_metadata(made, folder)


def _minari_folder(name: str) -> Path | None:
    """Where a set lies whole, ours or minari's; a download that stopped halfway is none."""
    for place in files.places("minari"):
        data = place / name / "data"
        whole = (data / "main_data.hdf5").exists() or any(p.is_dir() for p in data.glob("*"))
        if whole and (data / "metadata.json").exists():
            return place / name
    return None


def _minari_files(name: str) -> tuple[File, ...]:
    """Where minari itself looks (`minari.storage.remotes`): in a repository of the Hugging Face Hub
    that is named by the first part of the id, or in a bucket of Google's; `MINARI_REMOTE` says which."""
    kind, _, owner = os.environ.get("MINARI_REMOTE", _MINARI_REMOTE).partition("://")
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


def _minari_refused(name: str) -> str | None:
    if name.startswith("D4RL/minigrid"):
        return (
            "it observes a picture and a text, which are not read from Minari's sets; the same rooms are "
            "in d4rl/minigrid-fourrooms-v0 (other data)"
        )
    return None


def _minari_kwargs(name: str) -> Mapping[str, Any]:
    if name.startswith("D4RL/kitchen"):
        kind = name.split("/")[-1].rsplit("-", 1)[0]
        return {"tasks_to_complete": list(_KITCHENS[f"kitchen-{kind}"])}
    if name.startswith("D4RL/antmaze"):
        return {"continuing_task": False}
    if name.startswith("D4RL/pointmaze"):
        return {"continuing_task": True, "reset_target": False}
    return {}


def _with_metadata(made: Card, folder: Path) -> Card:
    """The card as the set itself has it: environment, limit and references of `metadata.json`."""
    from offbench.tasks.formats import minari

    meta = minari.metadata(folder, name=made.id)
    changes: dict[str, Any] = {"obs_dim": meta.observation.size, "action_dim": meta.action.size}
    ref = meta.eval_env or meta.env
    if ref is not None:
        changes |= {"env": ref.id, "env_kwargs": ref.kwargs, "refused": None}
        changes["max_episode_steps"] = ref.max_episode_steps or made.max_episode_steps or 1000
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
    return replace(made, **changes)


def _minari_reference(name: str) -> tuple[float | None, float | None, str]:
    """(minimum, maximum, source); None where no table has them."""
    plain = re.sub(r"-v\d+$", "", name)
    for row in _table("minari.csv"):
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
            for row in _table("minari.csv")
            if row["minari_dataset_id_prefix"] == "mujoco/walker2d"
        )
        return None, None, f"minimum {low}, measured here; no maximum: a score is the return itself"
    return None, None, "none: a score is the return itself"


def _measured(robot: str) -> tuple[float, float, str] | None:
    """What we measured in the environment of the same name for the embedded sets."""
    from offbench.tasks.task import manifests

    found = manifests().get(f"offbench/{robot}/medium-replay-v0")
    if found is None or found[1]["score"]["kind"] != "return":
        return None
    score = found[1]["score"]
    source = f"measured for {found[1]['id']} in {found[1]['env']['id']}: uniform actions and our best policy"
    return float(score["ref_min"]), float(score["ref_max"]), source


def _minari_notes(name: str) -> list[str]:
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


# --- OGBench --------------------------------------------------------------------------------

_OGBENCH_URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
_LARGE = (
    "cube-double",
    "cube-triple",
    "cube-quadruple",
    "puzzle-4x4",
    "puzzle-4x5",
    "puzzle-4x6",
    "scene",
)


def _ogbench_sets() -> dict[str, str]:
    """Name -> its environment."""
    made: dict[str, str] = {}

    def add(env: str, *kinds: str) -> None:
        made.update({f"{env}-{kind}-v0": f"{env}-v0" for kind in kinds})

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
    return made


_OGBENCH_SETS = MappingProxyType(_ogbench_sets())
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


class _OGBench(NamedTuple):
    """An id taken apart."""

    # the published set: "cube-single-play-v0"
    base: str
    large: str  # "-100m" or ""
    sparse: bool
    task: int | None
    validation: bool

    @property
    def name(self) -> str:
        stem = self.base.removesuffix("-v0") + self.large
        if self.sparse:
            stem += "-sparse"
        if self.task is not None:
            stem += f"-singletask-task{self.task}"
        return f"{stem}-v0" + ("-val" if self.validation else "")

    @property
    def env(self) -> str:
        env = _OGBENCH_SETS[self.base].removesuffix("-v0")
        return f"{env}-v0" if self.task is None else f"{env}-singletask-task{self.task}-v0"


_OGBENCH_NAME = re.compile(
    r"(?P<base>[a-z0-9-]+?)(?P<large>-100m)?(?P<sparse>-sparse)?"
    r"(?P<single>-singletask(?:-task(?P<task>[1-5]))?)?-v0(?P<val>-val)?"
)


def _parse_ogbench(name: str) -> _OGBench | None:
    match = _OGBENCH_NAME.fullmatch(name)
    if match is None or f"{match['base']}-v0" not in _OGBENCH_SETS:
        return None
    base = f"{match['base']}-v0"
    single, powder = match["single"] is not None, base.startswith("powderworld")
    if (match["sparse"] and not single) or (single and powder):
        return None
    if match["large"] and not (base.endswith("-play-v0") and base.startswith(_LARGE)):
        return None
    task = int(match["task"]) if match["task"] else (default_task(base) if single else None)
    return _OGBench(base, match["large"] or "", bool(match["sparse"]), task, bool(match["val"]))


def default_task(name: str) -> int:
    """The task of a `-singletask-v0` id."""
    env = name.removeprefix("visual-")
    return next(task for head, task in DEFAULT_TASKS.items() if env.startswith(head))


def _ogbench(name: str) -> Card | None:
    parsed = _parse_ogbench(name)
    if parsed is None:
        return None
    stem = parsed.base.removesuffix("-v0") + parsed.large + "-v0"
    file = f"{stem}-val.npz" if parsed.validation else f"{stem}.npz"
    if parsed.large:
        file = stem  # a folder
    visual = parsed.base.startswith("visual-")
    notes = list(_ogbench_notes(parsed))
    refused = None
    if parsed.base.startswith("powderworld"):
        refused = "powderworld's actions are choices and its observations pictures; not supported"
    return Card(
        id=f"ogbench/{parsed.name}",
        family="ogbench",
        version="v0",
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
        max_episode_steps=_ogbench_limit(parsed.base),
        score="success",
        ref_min=0.0,
        ref_max=1.0,
        ref_source="success",
        obs_dim=64 * 64 * 3 if visual else None,
        files=(File(f"{_OGBENCH_URL}/{file}", f"ogbench/{file}"),),
        terminal_inside=parsed.task is not None,
        notes=tuple(notes),
    )


def _ogbench_notes(parsed: _OGBench) -> list[str]:
    notes = []
    if parsed.task is None:
        notes.append(
            "goal-conditioned: no rewards; judged on task_id 1 to 5 in turn, the goal shown beside the observation"
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


def _ogbench_limit(base: str) -> int:
    """Steps of an evaluation episode, as OGBench registers them."""
    env = _OGBENCH_SETS[base].removeprefix("visual-").removesuffix("-v0")
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


# --- files ----------------------------------------------------------------------------------


def locate(card: Card) -> Path | None:
    """The file or folder of a set, ours or another package's, None where it is not here.

    For Minari the folder that holds `data`.
    """
    if card.family == "minari":
        return _minari_folder(card.id.removeprefix("minari/"))
    kind, _, name = card.files[0].name.partition("/")
    return files.find("d4rl" if kind == "d4rl" else "ogbench", name)


def fetch(card: Card, progress: "files.Progress | None" = None, *, verify: bool = False) -> Path:
    """The file or folder of a set, downloaded where it is not here; with `verify`, what was
    downloaded before is compared with what it was then.

    Raises UserError, one line with address, file and folder, where that does not work.
    """
    found = locate(card)
    ours = found is not None and found.is_relative_to(files.cache_dir())
    remotes = [f for f in card.files if f.url and "." in Path(f.url).name]
    if found is not None and not (verify and ours and remotes):
        return found
    if not remotes:
        folder = files.cache_dir() / (card.files[0].name if card.files else card.id)
        raise UserError(f"{card.id}: nothing is known to download; put its files into {folder}")
    for file in remotes:
        path = files.fetch(file.url, file.name, file.size, file.sha256, progress)
        if path.name == "metadata.json":
            _check_hdf5(card, path)
    return path.parent.parent if card.family == "minari" else path


def _check_hdf5(card: Card, metadata: Path) -> None:
    """Before the data are asked for: Arrow data are many files, whose names only a listing has."""
    from offbench.tasks.formats import minari

    if minari.metadata(metadata.parent.parent, name=card.id).data_format != "hdf5":
        name = card.id.removeprefix("minari/")
        raise UserError(
            f"{card.id}: its data are Arrow files; get them with: minari download {name}"
        )


def load(card: Card, path: Path) -> "ReplayData":
    """The set whose file or folder lies at `path`. Raises UserError where it is damaged, or not
    of the dimensions that the id has."""
    data = _load(card, path)
    for field_name, found, wanted in (
        ("observations", data.obs.shape[1], card.obs_dim),
        ("actions", data.action.shape[1], card.action_dim),
    ):
        if wanted not in (None, found):
            raise UserError(
                f"{card.id}: {path} has {found} features of {field_name}, it should be {wanted}"
            )
    if card.adapter == "d4rl-ant" and bool((data.obs[:, 27:] != 0).any()):
        raise UserError(
            f"{card.id}: contact forces are recorded; no environment here shows them as MuJoCo 1.5 did"
        )
    return data


def _load(card: Card, path: Path) -> "ReplayData":
    if card.family == "d4rl":
        from offbench.tasks.formats import d4rl

        choices = 7 if card.env and card.env.startswith("MiniGrid") else None
        return d4rl.load(
            path, name=card.id, max_episode_steps=card.max_episode_steps, n_actions=choices
        )
    if card.family == "ogbench":
        from offbench.tasks.formats import ogbench

        parsed = _parse_ogbench(card.id.removeprefix("ogbench/"))
        assert parsed is not None
        task = None if parsed.task is None else parsed.env
        return ogbench.load(path, name=card.id, task=task, sparse=parsed.sparse)
    from offbench.tasks.formats import minari

    return minari.load(path, name=card.id, terminal_inside=card.terminal_inside)


def listing() -> list[tuple[str, str]]:
    """(id, one line about it) of every listed set."""
    return [(name, _summary(name)) for name in ids()]


def _summary(name: str) -> str:
    try:
        return card(name).summary
    # a damaged set that lies here; the others are listed none the less
    except UserError as error:
        return str(error).removeprefix(f"{name}: ")
