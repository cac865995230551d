"""Tasks: a dataset, the environment it is judged in, and how a return becomes a score.

An embedded task is read from its dataset's manifest (`datasets/*.yaml`), which pins the file by
sha256 and carries reference returns that were measured. Manifests are looked for in
`$OFFBENCH_DATASETS`, in `./datasets`, and in the checkout or the installed package. Every other id is looked up
in `offbench.tasks.catalog`, a composition (`mix@...`) is judged as the first of its parts, and your own
data are a task by `own_task`.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import shlex
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import yaml

from offbench.errors import UserError, unknown
from offbench.io import shipped

if TYPE_CHECKING:
    import gymnasium

    from offbench.data.replay import ReplayData
    from offbench.tasks import doctor
    from offbench.tasks.catalog import Card
    from offbench.tasks.formats.arrays import Reading
    from offbench.tasks.formats.spaces import Space
    from offbench.types import Spec

Actions = Literal["env", "unit"]
Source = Literal["embedded", "catalog", "path", "composed"]
Loader = Literal["offbench", "d4rl"]
NOT_HERE = "not here"


@dataclass(frozen=True, kw_only=True)
class Task:
    # "offbench/hopper/medium-replay-v0": what a record, a preset and a row are keyed by
    id: str
    # embedded: the folder that holds the manifest and the data; else the data's own
    root: Path
    # of the data file; NOT_HERE while it has not been downloaded
    sha256: str
    # gymnasium id; "" where there is no environment: no policy is evaluated
    env: str
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    # 0 where neither an environment nor the owner says: the longest episode
    max_episode_steps: int
    score: Literal["return", "success"]
    ref_min: float
    ref_max: float
    terminal_inside: bool = False
    # how the environment shows what the data have: offbench.tasks.environments
    adapter: str | None = None
    # why it cannot be evaluated in its environment
    refused: str | None = None
    # goal-conditioned: the tasks that episodes are dealt to, in turn
    task_ids: tuple[int, ...] = ()
    loader: Loader = "offbench"
    source: Source = "embedded"
    # your own file: its environment's time limit, action bounds and choices
    reading: "Reading | None" = None

    @property
    def folder(self) -> Path:
        return self.root / "minari" / self.id

    @property
    def dataset(self) -> str:
        """What is trained on, in words of a record; `sha256` says the same in bytes."""
        return self.id if self.loader == "offbench" else f"{self.id}, read by {self.loader}"

    @property
    def scaled(self) -> bool:
        """Whether a score is on the 0-100 scale; without references it is the return itself."""
        return self.score == "success" or (self.ref_min, self.ref_max) != _NO_REFERENCE

    def normalise(self, episode_return: float, success: bool | None) -> float:
        """100 x (return - ref_min) / (ref_max - ref_min), or 100 for a success and 0 otherwise."""
        if self.score == "success":
            return 100.0 * bool(success)
        return 100.0 * (episode_return - self.ref_min) / (self.ref_max - self.ref_min)

    def load(
        self, *, gamma: float = 0.99, defects: Literal["warn", "refuse", "ignore"] = "warn"
    ) -> "tuple[ReplayData, Spec]":
        """The transitions and the problem they pose, downloaded where they are not here.

        Raises UserError for a bad file. A severe defect, one that others have found in a set of this
        id or that a stored report names, warns once (`offbench.tasks.doctor.DataWarning`); with "refuse"
        the data are examined where that was not done before, and it is a UserError.
        """
        from offbench.data.replay import one_hot
        from offbench.tasks import doctor
        from offbench.types import Spec

        data = _LOADERS[self.source](self)
        if defects == "refuse":
            doctor.refuse(self.report(data), self.check_command)
        elif defects == "warn":
            report = self.report()
            if self.source == "path" and "terminal_at_limit" not in report:
                more = doctor.terminals_at_limit(data, doctor.Facts.of(self))
                report = replace(report, findings=(*report.findings, *more))
            doctor.warn_once(report)
        sizes = data.obs.shape[1], data.action.shape[1]
        discrete = one_hot(data.action, data.valid)
        limit = self.max_episode_steps or int(data.episode.bincount().max()) - 1
        return data, Spec(*sizes, gamma, limit, discrete)

    def report(self, data: "ReplayData | None" = None) -> "doctor.Report":
        """What the dataset doctor says of the set: as stored when these bytes were examined before,
        else of `data` (and stored), else what others have found in a set of this id."""
        from offbench.data import compose
        from offbench.tasks import doctor

        made = compose.parse(self.id)
        parts = () if isinstance(made, str) else made.leaves
        sets = [load_task(part) for part in parts] or [self]
        known = tuple(f for t in sets for f in (*doctor.known_defects(t.id), *of_this_copy(t)))
        seen = self.sha256
        # its environment says how it is read
        if self.source == "path" and seen != NOT_HERE:
            seen = hashlib.sha256(f"{seen} {self.env} {self.reading}".encode()).hexdigest()
        found = doctor.stored(self.id, seen)
        if found is None and data is not None:
            facts = doctor.Facts.of(self, repeats=bool(parts), parts=parts)
            found = doctor.check(data, facts, sha256=seen)
            if self.sha256 != NOT_HERE:
                with contextlib.suppress(OSError):
                    doctor.save(found)
        if found is None:
            return doctor.Report(self.id, 0, 0, known)
        rest = tuple(f for f in found.findings if f.name not in ("known_defect", *_OF_THIS_COPY))
        return replace(found, findings=(*known, *rest))

    @property
    def check_command(self) -> str:
        """What to type to see what the dataset doctor says of the set, read as this task reads it."""
        if self.source != "path":
            return f"offbench data check {self.id}"
        more = f" --env {shlex.quote(self.env)}" if self.env else ""
        if self.reading is not None and self.reading.limit_given:
            more += f" --limit {self.max_episode_steps}"
        if self.reading is not None and self.reading.unit:
            more += " --actions unit"
        return f"offbench data check {shlex.quote(str(self.root))}{more}"

    @property
    def rules(self) -> dict[str, str]:
        """What decides a score besides an environment's name and arguments: part of a run's identity.
        Nothing for embedded sets and OGBench."""
        from offbench.tasks.environments import RULES

        found = {}
        if self.adapter in RULES:
            found["rules"] = f"{self.adapter}/{RULES[self.adapter].version}"
        if self.score == "success" and (self.source == "path" or self.env.startswith("AntMaze")):
            found["success"] = "at any step"
        return found

    @property
    def judge(self) -> dict[str, Any]:
        """The environment, and for own data, whose id says nothing of it, how a return is scored: part of a
        run's identity."""
        found = {"id": self.env or None, "kwargs": dict(self.env_kwargs), **self.rules}
        if self.source == "path":
            found |= {k: getattr(self, k) for k in _SCORING}
            if self.reading is not None:
                found["actions"] = "unit" if self.reading.low is None else "env"
        return found

    def check_trainable(self) -> None:
        """Raises UserError for a task whose environment is refused, and for a goal-conditioned one:
        nothing here trains a policy that is given a goal. The latter can be evaluated
        (`offbench.rollout.evaluate`)."""
        if self.refused is not None:
            raise UserError(f"{self.id}: {self.refused}")
        if not self.task_ids:
            return
        single = self.id.removesuffix("-val").removesuffix("-v0")
        raise UserError(
            f"{self.id} is goal-conditioned (no rewards, a goal beside each observation) and no method "
            f"here is; train on one of its tasks, {single}-singletask-task1-v0 to -task5-v0, or on the "
            f"default one, {single}-singletask-v0"
        )

    def reset_options(self, episode: int) -> dict[str, Any] | None:
        """What an environment's `reset` is told at the beginning of an evaluation episode."""
        if not self.task_ids:
            return None
        return {"task_id": self.task_ids[episode % len(self.task_ids)]}

    def ready(self) -> "Task":
        """The task with its data here and their sha256 known, judged as they say where they do: the
        metadata of a Minari set name its environment and references. UserError where they cannot be had.
        """
        if self.sha256 != NOT_HERE:
            return self
        from offbench.data import compose
        from offbench.tasks import catalog

        made = compose.parse(self.id)
        for name in [self.id] if isinstance(made, str) else made.leaves:
            if load_task(name).sha256 == NOT_HERE:
                catalog.fetch(catalog.card(name))
        return load_task(self.id, loader=self.loader)

    def units(
        self, discrete: bool
    ) -> "tuple[tuple[float, ...] | None, tuple[float, ...] | None, int | None]":
        """Of a task without an environment: the bounds (A,) that recorded actions were scaled from, and
        the number of the first choice. None where they are in [-1, 1], or continuous."""
        from offbench.tasks.formats import minari

        if (self.root / "data" / "metadata.json").is_file():
            space = minari.metadata(self.root, name=self.id).action
            if space.kind == "Discrete":
                return None, None, space.start
            assert space.low is not None and space.high is not None
            low, high = (tuple(x.ravel().tolist()) for x in (space.low, space.high))
            return low, high, None
        if discrete:
            return None, None, 0
        return (
            (None, None, None)
            if self.reading is None
            else (self.reading.low, self.reading.high, None)
        )

    def make_env(self) -> "gymnasium.Env":
        """One evaluation environment with actions in [-1, 1]. UserError if its package is missing."""
        if self.refused is not None:
            raise UserError(f"{self.id}: {self.refused}")
        if not self.env:
            raise UserError(
                f"{self.id}: there is no environment; name one: task.env=HalfCheetah-v5"
            )
        return make_env(self.env, self.env_kwargs, self.id, adapter=self.adapter)


