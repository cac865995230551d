"""The cells of one point of a sweep: an entry with its settings, on each task.

Settings are put in layers for the first point; points that differ from it in plain numbers replace those.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from typing import Any

from offbench.bench.cells import Cell
from offbench.bench.entry import Method, entry_label, replaced_groups
from offbench.bench.hydra import AROUND, options, read_option
from offbench.bench.layers import Layers, is_reference
from offbench.bench.presets import Preset, chosen_preset, composition_of
from offbench.bench.settings import (
    ESTIMATING,
    HELD_OUT,
    WHERE,
    Settings,
    check_settings,
    check_transforms,
    typed_transforms,
)
from offbench.bench.signatures import read_parameters
from offbench.bench.sources import COMMAND_LINE, NO_ENVIRONMENT, Layer, Source
from offbench.bench.suites import SuiteTask, protocol_settings, suite_overrides, suite_task
from offbench.bench.targets import is_written, locate, name_of
from offbench.bench.tuning import changes, describe_tuning, published_value
from offbench.bench.values import build_settings, coerce, nest
from offbench.errors import UserError, calling
from offbench.results.identity import Written
from offbench.tasks.locate import read_by
from offbench.tasks.task import Loader, Task

# (task id, loader, suite) -> the task in the suite
FindTask = Callable[[Any, Loader, str], SuiteTask]

# settings outside the method whose numbers change nothing else of a cell
_PLAIN = ("gamma", "batch_size")

_NUMBERS = (int, float, int | None, float | None)


def numbers_of(point: Mapping[str, Any], swept: Collection[str]) -> list[str]:
    """The swept settings of a point that are numbers of the method, or plain ones of the pipeline."""
    return [
        k
        for k in point
        if k in swept
        and (k.startswith("method.") or k in _PLAIN)
        and isinstance(point[k], int | float)
        and not isinstance(point[k], bool)
    ]


@dataclass
class OnTask:
    """An entry on a task: its cell, and what it was made of."""

    cell: Cell
    settings: Settings
    # with all overrides, and as published
    own: Layers
    published: Layers
    # that the published settings come from
    preset: Preset | None

    def __post_init__(self) -> None:
        self._published: dict[str, Any] = {}
        # which numbers differ from the published ones -> how the hyper-parameters were chosen
        self._tunings: dict[tuple[bool, ...], Mapping[str, Any]] = {}
        # the same for all numbers
        self.check = _constructor(self.own)

    def tuning(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """How the hyper-parameters were chosen, with these numbers."""
        if self._published.keys() != values.keys():
            self._published = {k: published_value(self.own, self.published, k) for k in values}
        which = tuple([v != self._published[k] for k, v in values.items()])
        if which not in self._tunings:
            own = self.own.copy()
            own.values |= values
            made = describe_tuning(own, self.published, self.settings, self.preset)
            self._tunings[which] = made
        return self._tunings[which]


@dataclass
class Point:
    """The cells of a point, one per task, of which those of similar points are made."""

    method: Method
    on: list[OnTask]
    # settings that labels name
    named: tuple[str, ...]

    @property
    def cells(self) -> list[tuple[Cell, Settings]]:
        """Each cell with the settings of its run."""
        return [(one.cell, one.settings) for one in self.on]

    def can_vary(self, names: Sequence[str]) -> bool:
        """Whether nothing but the numbers themselves depends on these settings."""
        own = self.on[0].own if self.on else None
        if own is None or not all(own.hints.get(k) in _NUMBERS for k in names):
            return False
        used = [v[2:-1] for one in self.on for v in one.own.values.values() if is_reference(v)]
        return not set(used) & set(names)

    @cached_property
    def _different(self) -> list[OnTask]:
        """One of all that have the same hyper-parameters."""
        found: list[OnTask] = []
        for one in self.on:
            if not any(one.cell.hparams == other.cell.hparams for other in found):
                found.append(one)
        return found

    def at(self, point: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[Cell, Settings]]:
        """The cells of a point that differs from this one in the numbers of `names` alone."""
        hints = self.on[0].own.hints
        given = {k: point[k] for k in names}
        values = {k: coerce(v, hints[k], k) for k, v in given.items()}
        outer = {k: v for k, v in values.items() if k in _PLAIN}
        inner = {k.removeprefix("method."): v for k, v in values.items() if k not in _PLAIN}
        if inner:
            for one in self._different:
                one.check({**one.cell.hparams, **inner})
        label = self.label(point)
        for one in self.on:
            settings, first = one.settings, one.cell
            if outer:
                settings = replace(settings, **outer)
                check_settings(settings)
            cell = first.varied(
                entry=settings.label or label,
                hparams=first.hparams.changed(inner),
                pipeline=first.pipeline.changed(outer),
                tuning=one.tuning(values),
                overrides={**first.overrides, **given},
            )
            yield cell, settings

    def label(self, point: Mapping[str, Any]) -> str:
        """The label of a point's row."""
        named = {k: point[k] for k in self.named}
        return entry_label(self.method, self.on[0].cell.target, named)


