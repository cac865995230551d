"""From a command line to cells: what to train on what, every value with where it came from.

Hydra composes `conf/` (and the `conf` of any installed package with an `offbench.conf` entry point)
and parses the overrides. The layers of a cell, later ones win:

    the class's own defaults < conf/method/*.yaml < the suite's protocol < the method's published budget
    < the method's preset for the task < the suite's `overrides` < the command line

Presets are rows of conf/presets/METHOD.csv, then the `presets` of conf/method/METHOD.yaml. Where no
suite is named, that of the task is used (conf/protocols.yaml): the toy settings of `quick` reach no
published task unless `suite=quick` is said.

Nothing below this module knows of Hydra; a `Cell` is plain data and travels to worker processes.
"""

import csv
import difflib
import importlib
import inspect
import itertools
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from offbench.data import compose
from offbench.errors import UserError, unknown
from offbench.results.records import RunSpec
from offbench.tasks.task import Loader, Task, canonical, load_task, own_task, read_by

GROUPS = ("method", "sampler", "view", "weight", "suite")
AROUND = ("sampler", "view", "weight")  # what composes around a method
Keep = Literal["policy", "state", "none"]
HELD_OUT = 0.1  # share of the episodes, where there is no environment and nothing else is said
NAMES_OF_VIEWS = {"nstep": "n", "chunk": "h"}  # the number in `iql+nstep3`


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    episodes: int | None = None
    envs: int = 5
    monitor_at: tuple[float, ...] | None = None
    monitor_episodes: int = 3
    validation: float | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The types of conf/run.yaml."""

    task: str | None = None
    methods: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    n_updates: int | None = None
    batch_size: int = 256
    gamma: float = 0.99
    transforms: Mapping[str, Any] = field(default_factory=dict)
    preset: Literal["usual", "paper", "corl", "alone", "none"] = "usual"
    eval: EvalSettings = EvalSettings()
    device: str = "auto"
    engine: Literal["auto", "vmap", "eager", "compile", "cudagraph"] = "auto"
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    data: Literal["device", "host"] = "device"
    keep: Keep = "policy"
    max_stack: int | None = None
    checkpoint_minutes: float = 5.0
    jobs: int | Literal["auto"] = "auto"
    sink: Literal["none", "wandb"] = "none"
    results: str = "results"
    tuning: Mapping[str, Any] | None = None
    label: str | None = None
    strict: bool = False
    loader: Loader = "offbench"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the board on one task: every seed of it, trained as one stack."""

    entry: str
    suite: str
    suite_version: int
    task: Task
    method: str  # registry name, or the dotted path of an outside class
    target: str  # dotted path of the class
    hparams: Mapping[str, Any]
    pipeline: Mapping[str, Any]  # view, sampler, transforms, batch_size, gamma
    seeds: tuple[int, ...]
    n_updates: int
    protocol: Mapping[str, Any]
    tuning: Mapping[str, Any]
    overrides: Mapping[str, Any]  # what the command line set
    sources: Mapping[str, str]  # dotted setting -> where its value came from

    @property
    def recorded_sources(self) -> dict[str, str]:
        """The sources of what defines a run; those of device, engine and the like are left out."""
        return {k: v for k, v in sorted(self.sources.items()) if k.split(".")[0] in _DEFINING}

    def runs(self) -> list[RunSpec]:
        return [
            RunSpec(
                suite=self.suite,
                suite_version=self.suite_version,
                task=self.task.id,
                dataset=self.task.dataset,
                dataset_sha256=self.task.sha256,
                env=self.environment,
                method=self.method,
                hparams=self.hparams,
                pipeline=self.pipeline,
                n_updates=self.n_updates,
                seed=seed,
                protocol=self.protocol,
            )
            for seed in self.seeds
        ]

    @property
    def environment(self) -> dict[str, Any]:
        return self.task.judge


_TUNABLE = ("method", *AROUND, "transforms", "batch_size", "gamma")  # what tuning is about
_DEFINING = (*_TUNABLE, "n_updates", "eval", "seeds", "loader", "precision")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command line asks for."""

    cells: tuple[Cell, ...]
    settings: Settings
    suite: Mapping[str, Any]
    named: bool = True  # whether the command line named the suite

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(cell.task.id for cell in self.cells))

    @property
    def name(self) -> str:
        return self.suite["id"]


# --- hydra ----------------------------------------------------------------------------------


def conf_dir() -> Path:
    """`conf/` inside the wheel, or beside the package in a checkout."""
    here = Path(__file__).resolve().parent.parent
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


@contextmanager
def _hydra() -> Iterator[Any]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class ExternalConf(SearchPathPlugin):
        """Adds the conf of every installed package that declares an `offbench.conf` entry point."""

        def manipulate_search_path(self, search_path: Any) -> None:
            for entry in entry_points(group="offbench.conf"):
                search_path.append(provider=entry.name, path=f"pkg://{entry.value}")

    if not any(p.__name__ == "ExternalConf" for p in Plugins.instance().discover(SearchPathPlugin)):
        Plugins.instance().register(ExternalConf)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@cache
def options(group: str) -> tuple[str, ...]:
    """Names in a config group: `options("method")`."""
    with _hydra() as loader:
        return tuple(sorted(loader.get_group_options(group)))


def read_option(group: str, name: str) -> dict[str, Any]:
    """One option of a group as plain data; for a method, the whole config it makes."""
    if name not in options(group):
        raise unknown(group, name, options(group))
    config = _compose(f"{group}={name}")
    if group == "method" and "_target_" not in config["method"]:
        raise UserError(
            f"conf/method/{name}.yaml: the first line must be '# @package _global_', no other comment"
            " above it, and below it method: {_target_: package.Class}"
        )
    return config if group == "method" else config[group]


def _compose(*choices: str) -> dict[str, Any]:
    return deepcopy(_composed(choices))


@cache  # a bench of many entries composes the same few files again and again
def _composed(choices: tuple[str, ...]) -> dict[str, Any]:
    from hydra import compose
    from omegaconf import OmegaConf

    with _hydra():
        return OmegaConf.to_container(compose("run", list(choices)))  # `Layers` resolves


def _parse(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Overrides as {key: value}, one dict per point of a sweep (`method.alpha=1,2.5`)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from hydra.errors import HydraException

    axes = []
    for text in overrides:
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException:
            raise UserError(
                f"cannot read {text!r}: settings are written key=value, lists as [1,2], text as 'a b'"
            ) from None
        if parsed.is_add() or parsed.is_delete() or parsed.is_force_add():
            raise UserError(
                f"{text!r}: settings are replaced (key=value), not added or deleted; null switches one off"
            )
        key = parsed.key_or_group
        if not parsed.is_sweep_override():
            axes.append([(key, _plain(parsed.value()))])
        elif isinstance(parsed.value(), ChoiceSweep):
            axes.append([(key, _plain(value)) for value in parsed.value().list])
        else:
            raise UserError(f"{text!r}: only choices can be swept (a=1,2,3)")
    return [dict(point) for point in itertools.product(*axes)]


def _plain(value: Any) -> Any:
    """Hydra's quoted strings as text, inside lists and dicts too."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(x) for x in value]
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    return value