_SCORING = ("score", "ref_min", "ref_max", "max_episode_steps")
_OF_THIS_COPY = ("collected_again", "evaluation_maze", "action_bounds")


def of_this_copy(task: Task) -> "list[doctor.Finding]":
    """What the files around the data say: that `offbench data make` has collected a published set
    again, or that a Minari set's metadata name another maze, or other bounds of actions, than those of
    the environment it is evaluated in."""
    from offbench.tasks import doctor
    from offbench.tasks.formats import minari

    found, here = [], task.source in ("catalog", "path") and task.sha256 != NOT_HERE
    if here and task.root.with_suffix(".regenerated.yaml").exists():
        words = (
            f"{task.root.name} was collected again and is not the published file; a score on it belongs "
            "beside no published one"
        )
        found.append(doctor.Finding("collected_again", "severe", words))
    if here and (task.root / "data" / "metadata.json").is_file():
        meta = minari.metadata(task.root, name=task.id)
        found += _other_bounds(task, meta.action)
        if meta.other_maze:
            words = (
                f"{task.env} is evaluated in another maze than the data were recorded in: its metadata "
                "name one with other walls (Minari issue 304)"
            )
            found.append(doctor.Finding("evaluation_maze", "severe", words))
    return found


def _other_bounds(task: Task, recorded: "Space") -> "list[doctor.Finding]":
    """Actions are scaled from the bounds they were recorded in, and played in those of the environment.
    Nothing where the environment cannot be made: evaluation says so."""
    from offbench.tasks import doctor

    if task.refused is not None or recorded.low is None or recorded.high is None:
        return []
    try:
        box = _bounds(
            task.env, json.dumps(dict(task.env_kwargs), sort_keys=True, default=str), task.id
        )
    except UserError:
        return []
    theirs = [np.ravel(b) for b in (recorded.low, recorded.high)]
    if box is None or all(
        a.shape == np.shape(b) and np.allclose(a, b) for a, b in zip(theirs, box)
    ):
        return []
    span = lambda low, high: f"[{np.min(low):g}, {np.max(high):g}]"
    words = (
        f"actions were recorded in {span(*theirs)} ({len(theirs[0])} features), {task.env} takes {span(*box)}"
        f" ({len(box[0])}): a recorded action is played as another one"
    )
    return [doctor.Finding("action_bounds", "severe", words)]


