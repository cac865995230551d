"""Plans the cells of a command line.

Layers of a cell's settings, later ones win:

    the class's own defaults < conf/method/*.yaml < the suite's protocol < the method's published budget
    < the method's preset for the task < the suite's `overrides` < the command line

Where no suite is named, the home suite of the task is used: the toy settings of `quick` reach no published
task unless `suite=quick` is given.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from typing import Any, get_type_hints

from offbench.bench.cells import Cell
from offbench.bench.entry import Method, entry_label, expand_sweeps, read_entry, replaced_groups
from offbench.bench.hydra import AROUND, GROUPS, options, parse_overrides, read_option
from offbench.bench.layers import Layers
from offbench.bench.presets import (
    VARIANTS,
    Preset,
    chosen_preset,
    composition_of,
    methods_with_variant,
)
from offbench.bench.settings import (
    HELD_OUT,
    WHERE,
    Settings,
    check_settings,
    typed_transforms,
)
from offbench.bench.signatures import read_parameters
from offbench.bench.sources import COMMAND_LINE, NO_ENVIRONMENT, Layer, Source
from offbench.bench.suites import (
    SuiteTask,
    checked_task_id,
    home_of,
    protocol_settings,
    suite_overrides,
    suite_task,
)
from offbench.bench.targets import is_written, locate, name_of
from offbench.bench.tuning import changes, describe_tuning
from offbench.bench.values import build_settings, coerce, nest
from offbench.errors import UserError, calling, unknown
from offbench.tasks.locate import load_task, read_by
from offbench.tasks.task import Loader, Task

# (task id, loader, suite) -> the task in the suite
FindTask = Callable[[Any, Loader, str], SuiteTask]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells and settings of a command line."""

    cells: tuple[Cell, ...]
    settings: Settings
    suite: Mapping[str, Any]
    # whether the command line named the suite
    named: bool = True

    @property
    def tasks(self) -> list[str]:
        """Task ids, each once."""
        return list(dict.fromkeys(cell.task.id for cell in self.cells))

    @property
    def unscaled(self) -> set[str]:
        """Tasks whose score is a plain return."""
        return {cell.task.id for cell in self.cells if not cell.task.scaled}

    @property
    def name(self) -> str:
        """Id of the suite."""
        return self.suite["id"]


def plan(overrides: Sequence[str], *, bench: bool) -> Plan:
    """The cells of a command line.

    With `bench`, the methods are those of the suite unless `methods=[...]` or `method=` is given;
    without, `method=` must be given. Raises UserError for unknown, mistyped or impossible settings.
    """
    points = parse_overrides(overrides)
    swept = {k for p in points for k, v in p.items() if v != points[0][k] and k != "preset"}
    # all tasks of a sweep get the same label
    if "task" in swept:
        swept |= points[0].keys()
    # cached: data folders are searched once per task
    find_task = cache(_find_task)
    plans = [_plan_point(point, swept, find_task, bench=bench) for point in points]
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


def _find_task(name: str, loader: Loader, suite: str) -> SuiteTask:
    task = load_task(checked_task_id(name), loader=loader)
    task.check_trainable()
    return suite_task(task, suite)


def _plan_point(
    given: dict[str, Any], swept: Set[str], find_task: FindTask, *, bench: bool
) -> Plan:
    """The cells of one point of a sweep; `swept` settings are always named in labels."""
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
    pairs = [
        pair
        for entry in entries
        for pair in _entry_cells(entry, choices, given, suite, swept, find_task)
    ]
    settings = pairs[-1][1]
    if (wanted := settings.preset) in VARIANTS:
        own_row = lambda source: (source.layer, source.name) == (Layer.PRESET, wanted)
        if not any(own_row(source) for cell, _ in pairs for source in cell.sources.values()):
            raise UserError(
                f"preset={wanted}: no row of these methods and tasks has settings of its own; there are"
                f" such for {', '.join(methods_with_variant(wanted))}"
            )
    cells = tuple(cell for cell, _ in pairs)
    return Plan(cells=cells, settings=settings, suite=suite, named=named is not None)


def _own_task(own: Mapping[str, Any], task_id: Any) -> Task:
    """The task of the user's own data: `task.data=PATH task.env=HalfCheetah-v5`."""
    # its import is heavy
    from offbench.tasks.custom import own_task

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