# --- cells ----------------------------------------------------------------------------------


def plan(overrides: Sequence[str], *, bench: bool) -> Plan:
    """The cells that a command line describes.

    With `bench`, the methods are the suite's unless `methods=[...]` or `method=` says otherwise;
    without, `method=` must be given. Raises UserError for anything misspelt, mistyped or impossible.
    """
    points = _parse(overrides)
    swept = {k for p in points for k, v in p.items() if v != points[0][k] and k != "preset"}
    if "task" in swept:  # one label on all of them, whatever is usual on each
        swept |= points[0].keys()
    plans = [_plan_point(point, swept, bench=bench) for point in points]
    cells = tuple(cell for p in plans for cell in p.cells)
    if len(names := {p.name for p in plans}) > 1:
        raise UserError(
            f"one board, one suite, and these are of {', '.join(sorted(names))}: name one with suite="
        )
    seen: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        if seen.setdefault((cell.entry, cell.task.id), cell) is not cell:
            raise UserError(
                f"{cell.entry} on {cell.task.id} is asked for twice; give the rows different labels"
            )
    return replace(plans[0], cells=cells)


def _plan_point(given: dict[str, Any], swept: Set[str], *, bench: bool) -> Plan:
    """`swept` are the settings that the command line gives several values, which a label always names."""
    choices = {g: given.pop(g) for g in GROUPS if g in given}
    for group, name in choices.items():
        if name is not None and not isinstance(name, str):
            raise UserError(
                f"{group}={name!r} must be a name; {group} settings are written {group}.key=value"
            )
    if bad := [k for k in given if k.split(".")[0] == "suite"]:
        raise UserError(
            f"{bad[0]}: a published suite is not edited; set task, seeds, n_updates or eval instead"
        )

    own = {k.split(".", 1)[1]: given.pop(k) for k in list(given) if k.startswith("task.")}
    if own:
        given["task"] = _own_task(own, given.get("task"))
    named = choices.get("suite")
    suite = read_option(
        "suite", named or (home_of(given["task"]) if given.get("task") else "quick")
    )
    if not (given.get("task") or suite["tasks"]):
        raise UserError(f"suite={suite['id']} has no tasks of its own: name one, or task.data=PATH")
    target = given.get("method._target_")
    if choices.get("method") or target:
        entries: Sequence[str | None] = (choices.get("method"),)
    elif bench:
        entries = (
            coerce(given.get("methods"), tuple[str, ...] | None, "methods") or suite["methods"]
        )
    else:
        raise UserError(
            f"method= is missing: {', '.join(options('method'))}, or method._target_=package.Class"
        )
    made = [pair for entry in entries for pair in _entry_cells(entry, choices, given, suite, swept)]
    settings = made[-1][1]
    if (wanted := made[-1][1].preset) in VARIANTS:
        own_row = f"preset={wanted} "
        if not any(v.startswith(own_row) for cell, _ in made for v in cell.sources.values()):
            raise UserError(
                f"preset={wanted}: no row of these methods and tasks has settings of its own; there are"
                f" such for {', '.join(_variants(wanted))}"
            )
    cells = tuple(cell for cell, _ in made)
    return Plan(cells=cells, settings=settings, suite=suite, named=named is not None)


# --- the suite of a task --------------------------------------------------------------------


def home_of(task: "Task | str") -> str:
    """The suite whose protocol a task has where none is named: see conf/protocols.yaml."""
    if isinstance(task, Task) and task.source == "path":
        return _ELSEWHERE
    task_id = canonical(_task_id(task.id if isinstance(task, Task) else task))
    patterns = _protocols()
    suites = [*patterns, *(s for s in options("suite") if s not in patterns)]  # of plugins, too
    part = _first_part(task_id)
    for wanted in dict.fromkeys([task_id, part]):
        for suite in suites:
            if wanted in _tasks_of(suite):
                return suite
    matches = (s for s, found in patterns.items() if any(fnmatch(part, p) for p in found or ()))
    return next(matches, _ELSEWHERE)


_ELSEWHERE = "other"


@cache
def _protocols() -> Mapping[str, Sequence[str]]:
    """Suite -> patterns of the tasks that have its protocol where no suite is named."""
    return yaml.safe_load((conf_dir() / "protocols.yaml").read_text())


def _first_part(task_id: str) -> str:
    """The set whose protocol and budgets a mixture has; of any other task itself."""
    made = compose.parse(task_id)
    return made if isinstance(made, str) else canonical(made.leaves[0])


@cache
def _tasks_of(suite: str) -> frozenset[str]:
    return frozenset(canonical(name) for name in read_option("suite", suite)["tasks"])