@functools.cache
def _bounds(
    env: str, kwargs: str, name: str
) -> "tuple[tuple[float, ...], tuple[float, ...]] | None":
    """The action bounds of an environment, None where its actions are choices."""
    found = read_for(env, json.loads(kwargs), name, 1, False)
    return None if found.low is None or found.high is None else (found.low, found.high)


def _load_embedded(task: Task) -> "ReplayData":
    from offbench.tasks.formats import minari

    check_file(task.folder / "data" / "main_data.hdf5", task.sha256, task.id)
    return minari.load(task.folder, name=task.id, terminal_inside=task.terminal_inside)


def _load_catalog(task: Task) -> "ReplayData":
    from offbench.tasks import cache, catalog
    from offbench.tasks.formats import d4rl_package

    card = catalog.card(task.id)
    here = task.sha256 != NOT_HERE
    path = task.root if here else catalog.fetch(card)
    if here and (not path.exists() or _read_by(task, cache.digest(path)) != task.sha256):
        raise UserError(f"{task.id}: {path} is missing or not the file it was (by sha256)")
    if task.loader == "d4rl":
        return d4rl_package.load(path, name=task.id, max_episode_steps=task.max_episode_steps)
    return catalog.load(card, path)


def _load_path(task: Task) -> "ReplayData":
    from offbench.tasks.formats import arrays, d4rl_package

    if task.loader == "d4rl":
        if task.reading is not None and task.reading.scales:
            raise UserError(
                f"{task.id}: loader=d4rl takes actions as they are in the file, in [-1, 1], and {task.env} takes"
                " others; use loader=offbench, or say task.actions=unit"
            )
        limit = task.max_episode_steps
        return d4rl_package.load(task.root, name=task.id, max_episode_steps=limit)
    reading = task.reading or arrays.Reading()
    return arrays.load(task.root, name=task.id, reading=reading, env=task.env)


