"""Tasks: a dataset, the environment it is judged in, and how a return becomes a score.

A task is read from its dataset's manifest (`datasets/*.yaml`), which pins the file by sha256 and
carries reference returns that were measured. Manifests are looked for in `$OFFBENCH_DATASETS`,
in `./datasets`, in the checkout, and in the wheel.
"""

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from offbench.errors import UserError, unknown

if TYPE_CHECKING:
    import gymnasium

    from offbench.data import ReplayData
    from offbench.types import Spec


@dataclass(frozen=True, kw_only=True)
class Task:
    id: str  # "offbench/hopper/medium-replay-v0": what a record, a preset and a row are keyed by
    root: Path  # the folder that holds the manifest and the data
    sha256: str  # of the data file
    env: str  # gymnasium id
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_episode_steps: int
    score: Literal["return", "success"]
    ref_min: float
    ref_max: float
    terminal_inside: bool = False

    @property
    def folder(self) -> Path:
        return self.root / "minari" / self.id

    def normalise(self, episode_return: float, success: bool | None) -> float:
        """100 x (return - ref_min) / (ref_max - ref_min), or 100 for a success and 0 otherwise."""
        if self.score == "success":
            return 100.0 * bool(success)
        return 100.0 * (episode_return - self.ref_min) / (self.ref_max - self.ref_min)

    def load(self, *, gamma: float = 0.99) -> "tuple[ReplayData, Spec]":
        """The transitions and the problem they pose. Raises UserError for a bad file."""
        from offbench.sources import minari
        from offbench.types import Spec

        check_file(self.folder / "data" / "main_data.hdf5", self.sha256, self.id)
        data = minari.load(self.folder, name=self.id, terminal_inside=self.terminal_inside)
        spec = Spec(data.obs.shape[1], data.action.shape[1], gamma, self.max_episode_steps)
        return data, spec

    def make_env(self) -> "gymnasium.Env":
        """One evaluation environment with actions in [-1, 1]. UserError if its package is missing."""
        return make_env(self.env, self.env_kwargs, self.id)


def check_file(path: Path, sha256: str, name: str) -> None:
    """Raises UserError when the file is missing or is not the one the manifest describes."""
    if not path.is_file():
        raise UserError(
            f"{name}: data file {path} is missing; rebuild it with: offbench data make {name}"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(
            f"{name}: {path} has sha256 {found[:12]}..., its manifest says {sha256[:12]}... "
            f"({path.stat().st_size} bytes); restore it or rebuild it with: offbench data make {name}"
        )


def make_env(env: str, kwargs: Mapping[str, Any], name: str) -> "gymnasium.Env":
    import gymnasium
    from gymnasium.wrappers import RescaleAction

    os.environ.setdefault(
        "MUJOCO_GL", "disabled"
    )  # state environments; without it dm_control looks for a screen
    # OGBench's environments make a new Box, and gymnasium this warning, whenever their space is read.
    warnings.filterwarnings("ignore", message=".*precision lowered by casting")
    try:
        made = gymnasium.make(env, disable_env_checker=True, **kwargs)
    except gymnasium.error.NameNotFound:
        made = _make_from_package(env, kwargs, name)
    except gymnasium.error.Error as error:
        raise UserError(f"{name}: environment {env}: {error}") from None
    if abs(made.action_space.low + 1).max() > 0 or abs(made.action_space.high - 1).max() > 0:
        made = RescaleAction(made, -1.0, 1.0)
    return made


def _make_from_package(env: str, kwargs: Mapping[str, Any], name: str) -> "gymnasium.Env":
    """Environments that a package registers when imported."""
    import importlib

    import gymnasium

    for package in ("ogbench", "gymnasium_robotics"):
        try:
            with contextlib.redirect_stderr(
                io.StringIO()
            ):  # gymnasium-robotics prints a notice of its own
                module = importlib.import_module(package)
        except ImportError:
            continue
        if package == "gymnasium_robotics":
            gymnasium.register_envs(module)
        if env in gymnasium.registry:
            return gymnasium.make(env, disable_env_checker=True, **kwargs)
    raise UserError(
        f"{name}: environment {env} is not installed (tried gymnasium, ogbench, gymnasium-robotics); "
        "install the package that provides it"
    )


def roots() -> list[Path]:
    """Folders searched for manifests, first match wins."""
    here = Path(__file__).resolve().parent
    candidates = [Path.cwd() / "datasets", here.parent / "datasets", here / "datasets"]
    if "OFFBENCH_DATASETS" in os.environ:
        candidates.insert(0, Path(os.environ["OFFBENCH_DATASETS"]))
    return [path for path in dict.fromkeys(candidates) if path.is_dir()]


def manifests() -> dict[str, tuple[Path, Mapping[str, Any]]]:
    """Every dataset known here: id -> (root, manifest)."""
    found: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for root in roots():
        for path in sorted(root.glob("*--*.yaml")):
            manifest = yaml.safe_load(path.read_text())
            found.setdefault(manifest["id"], (root, manifest))
    return found


def load_task(task_id: str) -> Task:
    """The task of a dataset id. Raises UserError naming the nearest ids for an unknown one."""
    known = manifests()
    if task_id not in known:
        raise unknown("task", task_id, known)
    root, m = known[task_id]
    return Task(
        id=task_id,
        root=root,
        sha256=m["sha256"],
        env=m["env"]["id"],
        env_kwargs=m["env"].get("kwargs") or {},
        max_episode_steps=m["max_episode_steps"],
        score=m["score"]["kind"],
        ref_min=m["score"]["ref_min"],
        ref_max=m["score"]["ref_max"],
        terminal_inside=m.get("terminal_inside", False),
    )