def _entry_cells(
    entry: str | None,
    choices: Mapping,
    given: Mapping,
    suite: Mapping,
    swept: Set[str],
    find_task: FindTask,
) -> Iterator[tuple[Cell, Settings]]:
    """The cells of `iql+aw`, one per task, and of `mymodule.Class+nstep3`."""
    named = (entry or "").partition("+")[0]
    # the dotted path of an outside class
    if "." in named:
        given = {**given, "method._target_": named}
    method = read_entry(entry, choices, given)
    for point in expand_sweeps(given, method.values.hints):
        lists = {k for k in point if point[k] is not given[k]}
        own = read_entry(entry, choices, point) if lists else method
        yield from _task_cells(own, suite, point, swept | lists, find_task)


def _task_cells(
    method: Method, suite: Mapping, given: Mapping, swept: Set[str], find_task: FindTask
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
    given = {k: v for k, v in given.items() if k not in skipped and not (v is None and k in filled)}
    pairs: list[tuple[Cell, Settings]] = []
    # settings that the command line changes on at least one task
    changed = set(swept)
    for task_name in task_names:
        loader = coerce(given.get("loader", "offbench"), Loader, "loader")
        if isinstance(task_name, Task):
            listed = suite_task(read_by(task_name, loader), suite["id"])
            listed.task.check_trainable()
        else:
            listed = find_task(task_name, loader, suite["id"])
        task = listed.task
        forced = suite_overrides(suite, method.name, task.id)
        if is_written(method.values.values["method._target_"]):
            forced = {k: v for k, v in forced.items() if not k.startswith("method.")}
        later = {**forced, **given}
        own, preset = _published(method, suite, listed, later)
        published = own.copy()
        # settings are published for the home suite of a task only
        if listed.home != suite["id"]:
            published, _ = _published(method, read_option("suite", listed.home), listed, later)
        own.update(forced, Source(Layer.SUITE, suite["id"]), lenient=True)
        without = own.copy()
        own.update(given, COMMAND_LINE)
        around = ("method", *AROUND)
        flat = {k: own.resolved(k) for k in own.values if k.split(".")[0] not in around}
        settings = build_settings(Settings, nest(flat))
        if not task.env:
            settings = _without_environment(own, settings, task, given)
        check_settings(settings)
        changed |= {k for k in given if changes(own, without, k)}
        tuning = describe_tuning(own, published, settings, preset)
        pairs.append((_cell(own, method, task, suite, settings, given, tuning), settings))
    in_label = {k: v for k, v in given.items() if k in changed}
    for cell, settings in pairs:
        yield (
            replace(cell, entry=settings.label or entry_label(method, cell.target, in_label)),
            settings,
        )


def _without_environment(own: "Layers", settings: Settings, task: Task, given: Mapping) -> Settings:
    """The settings of a task without environment: no test episodes, some recorded ones held out."""
    if given.get("eval.episodes") or given.get("eval.monitor_at"):
        raise UserError(
            f"{task.id}: there is no environment to play evaluation episodes in; name one"
            " (task.env=HalfCheetah-v5), or leave eval.episodes and eval.monitor_at out"
        )
    share = settings.eval.validation
    if share is None:
        share, own.sources["eval.validation"] = HELD_OUT, NO_ENVIRONMENT
    own.sources |= dict.fromkeys(("eval.episodes", "eval.monitor_at"), NO_ENVIRONMENT)
    return replace(
        settings, eval=replace(settings.eval, episodes=0, monitor_at=(), validation=share)
    )


def _published(
    method: Method, suite: Mapping, listed: SuiteTask, later: Mapping
) -> "tuple[Layers, Preset | None]":
    """The published settings of a method on a task, before any override.

    `later` are the overrides to come: they can change the composition that a preset is chosen for.
    """
    own, task = method.values.copy(), listed.task
    for one in (read_option("suite", listed.home), suite):
        own.update(protocol_settings(one), Source(Layer.SUITE, one["id"]))
    if budget := chosen_preset(method.budgets, listed.part, "usual", None):
        carried = listed.part != task.id
        own.update(budget.settings, Source(Layer.BUDGET, "", budget.source, carried))
    asked = later.get("preset", own.values["preset"])
    choice = coerce(asked, own.hints["preset"], "preset")
    composed = None if choice == "alone" else composition_of({**own.values, **later})
    preset = chosen_preset(method.presets, task.id, choice, composed, method.plain)
    if preset:
        # a preset sets neither replaced groups nor numbers of the entry
        fitting = {
            k: v
            for k, v in preset.settings.items()
            if k.split(".")[0] not in replaced_groups(own)
            and not (k in own.sources and own.sources[k].layer is Layer.ENTRY)
        }
        own.update(fitting, Source(Layer.PRESET, preset.by or "", preset.source))
    return own, preset


def _cell(
    own: "Layers",
    method: Method,
    task: Task,
    suite: Mapping,
    settings: Settings,
    given: Mapping,
    tuning: Mapping[str, Any],
) -> Cell:
    target = own.values["method._target_"]
    hparams = own.typed("method")
    if _needs_check(own) and not is_written(target):
        # constructors check ranges; here before anything is downloaded
        with calling(f"{target}.__init__"):
            instance = locate(target)(**hparams)
        if wrapper := own.values["weight._target_"]:
            locate(wrapper)(method=instance, **own.typed("weight"))
    monitor_at = settings.eval.monitor_at or ()
    protocol: dict[str, Any] = {
        "episodes": settings.eval.episodes,
        "envs": settings.eval.envs,
        "monitor_at": list(monitor_at),
        "monitor_episodes": _plain(settings.eval.monitor_episodes) if monitor_at else 0,
    }
    if settings.eval.validation:
        protocol["validation"] = settings.eval.validation
    return Cell(
        # set by the caller: the label depends on the other tasks
        entry="",
        suite=suite["id"],
        suite_version=suite["version"],
        task=task,
        method=method.name or target,
        target=target,
        hparams=hparams,
        pipeline=_pipeline(own, settings),
        seeds=settings.seeds or (),
        n_updates=settings.n_updates or 0,
        protocol=protocol,
        tuning=tuning,
        overrides={
            k: v
            for k, v in given.items()
            if (k in own.values or k.startswith("transforms")) and k.split(".")[0] not in WHERE
        },
        sources=own.sources,
    )


def _plain(value: "int | tuple[int, ...]") -> "int | list[int]":
    return value if isinstance(value, int) else list(value)


def _needs_check(own: "Layers") -> bool:
    """Whether a method or its wrapper is not offbench's own, or has a setting of the command line; those of
    offbench's own files hold (tests), and training checks all of them."""
    groups = [g for g in ("method", "weight") if own.values[f"{g}._target_"]]
    return any(read_parameters(own.values[f"{g}._target_"]) is None for g in groups) or any(
        source.layer is Layer.COMMAND_LINE
        for key, source in own.sources.items()
        if key.split(".")[0] in groups
    )


def _pipeline(own: "Layers", settings: Settings) -> dict[str, Any]:
    """View, sampler, transforms, batch and learned weights, as hashed into the run id."""
    pipeline: dict[str, Any] = {
        "view": _identity_of_view(own),
        "sampler": {
            "name": name_of("sampler", own.values["sampler._target_"]),
            **own.typed("sampler"),
        },
        "transforms": typed_transforms(settings.transforms),
        "batch_size": settings.batch_size,
        "gamma": settings.gamma,
    }
    # keys below are left out at their defaults, so that run ids stay the same
    rewards = [name for name in pipeline["transforms"] if name.startswith("reward_")]
    # results depend on the order of transforms, the hash of a mapping does not
    if rewards != sorted(rewards):
        pipeline["reward_order"] = rewards
    if settings.precision != "float32":
        pipeline["precision"] = settings.precision
    if wrapper := own.values["weight._target_"]:
        pipeline["weight"] = {"name": name_of("weight", wrapper), **own.typed("weight")}
    return pipeline


def _identity_of_view(own: "Layers") -> dict[str, Any]:
    """A view's settings as hashed into the run id; defaults without effect are left out."""
    view = own.typed("view")
    # settings that n-step returns got after runs were recorded
    if "n" in view:
        usual = {"pad": True, "rewards_after_terminal": False}
        view = {k: v for k, v in view.items() if k == "n" or (view["n"] > 1 and v != usual[k])}
    return {"name": name_of("view", own.values["view._target_"]), **view}