def _load_composed(task: Task) -> "ReplayData":
    from offbench.data import compose

    part = lambda name: load_task(name, loader=task.loader).load(defects="ignore")[0]
    return compose.build(task.id, part).data


_LOADERS: "Mapping[Source, Callable[[Task], ReplayData]]" = {
    "embedded": _load_embedded,
    "catalog": _load_catalog,
    "path": _load_path,
    "composed": _load_composed,
}


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


def make_env(
    env: str, kwargs: Mapping[str, Any], name: str, *, adapter: str | None = None
) -> "gymnasium.Env":
    """An environment that shows flat observations and takes actions in [-1, 1].

    UserError where its package is missing, where it is unknown, and for arguments it does not take.
    """
    import gymnasium
    from gymnasium.wrappers import RescaleAction

    from offbench.tasks.environments import adapt

    # state environments; without it dm_control looks for a screen
    os.environ.setdefault("MUJOCO_GL", "disabled")
    # OGBench's environments make a new Box, and gymnasium this warning, whenever their space is read.
    warnings.filterwarnings("ignore", message=".*precision lowered by casting")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date.*")  # v4, which is meant
        warnings.filterwarnings("ignore", message=".*reward functions were updated.*")
        try:
            try:
                made = gymnasium.make(env, disable_env_checker=True, **kwargs)
            except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound):
                made = _make_from_package(env, kwargs, name)
        except (gymnasium.error.Error, TypeError, ImportError) as error:
            words = " ".join(str(error).split())
            raise UserError(f"{name}: environment {env}: {words}{_nearest_env(env)}") from None
        made = adapt(made, adapter)
        # OGBench makes its spaces, and warns, each time they are asked for
        made.action_space, made.observation_space = made.action_space, made.observation_space
    space = made.action_space
    bounds = [getattr(space, k, np.nan) for k in ("low", "high")]
    if not (np.isfinite(bounds).all() and (bounds[0] < bounds[1]).all()):
        raise UserError(
            f"{name}: environment {env} takes {space}; actions must be a Box with finite bounds, the lower"
            " below the upper, or Discrete"
        )
    if abs(made.action_space.low + 1).max() > 0 or abs(made.action_space.high - 1).max() > 0:
        made = RescaleAction(made, -1.0, 1.0)
    return made


_PACKAGES = ("ogbench", "gymnasium_robotics", "minigrid")


def _make_from_package(env: str, kwargs: Mapping[str, Any], name: str) -> "gymnasium.Env":
    """Environments that a package registers when imported."""
    import importlib

    import gymnasium

    for package in _PACKAGES:
        try:
            # gymnasium-robotics prints a notice of its own
            with contextlib.redirect_stderr(io.StringIO()):
                module = importlib.import_module(package)
        except ImportError:
            continue
        if package == "gymnasium_robotics":
            gymnasium.register_envs(module)
        if env in gymnasium.registry:
            return gymnasium.make(env, disable_env_checker=True, **kwargs)
    which = (
        "install minigrid (pip install minigrid)"
        if env.startswith("MiniGrid")
        else ("one of a package of yours is written module:Id")
    )
    raise UserError(
        f"{name}: environment {env} is not installed (tried gymnasium, ogbench, gymnasium-robotics, "
        f"minigrid){_nearest_env(env)}; {which}"
    )


def _nearest_env(env: str) -> str:
    """ "; did you mean 'Hopper-v5'?", the latest version of that name or the id that is spelt alike."""
    import difflib

    import gymnasium

    base = lambda key: key.rpartition("-v")[0] or key
    version = lambda key: int(key.rpartition("-v")[2]) if key.rpartition("-v")[2].isdigit() else 0
    known = [key for key in gymnasium.registry if key != env]
    same = [key for key in known if base(key) == base(env) and version(key) > 3] or [
        key for key in known if base(key) == base(env)
    ]
    near = (
        [max(same, key=version)] if same else difflib.get_close_matches(env, known, n=1, cutoff=0.7)
    )
    return f"; did you mean {near[0]!r}?" if near else ""