def protocol_of(
    task: Task, suite: str | None, episodes: int | None
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The suite that a task's rows are recorded under, and how a policy that is not trained is evaluated."""
    home = read_option("suite", suite or home_of(task))
    layers = Layers(_compose(), "default")
    for one in (read_option("suite", home_of(task)), home):
        layers.update(_protocol(one), f"suite {one['id']}")
    layers.update(_overrides(home, None, task.id), f"suite {home['id']}", lenient=True)
    layers.update({"eval.episodes": episodes} if episodes is not None else {}, "argument")
    asked = {k: layers.values[f"eval.{k}"] for k in ("episodes", "envs")}
    if (asked["episodes"] or 0) < 1:
        raise UserError(f"episodes={asked['episodes']} must be at least 1")
    return home, {**asked, "monitor_at": [], "monitor_episodes": 0}


def _protocol(suite: Mapping[str, Any]) -> dict[str, Any]:
    """What a suite says of seeds, budget and evaluation; a method's published budget wins over it."""
    own = {k: suite[k] for k in ("seeds", "n_updates") if suite.get(k) is not None}
    return own | {f"eval.{k}": v for k, v in (suite.get("eval") or {}).items()}


def _overrides(suite: Mapping[str, Any], method: str | None, task_id: str) -> dict[str, Any]:
    """What a suite insists on, whatever is published: for every method, then for one on some tasks."""
    changes = _flatten(suite.get("overrides") or {})
    for pattern, more in ((suite.get("overrides_of") or {}).get(method) or {}).items():
        changes |= _flatten(more) if fnmatch(task_id, pattern) else {}
    return changes


# --- one entry ------------------------------------------------------------------------------


def _own_task(own: Mapping[str, Any], task_id: Any) -> Task:
    """`task.data=PATH task.env=HalfCheetah-v5`: the user's data as a task."""
    hints = {k: v for k, v in get_type_hints(own_task).items() if k not in ("return", "id")}
    for key in own:
        if key not in hints:
            raise unknown("setting", f"task.{key}", [f"task.{k}" for k in hints])
    if "data" not in own:
        raise UserError(
            "task.data=PATH is missing: a file in D4RL or OGBench layout or a Minari folder"
        )
    values = {k: coerce(v, hints[k], f"task.{k}") for k, v in own.items()}
    return own_task(values.pop("data"), id=coerce(task_id, str | None, "task"), **values)


class Method(NamedTuple):
    """A method with what is composed around it, before anything is known of the task."""

    name: str | None  # as it was asked for
    picked: Mapping[str, tuple[str, dict]]  # group -> option and the number in its name
    values: "Layers"
    plain: Mapping[str, Any]  # the values without what is composed around it
    presets: "Sequence[Preset]"
    budgets: "Sequence[Preset]"


def _entry_cells(
    entry: str | None, choices: Mapping, given: Mapping, suite: Mapping, swept: Set[str]
) -> Iterator[tuple[Cell, Settings]]:
    """The cells of `iql+aw`, one per task, and of `mymodule.Class+nstep3`."""
    named = (entry or "").partition("+")[0]
    if "." in named:  # a class from elsewhere, without a yaml
        given = {**given, "method._target_": named}
    for point in _expand(given, _method(entry, choices, given).values.hints):
        lists = {k for k in point if point[k] is not given[k]}
        yield from _task_cells(_method(entry, choices, point), suite, point, swept | lists)


def _method(entry: str | None, choices: Mapping, given: Mapping) -> Method:
    name, picked = _split_entry(entry, choices)
    base = read_option("method", name) if name else {**_compose(), "method": {}}
    source = (base.get("known_as") or {}).get(_span_of(base, picked, given), name)
    if source != name:  # FQL on chunks of 5 is QC-FQL, with its settings
        base = read_option("method", source)
    presets = (
        *(preset_table(source) if source else ()),
        *_yaml_presets(base.pop("presets", None) or ()),
    )
    budgets = tuple(_yaml_presets(base.pop("budgets", None) or ()))
    for key in ("suite", "summary", "known_as"):
        base.pop(key, None)
    values = Layers(base, f"conf/method/{source}.yaml" if source else "default")
    plain = dict(values.values)
    for group in AROUND:
        option, extra = picked.get(group, (None, {}))
        made = read_option(group, option) if option else {}
        # `qc+chunk10` changes the length and keeps what else the method says of its own view
        if option and made["_target_"] != values.values[f"{group}._target_"]:
            values.replace(group, made, f"conf/{group}/{option}.yaml")
    if "method._target_" in given:
        values.replace("method", {"_target_": given["method._target_"]}, "command line")
    _check_method(locate(values.values["method._target_"]))
    for group in ("method", *AROUND):
        values.fill_defaults(group)
        _, extra = picked.get(group, (None, {}))
        values.update({f"{group}.{k}": v for k, v in extra.items()}, f"entry {entry}")
    return Method(name, picked, values, plain, presets, budgets)


def _span_of(base: Mapping, picked: Mapping, given: Mapping) -> str | None:
    """What the view of an entry spans, as its name has it: chunk5, nstep1."""
    view = base["view"]
    option, extra = picked.get("view", (None, {}))
    made = read_option("view", option) if option else view
    if made["_target_"] == view["_target_"]:
        made = view
    for word, number in NAMES_OF_VIEWS.items():
        if made["_target_"] == read_option("view", word)["_target_"]:
            return f"{word}{given.get(f'view.{number}', extra.get(number, made[number]))}"
    return None


def _expand(given: Mapping[str, Any], hints: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A list given to a number is a sweep: `method.expectile=[0.7,0.8]` trains both in one stack."""
    # where a number may be left open (null) and still swept
    own = ("method.", *(f"{group}." for group in AROUND))
    number = lambda k: (
        hints.get(k) in (int, float)
        or (hints.get(k) in (int | None, float | None) and k.startswith(own))
    )
    lists = {k: v for k, v in given.items() if number(k) and isinstance(v, list)}
    if empty := [k for k, v in lists.items() if not v]:
        raise UserError(f"{empty[0]}=[] is a sweep over nothing")
    for values in itertools.product(*lists.values()):
        yield {**given, **dict(zip(lists, values, strict=True))}


def _task_cells(
    method: Method, suite: Mapping, given: Mapping, swept: Set[str]
) -> Iterator[tuple[Cell, Settings]]:
    task_names = [given["task"]] if given.get("task") else suite["tasks"]
    if not given.get("task") and (only := (suite.get("only") or {}).get(method.name)):
        task_names = [t for t in task_names if any(fnmatch(t, pattern) for pattern in only)]
    skipped = (
        "methods",
        "method._target_",
        *(["task"] if isinstance(given.get("task"), Task) else []),
    )
    filled = ("seeds", "n_updates", "eval.episodes")
    given = {
        k: v for k, v in given.items() if k not in skipped and not (v is None and k in filled)
    }
    made: list[tuple[Cell, Settings]] = []
    changed = set(swept)  # by the command line, on one task at least
    for task_name in task_names:
        loader = coerce(given.get("loader", "offbench"), Loader, "loader")
        if isinstance(task_name, Task):
            task = read_by(task_name, loader)
        else:
            task = load_task(_task_id(task_name), loader=loader)
        task.check_trainable()
        insisted = _overrides(suite, method.name, task.id)
        if is_torch_class(locate(method.values.values["method._target_"])):  # as it was written
            insisted = {k: v for k, v in insisted.items() if not k.startswith("method.")}
        own, preset = _published(method, suite, task, {**insisted, **given})
        # a suite that is named for a task of another says nothing that was published for it
        home = suite["id"] if canonical(task.id) in _tasks_of(suite["id"]) else home_of(task)
        published = own.copy()
        if home != suite["id"]:
            published = _published(method, read_option("suite", home), task, {**insisted, **given})[0]
        own.update(insisted, f"suite {suite['id']}", lenient=True)
        without = own.copy()
        own.update(given, "command line")
        around = ("method", *AROUND)
        flat = {k: own.resolved(k) for k in own.values if k.split(".")[0] not in around}
        settings = _build(Settings, _nest(flat))
        if not task.env:
            settings = _without_environment(own, settings, task, given)
        _check_settings(settings)
        changed |= {k for k in given if _changes(own, without, k)}
        tuning = _tuning(own, published, settings, preset)
        made.append((_cell(own, method, task, suite, settings, given, tuning), settings))
    in_label = {k: v for k, v in given.items() if k in changed}
    for cell, settings in made:
        yield replace(cell, entry=settings.label or _label(method, cell.target, in_label)), settings


def _without_environment(
    own: "Layers", settings: Settings, task: Task, given: Mapping
) -> Settings:
    """Without test episodes, with some of the recorded episodes held out instead."""
    if given.get("eval.episodes") or given.get("eval.monitor_at"):
        raise UserError(
            f"{task.id}: there is no environment to play evaluation episodes in; name one"
            " (task.env=HalfCheetah-v5), or leave eval.episodes and eval.monitor_at out"
        )
    share = settings.eval.validation
    if share is None:
        share, own.sources["eval.validation"] = HELD_OUT, "no environment"
    own.sources |= dict.fromkeys(("eval.episodes", "eval.monitor_at"), "no environment")
    return replace(settings, eval=replace(settings.eval, episodes=0, monitor_at=(), validation=share))


def _published(
    method: Method, suite: Mapping, task: Task, later: Mapping
) -> "tuple[Layers, Preset | None]":
    """The settings as they are published for a method on a task, before anybody overrides them.

    `later` is what will be: a preset is for a composition, which it may still change.
    """
    own, home = method.values.copy(), suite
    if canonical(task.id) not in _tasks_of(suite["id"]):
        home = read_option("suite", home_of(task))
    for one in (home, suite):
        own.update(_protocol(one), f"suite {one['id']}")
    listed = canonical(task.id) in _tasks_of(home["id"])  # or a mixture, like its first part
    part = task.id if listed else _first_part(task.id)
    if budget := _chosen(method.budgets, part, "usual", None):
        carried = "" if part == task.id else "carried over from its first part: "
        own.update(budget.settings, f"{carried}budget ({budget.source})")
    asked = later.get("preset", own.values["preset"])
    choice = coerce(asked, own.hints["preset"], "preset")
    composed = None if choice == "alone" else _composition({**own.values, **later})
    preset = _chosen(method.presets, task.id, choice, composed, method.plain)
    if preset:
        # it knows the method as its yaml composes it, and gives way to what the entry says
        fitting = {
            k: v
            for k, v in preset.settings.items()
            if k.split(".")[0] not in _replaced(own)
            and not own.sources.get(k, "").startswith("entry ")
        }
        by = f"preset={preset.by}" if preset.by else "preset"
        own.update(fitting, f"{by} ({preset.source})")
    return own, preset


def _task_id(name: Any) -> str:
    task_id = coerce(name, str, "task")
    if Path(task_id).suffix in (".hdf5", ".h5", ".npz"):
        raise UserError(
            f"task={task_id} is a file; own data are written task.data={task_id} task.env=HalfCheetah-v5"
        )
    return task_id


def _cell(
    own: "Layers", method: Method, task: Task, suite: Mapping, settings: Settings,
    given: Mapping, tuning: Mapping[str, Any],
) -> Cell:  # fmt: skip
    target = own.values["method._target_"]
    hparams = own.typed("method")
    _check_ranges("method", target, hparams)
    if not is_torch_class(locate(target)):
        locate(target)(**hparams)  # which refuses counts that cannot be, before anything is downloaded
    if weighted := own.values["weight._target_"]:
        _check_ranges("weight", weighted, own.typed("weight"))
    pipeline = {
        "view": _identity_of_view(own),
        "sampler": {"name": name_of("sampler", own.values["sampler._target_"]), **own.typed("sampler")},
        "transforms": _typed_transforms(settings.transforms),
        "batch_size": settings.batch_size,
        "gamma": settings.gamma,
    }
    # not there where they have always been so: ids of runs stay what they were
    rewards = [name for name in pipeline["transforms"] if name.startswith("reward_")]
    if rewards != sorted(rewards):  # results depend on the order, the id of a mapping does not
        pipeline["reward_order"] = rewards
    if settings.precision != "float32":
        pipeline["precision"] = settings.precision
    if weighted:
        pipeline["weight"] = {"name": name_of("weight", weighted), **own.typed("weight")}
    monitor_at = settings.eval.monitor_at or ()
    protocol = {
        "episodes": settings.eval.episodes,
        "envs": settings.eval.envs,
        "monitor_at": list(monitor_at),
        "monitor_episodes": settings.eval.monitor_episodes if monitor_at else 0,
    }
    if settings.eval.validation:
        protocol["validation"] = settings.eval.validation
    return Cell(
        entry="",  # which depends on the other tasks
        suite=suite["id"],
        suite_version=suite["version"],
        task=task,
        method=method.name or target,
        target=target,
        hparams=hparams,
        pipeline=pipeline,
        seeds=settings.seeds or (),
        n_updates=settings.n_updates or 0,
        protocol=protocol,
        tuning=tuning,
        overrides={k: v for k, v in given.items() if k in own.values or k.startswith("transforms")},
        sources=own.sources,
    )


def _identity_of_view(own: "Layers") -> dict[str, Any]:
    """A view's settings; what changes nothing in single steps is left out, so that ids of runs stay."""
    view = own.typed("view")
    if (
        "n" in view
    ):  # the settings that chunks have had from the beginning, and n-step returns have not
        usual = {"pad": True, "rewards_after_terminal": False}
        view = {k: v for k, v in view.items() if k == "n" or (view["n"] > 1 and v != usual[k])}
    return {"name": name_of("view", own.values["view._target_"]), **view}


def _split_entry(
    entry: str | None, choices: Mapping
) -> tuple[str | None, dict[str, tuple[str, dict]]]:
    """`iql+aw+nstep3` -> ("iql", {"sampler": ("aw", {}), "view": ("nstep", {"n": 3})})."""
    picked = {g: (choices[g], {}) for g in AROUND if choices.get(g)}
    if entry is None:
        return None, picked
    name, *modifiers = entry.split("+")
    name = None if "." in name else name
    samplers, views, weights = options("sampler"), options("view"), options("weight")
    said: dict[str, str] = {}  # group -> the word of the entry that picked it
    for word in modifiers:
        match = re.fullmatch(r"([a-z_]+?)(\d+)", word)
        if word in samplers:
            group, found = "sampler", (word, {})
        elif word in weights:
            group, found = "weight", (word, {})
        elif word in views:
            group, found = "view", (word, {})
        elif match and match[1] in NAMES_OF_VIEWS:
            group, found = "view", (match[1], {NAMES_OF_VIEWS[match[1]]: int(match[2])})
        else:
            raise unknown(
                f"sampler, view or weight in {entry!r}:", word, [*samplers, *views, *weights]
            )
        if group in said:
            raise UserError(f"{entry!r} names two {group}s, {said[group]} and {word}: one is used")
        said[group], picked[group] = word, found
    return name, picked


def _replaced(own: "Layers") -> set[str]:
    """The groups around a method in which another class stands for the one of its yaml."""
    return {g for g in AROUND if own.sources[f"{g}._target_"].startswith(f"conf/{g}/")}


def _label(method: Method, target: str, changed: Mapping) -> str:
    """What the board calls a row: the method, what was composed around it, and what was changed."""
    words = [method.name or target.rsplit(".", 1)[-1]]
    # an entry that is another published method is still called what it was asked for as
    base = read_option("method", method.name) if method.name else _compose()
    for group in AROUND:
        option, extra = method.picked.get(group, (None, {}))
        number = "".join(str(v) for v in extra.values())
        own = option and read_option(group, option)["_target_"] == base[group]["_target_"]
        usual = option in ("uniform", "nstep", "none") and own
        if (option and not usual) or number:
            words.append(f"{option}{number}")
    named = [
        f"{k.removeprefix('method.')}={_short(v)}"
        for k, v in changed.items()
        if k.split(".")[0] in (*_TUNABLE, "loader", "precision", "preset")
    ]
    return "+".join(words) + (f"({','.join(named)})" if named else "")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")


def _tuning(
    own: "Layers", published: "Layers", settings: Settings, preset: "Preset | None"
) -> dict[str, Any]:
    """How the hyper-parameters were chosen (see `offbench.results.records.Provenance`)."""
    extra = dict(settings.tuning or {})
    tried = extra.pop("configurations", 1)
    source = extra.pop("source", None)
    if extra:
        raise unknown("key of tuning", next(iter(extra)), ("configurations", "source"))
    overridden = _differing(own, published)
    users = [k for k in overridden if k != "n_updates" and _said_by(own, k) == "command line"]
    if own.sources["method._target_"] == "command line":
        users = ["method._target_", *users]
    if settings.tuning or (users and not preset):
        how = "user"
    elif preset:
        how = "task preset" + _in_words(overridden)
        by = dict.fromkeys(_said_by(own, k) for k in overridden)
        source = "; ".join([preset.source, *by])
    elif any(s.startswith("suite") for k, s in own.sources.items() if k.startswith("method.")):
        how = "suite"
    else:
        how = "default"
    if settings.preset in VARIANTS and (preset is None or preset.by != settings.preset):
        source = f"no row for preset={settings.preset}; {source or ', '.join(users) or how}"
    return {
        "how": how,
        "tried": tried,
        "source": source or ", ".join(users) or how,
        "preset": preset.source if preset else None,
        "overridden": overridden,
        "published_updates": _if_published(published, "n_updates"),
        "published_episodes": _if_published(published, "eval.episodes"),
    }


def _differing(own: "Layers", published: "Layers") -> list[str]:
    """The settings of a method and its data, and the number of updates, that are not what is published."""
    keys = [k for k in own.values if k.split(".")[0] in ("method", *AROUND, "batch_size", "gamma")]
    last = ["n_updates"] if published.values["n_updates"] is not None else []
    found = [k for k in (*keys, *last) if _differs(own, published, k)]
    return [*found, "transforms"] if _changes(own, published, "transforms") else found


def _changes(own: "Layers", other: "Layers", key: str) -> bool:
    """Whether a setting is not what it is in other layers; of transforms, all together and in order."""
    if key.split(".")[0] != "transforms":
        return _differs(own, other, key)
    ours, theirs = (_typed_transforms(layers.nested("transforms")) for layers in (own, other))
    return list(ours.items()) != list(theirs.items())


def _differs(own: "Layers", published: "Layers", key: str) -> bool:
    """As they were said: what refers to the number of updates is not changed with it."""
    if key not in published.values:
        return True
    typed = lambda v: v if _refers(v) or key not in own.hints else coerce(v, own.hints[key], key)
    return typed(own.values[key]) != typed(published.values[key])


def _said_by(own: "Layers", key: str) -> str:
    found = [s for k, s in own.sources.items() if k == key or k.startswith(f"{key}.")]
    return next((s for s in found if s == "command line"), found[-1] if found else "command line")


def _in_words(overridden: Sequence[str]) -> str:
    """ ", 3 settings overridden (hidden, lr, n_updates)"; nothing where there are none."""
    if not overridden:
        return ""
    names = [k.removeprefix("method.") for k in overridden]
    more = f" and {len(names) - 4} more" if len(names) > 5 else ""
    plural = "s" if len(names) > 1 else ""
    return f", {len(names)} setting{plural} overridden ({', '.join(names[:4] if more else names)}{more})"


def _if_published(published: "Layers", key: str) -> Any:
    """A value of the budget, None where it is nobody's published one."""
    source = published.sources[key]
    kind, _, name = source.partition(" ")
    whose = kind == "suite" and read_option("suite", name).get("protocol")
    return published.values[key] if whose or source.startswith(("budget", "preset")) else None


_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = types.MappingProxyType(
    {name: (lambda x: x > 0, "above 0") for name in ("lr", "actor_lr", "critic_lr", "max_weight",
     "temperature", "softmax_temperature", "value_temperature", "huber_delta")}
    | {name: (lambda x: min(x, default=1) >= 1, "widths of at least 1") for name in ("hidden", "critic_hidden")}
    | {name: (lambda x: 0 <= x < 1, "in [0, 1)") for name in ("dropout", "actor_dropout")}
    | {name: (lambda x: 0 < x < 1, "in (0, 1)") for name in ("expectile", "distill_expectile", "anchor_expectile",
     "backup_quantile")}
    | {"polyak_rate": (lambda x: 0 < x <= 1, "in (0, 1]")}
)  # fmt: skip
"""What values of our own methods' settings can be, beside counts: name -> test, words."""


def _check_ranges(group: str, target: str, values: Mapping[str, Any]) -> None:
    """Raises UserError for a value that an update would not notice and no result survives: a negative
    learning rate, an expectile above 1. A class from elsewhere knows its own."""
    for name in _RANGES.keys() & values.keys() if target.startswith("offbench.") else ():
        good, words = _RANGES[name]
        if values[name] is not None and not good(values[name]):
            raise UserError(f"{group}.{name}={_short(values[name])} must be {words}")


def _typed_transforms(transforms: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Names with their options, coerced to the types of `offbench.data.transforms`; null ones dropped."""
    from offbench.data.transforms import TRANSFORMS

    made: dict[str, dict[str, Any]] = {}
    for name, given in transforms.items():
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise UserError(f"transforms.{name}={given!r} must be its options, {{}} for none")
        hints = get_type_hints(TRANSFORMS[name])
        del hints["data"], hints["return"]
        for key in given:
            if key not in hints:
                raise unknown(f"option of transforms.{name}", key, hints)
        made[name] = {k: coerce(v, hints[k], f"transforms.{name}.{k}") for k, v in given.items()}
    return made


def _check_settings(s: Settings) -> None:
    from offbench.data.transforms import TRANSFORMS

    def need(good: bool, message: str) -> None:
        if not good:
            raise UserError(message)

    seeds = s.seeds or ()
    need(len(seeds) > 0, "seeds must name at least one seed, for example seeds=[0,1,2]")
    need(len(set(seeds)) == len(seeds), f"seeds={list(seeds)} has duplicates")
    need(min(seeds) >= 0, f"seeds={list(seeds)}: a seed is a whole number >= 0")
    need((s.n_updates or 0) >= 1, f"n_updates={s.n_updates} must be at least 1")
    need(s.batch_size >= 1, f"batch_size={s.batch_size} must be at least 1")
    need(0 <= s.gamma <= 1, f"gamma={s.gamma} must lie in [0, 1]")
    need(
        (s.eval.episodes or 0) >= 1 or (s.eval.episodes == 0 and bool(s.eval.validation)),
        f"eval.episodes={s.eval.episodes} must be at least 1, or 0 with eval.validation=0.1",
    )
    need(
        s.eval.validation is None or 0 < s.eval.validation < 1,
        f"eval.validation={s.eval.validation} is not a share of the episodes in (0, 1)",
    )
    need(s.max_stack is None or s.max_stack >= 1, f"max_stack={s.max_stack} must be at least 1")
    need(
        s.checkpoint_minutes >= 0, f"checkpoint_minutes={s.checkpoint_minutes} must not be negative"
    )
    need(
        s.precision != "bf16" or s.engine != "vmap",
        "precision=bf16 needs a traced engine: engine=eager, compile or cudagraph",
    )
    need(s.eval.envs >= 1, f"eval.envs={s.eval.envs} must be at least 1")
    need(
        s.eval.monitor_episodes >= 1,
        f"eval.monitor_episodes={s.eval.monitor_episodes} must be at least 1",
    )
    for x in s.eval.monitor_at or ():
        need(0 < x < 1, f"eval.monitor_at: {x} is not a fraction of training in (0, 1)")
    need(s.jobs == "auto" or int(s.jobs) >= 1, f"jobs={s.jobs} must be auto or at least 1")
    for name in s.transforms:
        if name not in TRANSFORMS:
            raise unknown("transform", name, TRANSFORMS)


# --- presets --------------------------------------------------------------------------------


VARIANTS = ("paper", "corl")
"""Whose settings a row holds that is not the usual one of its tasks."""


class Preset(NamedTuple):
    """Published settings of a method for some tasks; the first row that fits is used."""

    task: str  # task ids or patterns as in fnmatch, with spaces between them
    settings: Mapping[str, Any]  # dotted setting -> value
    source: str
    by: str | None = None  # one of VARIANTS: used only where `preset` asks for it
    around: tuple[str, ...] = (
        "",
    )  # what may be composed around it, as an entry has it: "aw", "chunk5"

    def fits(self, task_id: str) -> bool:
        return any(fnmatch(task_id, pattern) for pattern in self.task.split())


Composition = tuple[Any, ...]
# the first entries of a composition: its view and the length of it
_SPAN = 3


def _composition(values: Mapping[str, Any]) -> Composition:
    """What decides whether settings were published for an entry: its view and its length, its
    sampler, its learned weights."""
    view = values["view._target_"], values.get("view.n"), values.get("view.h")
    sampler = values["sampler._target_"], values.get("sampler.fraction"), values.get("sampler.by")
    return *view, *sampler, values["weight._target_"]


def _compositions(preset: Preset, plain: Mapping[str, Any]) -> Iterator[Composition]:
    """Those that a row is for: around the method as its yaml has it, and as the row changes it."""
    for words in preset.around:
        values = dict(plain)
        _, picked = _split_entry(f"method+{words}" if words else "method", {})
        for group, (option, extra) in picked.items():
            made = _flatten({group: read_option(group, option)})
            if made[f"{group}._target_"] != values[f"{group}._target_"]:
                values = {k: v for k, v in values.items() if k.split(".")[0] != group} | made
            values |= {f"{group}.{k}": v for k, v in extra.items()}
        yield _composition(values)
        yield _composition({**values, **preset.settings})


def _chosen(
    presets: Sequence[Preset],
    task_id: str,
    choice: str,
    composed: Composition | None,
    plain: Mapping[str, Any] = types.MappingProxyType({}),
) -> Preset | None:
    """The first row for a task and a composition (None: any): of those that are asked for by name,
    then of the usual ones.

    A sampler or learned weights for which nothing was published leave a method what it is, so that
    `iql+aw` and `iql` differ in what is drawn and in nothing else: the row is carried over, and its
    source says so. Another span of a batch element (n-step returns, chunks) is another method.
    """
    matches = [p for p in presets if p.fits(task_id)]
    wanted = tuple(dict.fromkeys((choice, None))) if choice != "none" else ()
    for by in wanted:
        for preset in matches:
            if preset.by == by and (composed is None or composed in _compositions(preset, plain)):
                return preset
    for by in wanted:
        for preset in matches:
            spans = [c[:_SPAN] for c in _compositions(preset, plain)]
            if preset.by == by and composed is not None and composed[:_SPAN] in spans:
                return preset._replace(source=f"carried over from the method alone: {preset.source}")
    return None


def _variants(by: str) -> Iterator[str]:
    """The methods that have such rows, each with its tasks."""
    for name in options("method"):
        rows = (
            *preset_table(name),
            *_yaml_presets(read_option("method", name).get("presets") or ()),
        )
        if tasks := [p.task for p in rows if p.by == by]:
            yield f"{name} ({' '.join(tasks)})"


@cache
def preset_table(name: str) -> tuple[Preset, ...]:
    """conf/presets/NAME.csv, a row per task: `task`, `source`, and a column per dotted setting.

    An empty cell sets nothing. `transforms` before `transforms.x.y` replaces those of the method. A row
    with one of VARIANTS in the column `by` is used with preset=paper or preset=corl only. A row is for
    the method alone, or for the entries in the column `around` ("alone aw rw": iql, iql+aw, iql+rw).
    `${n_updates}` is the length of the run, whatever it turns out to be.
    """
    path = conf_dir() / "presets" / f"{name}.csv"
    if not path.exists():
        return ()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    about = [[row.pop(k, None) for k in ("task", "source", "by", "around")] for row in rows]
    return tuple(
        Preset(task, _read(row), source, by or None, _around(around))
        for row, (task, source, by, around) in zip(rows, about, strict=True)
    )


def _read(row: Mapping[str, str]) -> dict[str, Any]:
    return {k: yaml.safe_load(v) for k, v in row.items() if v}


def _around(words: str | None) -> tuple[str, ...]:
    return tuple("" if word == "alone" else word for word in (words or "alone").split())


def _yaml_presets(blocks: Sequence[Mapping[str, Any]]) -> Iterator[Preset]:
    """The `presets` or `budgets` of a method's yaml: blocks of rows, pattern -> settings, that have
    `source`, `by` and `around` in common, as in `preset_table`."""
    for block in blocks:
        rows = dict(block)
        source, by, around = (rows.pop(k, None) for k in ("source", "by", "around"))
        for pattern, settings in rows.items():
            yield Preset(pattern, _flatten(settings), source or "no source", by, _around(around))


# --- layers ---------------------------------------------------------------------------------


class Layers:
    """Dotted settings, their types and where each value came from."""

    def __init__(self, values: Mapping[str, Any], source: str):
        self.values = _flatten(values)
        run_yaml = _flatten(_compose())
        self.sources = {
            k: "conf/run.yaml" if k in run_yaml and run_yaml[k] == v else source
            for k, v in self.values.items()
        }
        self.hints: dict[str, Any] = _hints(Settings)

    def copy(self) -> "Layers":
        other = object.__new__(Layers)
        other.values, other.sources, other.hints = (
            dict(self.values),
            dict(self.sources),
            dict(self.hints),
        )
        return other

    def replace(self, group: str, values: Mapping[str, Any], source: str) -> None:
        for key in [k for k in self.values if k == group or k.startswith(group + ".")]:
            del self.values[key], self.sources[key]
        for key, value in _flatten({group: values}).items():
            self.values[key], self.sources[key] = value, source

    def fill_defaults(self, group: str) -> None:
        """The target's own defaults, below what the yaml says; and its types."""
        target = self.values.get(f"{group}._target_")
        if target is None:
            return
        for name, (hint, default) in parameters(target).items():
            key = f"{group}.{name}"
            self.hints[key] = hint
            if key not in self.values:
                if default is inspect.Parameter.empty:
                    raise UserError(
                        f"{target} needs {name}, which neither its yaml nor its defaults give"
                    )
                self.values[key], self.sources[key] = default, "default"
        for key in [k for k in self.values if k.startswith(group + ".") and k not in self.hints]:
            if key != f"{group}._target_":
                raise unknown(
                    f"setting of {target}",
                    key,
                    [k for k in self.hints if k.startswith(group + ".")],
                )

    def update(self, changes: Mapping[str, Any], source: str, *, lenient: bool = False) -> None:
        """Sets values that exist. `lenient` skips method settings that this method does not have."""
        for key, value in changes.items():
            if key == "transforms" or key.startswith("transforms."):
                self._transforms(key, value, source)
            elif key in self.hints:
                self.values[key] = value if _refers(value) else coerce(value, self.hints[key], key)
                self.sources[key] = source
            elif not (lenient and key.split(".")[0] in ("method", *AROUND)):
                raise self._unknown(key)

    def _unknown(self, key: str) -> UserError:
        """Names that end alike count as near: `expectile` is `method.expectile`."""
        known = [k for k in self.hints if not k.startswith("suite")]
        last = {k.rsplit(".", 1)[-1]: k for k in known}
        near = difflib.get_close_matches(key.rsplit(".", 1)[-1], last, n=1, cutoff=0.6)
        hint = f"; did you mean '{last[near[0]]}'?" if near else ""
        siblings = [k for k in known if k.split(".")[0] == key.split(".")[0]]
        return UserError(
            f"unknown setting '{key}'{hint} (settings: {', '.join(siblings or known)})"
        )

    def _transforms(self, key: str, value: Any, source: str) -> None:
        if key == "transforms":
            for old in [k for k in self.values if k.split(".")[0] == "transforms"]:
                del self.values[old], self.sources[old]
            if isinstance(value, list | tuple):
                value = {name: {} for name in value}
            if not isinstance(value, Mapping):
                raise UserError(
                    f"transforms={value!r} must be names ([obs_norm]) or names with options ({{obs_norm: {{}}}})"
                )
            changes = _flatten({"transforms": value}) or {"transforms": {}}
        else:
            changes = {key: value}
            self.values.pop("transforms", None)
            if len(key.split(".")) == 3:
                self.values.pop(key.rsplit(".", 1)[0], None)
        for k, v in changes.items():
            self.values[k], self.sources[k] = v, source

    def nested(self, group: str) -> dict[str, Any]:
        """The values below a name, as they were written."""
        below = {k: v for k, v in self.values.items() if k.startswith(f"{group}.")}
        return _nest(below).get(group, {})

    def typed(self, group: str) -> dict[str, Any]:
        """The group's parameters, coerced to the target's types."""
        names = [
            k for k in self.values if k.startswith(group + ".") and not k.endswith("._target_")
        ]
        return {k.split(".", 1)[1]: coerce(self.resolved(k), self.hints[k], k) for k in names}

    def resolved(self, key: str) -> Any:
        """The value, or that of the setting it refers to, once every layer has been said."""
        value = self.values[key]
        if not _refers(value):
            return value
        name = value[2:-1]
        if name not in self.values or _refers(self.values[name]):
            raise unknown(f"setting in {key}={value}:", name, self.values)
        return self.values[name]


def _refers(value: Any) -> bool:
    """Whether a value is the name of another setting, as Hydra writes it: `${n_updates}`."""
    return isinstance(value, str) and value.startswith("${") and value.endswith("}")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out |= _flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        here = out
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
    return out


# --- types ----------------------------------------------------------------------------------


def _hints(cls: type) -> dict[str, Any]:
    """Dotted field -> type of a nested settings dataclass."""
    out: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            out |= {f"{name}.{k}": v for k, v in _hints(hint).items()}
        else:
            out[name] = hint
    return out


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls)
    made = {}
    for f in fields(cls):
        if f.name in values:
            value, hint = values[f.name], hints[f.name]
            made[f.name] = (
                _build(hint, value) if is_dataclass(hint) else coerce(value, hint, f.name)
            )
    return cls(**made)


def locate(target: str) -> Any:
    """The object at a dotted path. Raises UserError naming the part that is not there."""
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name) if module_name else None
    except ModuleNotFoundError as error:
        raise UserError(
            f"_target_={target}: no module named {error.name!r} (is the package on the path?)"
        ) from None
    if module is None or not hasattr(module, name):
        names = [n for n in dir(module) if not n.startswith("_")] if module else []
        raise unknown(f"object in _target_={target}:", name, names)
    if not callable(found := getattr(module, name)):
        raise UserError(f"_target_={target} is a {type(found).__name__}, not a class or function")
    return found


BUILT_IN: Mapping[str, Mapping[str, str | None]] = types.MappingProxyType(
    {
        "view": {
            "nstep": "offbench.data.views.NStep",
            "chunk": "offbench.data.views.Chunk",
            "window": "offbench.data.views.Window",
        },
        "sampler": {
            "uniform": None,
            "aw": "offbench.data.sampling.advantage_weights",
            "rw": "offbench.data.sampling.return_weights",
            "top": "offbench.data.sampling.top_fraction",
        },
        "weight": {"dw": "offbench.training.reweighting.DensityWeights"},
    }
)
"""Where what a run's specification names is found. A class from elsewhere is named by its dotted path."""


def name_of(group: str, target: str | None) -> str:
    return next((name for name, known in BUILT_IN[group].items() if known == target), str(target))


def option_of(group: str, name: str) -> Any:
    """The class or function of a name in a run's specification; None where there is nothing to build."""
    target = BUILT_IN[group].get(name, name)
    return None if target is None else locate(target)


def is_torch_class(obj: Any) -> bool:
    """Whether a target is a class that is trained as it was written: offbench/training/imperative.py."""
    return inspect.isclass(obj) and hasattr(obj, "train_step")


def _check_method(obj: Any) -> None:
    """Raises UserError for a class that is neither a functional method nor a PyTorch class."""
    functional, written = ("init", "update", "act"), ("train_step", "act")
    wanted = functional if hasattr(obj, "update") and not hasattr(obj, "train_step") else written
    lacks = [name for name in wanted if not hasattr(obj, name)]
    if inspect.isclass(obj) and lacks:
        raise UserError(
            f"{obj.__name__} has no {' and no '.join(lacks)}: a PyTorch class needs train_step(batch) and "
            "act(obs), a functional method init, update and act"
        )


def parameters(target: Any) -> dict[str, tuple[Any, Any]]:
    """Settable parameters of a class or function, or of what is at a dotted path: name -> (type, default). `data`, `gamma` and a wrapped
    `method` are the engine's, and so are a PyTorch class's sizes and device."""
    obj = locate(target) if isinstance(target, str) else target
    given, described = {"data", "gamma", "method"}, obj
    if is_torch_class(obj):
        given, described = given | {"obs_dim", "action_dim", "device"}, obj.__init__
    try:
        hints = get_type_hints(described)
    except NameError:  # a hint that is imported for type checkers alone
        hints = {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        n: (hints.get(n, float if type(p.default) is float else Any), p.default)
        for n, p in inspect.signature(obj).parameters.items()
        if n not in given and p.kind in named
    }


def coerce(value: Any, hint: Any, name: str) -> Any:
    """`value` as the annotated type, or a UserError naming `name`, the value and the type."""

    def bad() -> UserError:
        return UserError(f"{name}={value!r} must be {_words(hint)}")

    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for arg in (a for a in args if a is not type(None)):
            try:
                return coerce(value, arg, name)
            except UserError:
                continue
        raise bad()
    if origin is Literal:
        if value not in args:
            raise UserError(f"{name}: {unknown('value', value, args)}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise bad()
        return tuple(coerce(x, args[0], f"{name}[{i}]") for i, x in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise bad()
        return dict(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and not isinstance(value, bool):
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            return int(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint not in (int, float, bool, str):
        return value
    raise bad()


def _words(hint: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "settings, as in {key: value}"
    if origin in (tuple, list):
        return f"a list of {_words(args[0]).removeprefix('a ')}s"
    if origin in (Union, types.UnionType):
        return " or ".join(_words(a) for a in args)
    if origin is Literal:
        return " or ".join(map(repr, args))
    return names.get(hint, str(hint))
