"""Suites: tasks and protocols, and the home suite of each task (`conf/protocols.yaml`)."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from offbench.bench.hydra import compose_conf, conf_dir, options, read_option
from offbench.bench.layers import Layers
from offbench.bench.sources import COMMAND_LINE, DEFAULT, Layer, Source
from offbench.bench.values import coerce, flatten
from offbench.data import composition
from offbench.errors import UserError
from offbench.io import read_yaml
from offbench.tasks.locate import canonical
from offbench.tasks.task import Task


def home_of(task: "Task | str") -> str:
    """The home suite of a task, whose protocol it has where no suite is named (conf/protocols.yaml)."""
    if isinstance(task, Task) and task.family == "own":
        return ELSEWHERE
    task_id = canonical(checked_task_id(task.id if isinstance(task, Task) else task))
    patterns = _protocols()
    # suites of plugins, too
    suites = [*patterns, *(s for s in options("suite") if s not in patterns)]
    part = first_part(task_id)
    for wanted in dict.fromkeys([task_id, part]):
        for suite in suites:
            if wanted in tasks_of(suite):
                return suite
    matches = (s for s, found in patterns.items() if any(fnmatch(part, p) for p in found or ()))
    return next(matches, ELSEWHERE)


ELSEWHERE = "other"


class SuiteTask(NamedTuple):
    """A task in a suite, with the suite and the id whose protocol and budgets it has."""

    task: Task
    # the suite where it lists the task, else the home suite of the task
    home: str
    # id whose budgets apply: the first part for a mixture that no suite lists
    part: str


def suite_task(task: Task, suite: str) -> SuiteTask:
    """The task as one of a suite."""
    task_id = canonical(task.id)
    home = suite if task_id in tasks_of(suite) else home_of(task)
    return SuiteTask(task, home, task.id if task_id in tasks_of(home) else first_part(task.id))


@cache
def _protocols() -> Mapping[str, Sequence[str]]:
    """Suite -> patterns of the tasks that have its protocol where no suite is named."""
    return read_yaml((conf_dir() / "protocols.yaml").read_text(encoding="utf-8"))


def first_part(task_id: str) -> str:
    """The id of the first set of a mixture, whose protocol and budgets it has; other ids unchanged."""
    parsed = composition.parse(task_id)
    return parsed if isinstance(parsed, str) else canonical(parsed.leaves[0])


@cache
def tasks_of(suite: str) -> frozenset[str]:
    """Canonical ids of the tasks that a suite lists."""
    return frozenset(canonical(name) for name in read_option("suite", suite)["tasks"])


def protocol_of(
    task: Task, suite: str | None, episodes: int | None
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """(suite, protocol) under which a policy trained elsewhere is evaluated and recorded."""
    home = read_option("suite", suite or home_of(task))
    layers = Layers(compose_conf(), DEFAULT)
    for one in (read_option("suite", home_of(task)), home):
        layers.update(protocol_settings(one), Source(Layer.SUITE, one["id"]))
    forced = suite_overrides(home, None, task.id)
    layers.update(forced, Source(Layer.SUITE, home["id"]), lenient=True)
    layers.update({"eval.episodes": episodes} if episodes is not None else {}, COMMAND_LINE)
    asked = {k: layers.values[f"eval.{k}"] for k in ("episodes", "envs")}
    if (asked["episodes"] or 0) < 1:
        raise UserError(f"episodes={asked['episodes']} must be at least 1")
    return home, {**asked, "monitor_at": [], "monitor_episodes": 0}


def protocol_settings(suite: Mapping[str, Any]) -> dict[str, Any]:
    """The seeds, budget and evaluation settings of a suite; a method's published budget wins over them."""
    own = {k: suite[k] for k in ("seeds", "n_updates") if suite.get(k) is not None}
    return own | {f"eval.{k}": v for k, v in (suite.get("eval") or {}).items()}


def suite_overrides(suite: Mapping[str, Any], method: str | None, task_id: str) -> dict[str, Any]:
    """Settings of a suite that win over published ones: of every method, then on some tasks of every method
    ("*") and of one."""
    changes = flatten(suite.get("overrides") or {})
    of_methods = suite.get("overrides_of") or {}
    for name in ("*", method):
        for pattern, more in (of_methods.get(name) or {}).items():
            changes |= flatten(more) if fnmatch(task_id, pattern) else {}
    return changes


def checked_task_id(name: Any) -> str:
    """A task id as text. UserError for a file, which is written task.data=."""
    task_id = coerce(name, str, "task")
    if Path(task_id).suffix in (".hdf5", ".h5", ".npz"):
        raise UserError(
            f"task={task_id} is a file; own data are written task.data={task_id} task.env=HalfCheetah-v5"
        )
    return task_id