def roots() -> list[Path]:
    """Folders searched for manifests, first match wins."""
    candidates = [Path.cwd() / "datasets", shipped("datasets")]
    if "OFFBENCH_DATASETS" in os.environ:
        candidates.insert(0, Path(os.environ["OFFBENCH_DATASETS"]))
    return [path for path in dict.fromkeys(candidates) if path.is_dir()]


def manifests() -> dict[str, tuple[Path, Mapping[str, Any]]]:
    """Every dataset known here: id -> (root, manifest)."""
    found: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for root in roots():
        for path in sorted(root.glob("*--*.yaml")):
            manifest = _read_manifest(path, path.stat().st_mtime_ns)
            found.setdefault(manifest["id"], (root, manifest))
    return found


@functools.lru_cache(maxsize=4096)
def _read_manifest(path: Path, mtime_ns: int) -> Mapping[str, Any]:
    return MappingProxyType(yaml.safe_load(path.read_text()))


def canonical(task_id: str) -> str:
    """The one spelling of an id, short ones and compositions of them included; see
    `offbench.tasks.catalog.canonical`. UserError for a composition that cannot be read."""
    from offbench.data import compose
    from offbench.tasks import catalog

    made = compose.parse(compose.MIXED.get(task_id, task_id))
    return (
        catalog.canonical(made) if isinstance(made, str) else str(made.renamed(catalog.canonical))
    )


def load_task(task_id: str, *, loader: Loader = "offbench") -> Task:
    """The task of a dataset id. Raises UserError naming the nearest ids for an unknown one.

    Nothing is downloaded: see `Task.ready`. With `loader="d4rl"` a D4RL file is read by the real
    package (`offbench.tasks.formats.d4rl_package`), and the task's sha256 is another one.
    """
    from offbench.data import compose
    from offbench.tasks import cache, catalog

    if compose.is_composed(canonical(task_id)):
        return _composed_task(canonical(task_id), loader)
    card = catalog.card(task_id, kind="task")
    if card.family == "offbench":
        task = _of_card(card, manifests()[card.id][0], card.sha256 or NOT_HERE, "embedded")
        return read_by(task, loader)
    path = catalog.locate(card)
    if path is None:
        return read_by(_of_card(card, Path(), NOT_HERE, "catalog"), loader)
    return read_by(_of_card(card, path, cache.digest(path), "catalog"), loader)


def read_by(task: Task, loader: Loader) -> Task:
    """The task with its data read by that loader. UserError where it cannot read them."""
    from offbench.tasks.formats import d4rl_package

    if loader == task.loader:
        return task
    if not (task.id.startswith("d4rl/") or task.root.suffix in (".hdf5", ".h5")):
        raise UserError(f"{task.id}: loader={loader} reads D4RL's files only")
    if task.adapter == "image":
        raise UserError(f"{task.id}: loader={loader} reads no actions that are choices")
    d4rl_package.version(task.id)
    made = replace(task, loader=loader)
    return replace(made, sha256=_read_by(made, task.sha256))


def _read_by(task: Task, sha256: str) -> str:
    """The identity of what is trained on: of the file, and of the loader where it is not ours."""
    from offbench.tasks.formats import d4rl_package

    if task.loader == "offbench" or sha256 == NOT_HERE:
        return sha256
    text = f"{sha256} read by d4rl {d4rl_package.version(task.id)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _of_card(card: "Card", root: Path, sha256: str, source: Source) -> Task:
    low, high = _NO_REFERENCE
    return Task(
        id=card.id,
        root=root,
        sha256=sha256,
        env=card.env or "",
        # a task travels to worker processes
        env_kwargs=dict(card.env_kwargs),
        max_episode_steps=card.max_episode_steps,
        score=card.score,
        ref_min=low if card.ref_min is None else card.ref_min,
        ref_max=high if card.ref_max is None else card.ref_max,
        terminal_inside=card.terminal_inside,
        adapter=card.adapter,
        refused=card.refused,
        task_ids=card.task_ids,
        source=source,
    )


# a score is the return itself
_NO_REFERENCE = (0.0, 100.0)