def plan_point(
    method: Method, suite: Mapping, given: Mapping, swept: Set[str], find_task: FindTask
) -> Point:
    """The cells of a method on each task; `swept` settings are always named in labels."""
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
    planned: list[OnTask] = []
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
        elif settings.eval.by != "play":
            settings = _unplayed(settings, given)
        check_settings(settings)
        _check_label(settings.label, method)
        listed.task.check_view(
            method.name or "it", goals=name_of("view", own.values["view._target_"]) == "goal"
        )
        changed |= {k for k in given if changes(own, without, k)}
        tuning = describe_tuning(own, published, settings, preset)
        cell = _cell(own, method, task, suite, settings, given, tuning)
        planned.append(OnTask(cell, settings, own, published, preset))
    made = Point(method, planned, tuple(k for k in given if k in changed))
    for one in planned:
        one.cell = replace(one.cell, entry=one.settings.label or made.label(given))
    return made


def _check_label(label: str | None, method: Method) -> None:
    """Raises UserError where a board would show a method under the name of another one."""
    first = re.split(r"[+(]", label or "")[0]
    if first != method.name and first in options("method"):
        raise UserError(
            f"label={label}: {first} is another method than {method.name or 'this one'}, and a board has"
            " both by their names"
        )


def _without_environment(own: Layers, settings: Settings, task: Task, given: Mapping) -> Settings:
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


def _unplayed(settings: Settings, given: Mapping) -> Settings:
    """The settings of runs that are evaluated from recorded data though there is an environment."""
    if given.get("eval.episodes") or given.get("eval.monitor_at"):
        raise UserError(
            f"eval.by={settings.eval.by} plays no episodes: leave eval.episodes and eval.monitor_at out, or estimate"
            " beside them what was kept, by offbench evaluate --offline"
        )
    return replace(settings, eval=replace(settings.eval, episodes=0, monitor_at=()))


def _published(
    method: Method, suite: Mapping, listed: SuiteTask, later: Mapping
) -> tuple[Layers, Preset | None]:
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
    own: Layers,
    method: Method,
    task: Task,
    suite: Mapping,
    settings: Settings,
    given: Mapping,
    tuning: Mapping[str, Any],
) -> Cell:
    target = own.values["method._target_"]
    hparams = own.typed("method")
    if _needs_check(own):
        _constructor(own)(hparams)
    if own.asked(("transforms",)):
        check_transforms(settings.transforms)
    monitor_at = settings.eval.monitor_at or ()
    protocol: dict[str, Any] = {
        "episodes": settings.eval.episodes,
        "envs": settings.eval.envs,
        "monitor_at": list(monitor_at),
        "monitor_episodes": _plain(settings.eval.monitor_episodes) if monitor_at else 0,
    }
    if settings.eval.validation:
        protocol["validation"] = settings.eval.validation
    if settings.eval.by != "play":
        protocol |= {k: _plain(getattr(settings.eval, k)) for k in ESTIMATING}
    return Cell(
        # set by the caller: the label depends on the other tasks
        entry="",
        suite=suite["id"],
        suite_version=suite["version"],
        task=task,
        method=method.name or target,
        target=target,
        hparams=Written(hparams),
        pipeline=Written(_pipeline(own, settings)),
        seeds=settings.seeds or (),
        n_updates=settings.n_updates or 0,
        protocol=Written(protocol),
        tuning=tuning,
        overrides={
            k: v
            for k, v in given.items()
            if (k in own.values or k.startswith("transforms"))
            and not {k, k.split(".")[0]} & set(WHERE)
        },
        sources=own.sources,
    )


def _constructor(own: Layers) -> Callable[[Mapping[str, Any]], None]:
    """Constructs the method with hyper-parameters: constructors check ranges, here before any download."""
    target, wrapper = own.values["method._target_"], own.values["weight._target_"]
    around = own.typed("weight") if wrapper else {}
    source = own.values["synthetic._target_"]
    given = own.typed("synthetic") if source else {}
    found: list[Any] = []

    def construct(hparams: Mapping[str, Any]) -> None:
        # imports torch
        if not found:
            found.append(None if is_written(target) else locate(target))
        if found[0] is None:
            return
        with calling(f"{target}.__init__"):
            instance = found[0](**hparams)
        if wrapper:
            instance = locate(wrapper)(method=instance, **around)
        if source:
            locate(source)(**given).mix(instance)

    return construct


def _plain(value: Any) -> Any:
    """With lists in the place of tuples, as in JSON."""
    return list(value) if isinstance(value, tuple) else value


def _needs_check(own: Layers) -> bool:
    """Whether a method or its wrapper is not offbench's own, or has a setting of the command line; those of
    offbench's own files hold (tests), and training checks all of them."""
    groups = [g for g in ("method", "weight", "synthetic") if own.values[f"{g}._target_"]]
    outside = any(read_parameters(own.values[f"{g}._target_"]) is None for g in groups)
    return outside or own.asked(groups)


def _pipeline(own: Layers, settings: Settings) -> dict[str, Any]:
    """View, sampler, transforms, batch, learned weights and synthetic data, as hashed into the run id."""
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
    if source := own.values["synthetic._target_"]:
        pipeline["synthetic"] = {"name": name_of("synthetic", source), **own.typed("synthetic")}
    return pipeline


def _identity_of_view(own: Layers) -> dict[str, Any]:
    """A view's settings as hashed into the run id; defaults without effect are left out."""
    view = own.typed("view")
    # settings that n-step returns got after runs were recorded
    if "n" in view:
        usual = {"pad": True, "rewards_after_terminal": False}
        view = {k: v for k, v in view.items() if k == "n" or (view["n"] > 1 and v != usual[k])}
    return {"name": name_of("view", own.values["view._target_"]), **view}