def _composed_task(task_id: str, loader: Loader) -> Task:
    """Judged as the first of its parts; its sha256 is of its id and of those of its parts."""
    from offbench.data import compose

    made = compose.parse(task_id)
    assert not isinstance(made, str)
    parts = [load_task(part, loader=loader) for part in made.leaves]
    text = "\n".join([str(made), *(part.sha256 for part in parts)])
    whole = all(part.sha256 != NOT_HERE for part in parts)
    return replace(
        parts[0],
        id=str(made),
        sha256=hashlib.sha256(text.encode()).hexdigest() if whole else NOT_HERE,
        source="composed",
    )


def own_task(
    data: str | Path,
    *,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    id: str | None = None,
    max_episode_steps: int | None = None,
    actions: Actions = "env",
    n_actions: int | None = None,
    score: Literal["return", "success"] = "return",
    ref_min: float = _NO_REFERENCE[0],
    ref_max: float = _NO_REFERENCE[1],
) -> Task:
    """Your own data, a file or folder in one of the layouts of `offbench.tasks.formats.arrays`.

    Args:
        data: a file or folder.
        env: the gymnasium id to evaluate in; a Minari folder names its own; "none" for no environment.
            Without one, policies are trained and compared by validation metrics on held-out episodes.
        max_episode_steps: where the recorder cut episodes, for a file that does not mark it; else
            the time limit of the environment.
        actions: "env": recorded as the environment takes them (without one: scaled from the range of
            what was recorded where that goes beyond [-1, 1]); "unit": already scaled to [-1, 1].
        n_actions: the number of choices of discrete actions, where no environment says it.
        ref_min, ref_max: returns that score 0 and 100; without them a score is the return itself.

    Raises:
        UserError: nothing lies at `data`, or the environment is unknown.
    """
    from offbench.tasks import cache
    from offbench.tasks.formats import arrays, minari

    path = Path(data).expanduser()
    name = id or f"own/{path.stem}"
    if not path.exists():
        raise UserError(f"{name}: {path} does not exist")
    kwargs, given = dict(env_kwargs or {}), max_episode_steps is not None
    layout = arrays.layout(path, name=name)
    if layout == "minari":
        meta = minari.metadata(path, name=name)
        found = None if env else meta.eval_env or meta.env
        if found is not None:
            env, kwargs = found.id, {**found.kwargs, **kwargs}
            max_episode_steps = max_episode_steps or found.max_episode_steps
        if (
            (ref_min, ref_max) == _NO_REFERENCE
            and meta.ref_min is not None
            and meta.ref_max is not None
        ):
            ref_min, ref_max = meta.ref_min, meta.ref_max
    env = "" if env in (None, "none") else env
    if not ref_max > ref_min:
        raise UserError(f"{name}: ref_max={ref_max} must lie above ref_min={ref_min}")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise UserError(f"{name}: max_episode_steps={max_episode_steps} must be at least 1")
    if actions not in get_args(Actions):
        raise unknown("actions", actions, get_args(Actions))
    reading = None
    if env and (layout != "minari" or max_episode_steps is None):
        reading = read_for(env, kwargs, name, max_episode_steps, given, actions)
        max_episode_steps = reading.max_episode_steps
    elif layout == "steps":
        reading = arrays.reading(
            path, name, actions=actions, n_actions=n_actions, limit=max_episode_steps
        )
    return Task(
        id=name,
        root=path.resolve(),
        sha256=cache.digest(path),
        env=env,
        env_kwargs=kwargs,
        max_episode_steps=max_episode_steps or (1000 if env else 0),
        score=score,
        ref_min=ref_min,
        ref_max=ref_max,
        terminal_inside=layout == "ogbench",
        source="path",
        reading=None if layout == "minari" else reading,
    )


def read_for(
    env: str,
    kwargs: Mapping[str, Any],
    name: str,
    limit: int | None,
    given: bool,
    actions: str = "env",
) -> "Reading":
    """What an environment says of how data recorded in it are read."""
    from gymnasium.spaces import Box, Discrete

    from offbench.tasks.formats.arrays import Reading

    made = make_env(env, kwargs, name)
    try:
        if limit is None and made.spec is not None:
            limit = made.spec.max_episode_steps
        space = made.unwrapped.action_space
    finally:
        made.close()
    found = Reading(max_episode_steps=limit or 1000, limit_given=given)
    if isinstance(space, Discrete):
        return replace(found, n_actions=int(space.n), first_action=int(space.start))
    bounded = isinstance(space, Box) and np.isfinite([space.low, space.high]).all()
    if actions == "unit":
        return replace(found, unit=True)
    if not bounded:
        return found
    return replace(
        found, low=tuple(space.low.ravel().tolist()), high=tuple(space.high.ravel().tolist())
    )
