"""What defines a run, and how a result came to be.

A run is everything that decides its outcome, a `RunSpec`, and its name is a hash of that, so a result can neither go
stale nor collide with another. `Provenance` is what may differ between two honest executions of it.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

from offbench.errors import UserError, unknown
from offbench.results.identity import (
    earlier_protocols,
    name_of_run,
    texts_around_seed,
    with_names,
)

# the method, and the tuning, of a policy that was trained elsewhere
OUTSIDE = "outside"

TUNINGS = ("default", "published", "suite", "task preset", "user", OUTSIDE)

_IDENTIFYING = ("hostname", "host", "node", "nodename", "user", "username", "home", "cwd")


@dataclass(frozen=True, kw_only=True, eq=False)
class RunSpec:
    """Everything that decides the outcome of one run, as plain JSON values.

    Values are compared as JSON: tuples are lists, key order is nothing, and a number is its value,
    so `lr=1` and `lr=1.0` are one run (which of the two a command line produced says nothing
    about the run), while `True` is not `1`. Not a number, infinities and anything that is not
    JSON are refused.

    >>> a = RunSpec(suite="s", suite_version=1, task="t", dataset="d", dataset_sha256="0" * 64,
    ...             env={"id": "E-v0"}, method="iql", hparams={"lr": 1, "hidden": (256, 256)},
    ...             pipeline={}, n_updates=10, seed=0, protocol={"episodes": 5})
    >>> b = RunSpec(**a.as_dict())
    >>> a == b, len(a.run_id)
    (True, 16)
    """

    suite: str
    suite_version: int
    task: str
    dataset: str
    # None while the data have not been downloaded: such a run is planned, and cannot be recorded
    dataset_sha256: str | None
    # id and kwargs; for own data how a return is scored, too
    env: Mapping[str, Any]
    # registry name or dotted path
    method: str
    # every hyper-parameter, defaults too
    hparams: Mapping[str, Any]
    # view, sampler, transforms, batch size, gamma, lower precision
    pipeline: Mapping[str, Any]
    n_updates: int
    seed: int
    # episodes, streams, monitor_at; what is monitored is recorded, and no part of the run's name
    protocol: Mapping[str, Any]

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))
        object.__setattr__(self, "pipeline", with_names(self.pipeline))

    @cached_property
    def _texts(self) -> tuple[str, str]:
        """The canonical JSON around the number of the seed."""
        return texts_around_seed(self._of_all_seeds)

    @property
    def _of_all_seeds(self) -> dict[str, Any]:
        return {name: value for name, value in self.as_dict().items() if name != "seed"}

    @cached_property
    def run_id(self) -> str:
        """First 16 hex digits of the sha256 of the canonical JSON."""
        return name_of_run(self._texts, self.seed)

    @cached_property
    def config_id(self) -> str:
        """The same without the seed: equal for runs which are repetitions of one another."""
        return name_of_run(self._texts, None)

    @cached_property
    def recorded_ids(self) -> tuple[str, ...]:
        """The names under which a record of this run may lie: `run_id`, and those of earlier records, which
        were hashed with the monitor evaluations that were asked for, or that OGBench's suites had."""
        around = [
            texts_around_seed(self._of_all_seeds, p) for p in earlier_protocols(self.protocol)
        ]
        old = [name_of_run(texts, self.seed) for texts in around]
        return tuple(dict.fromkeys([self.run_id, *old]))

    def names_among(self, recorded: Container[str]) -> list[str]:
        """The names under which this run is recorded; earlier ones only where its own is not."""
        if self.run_id in recorded:
            return [self.run_id]
        return [name for name in self.recorded_ids if name in recorded]

    def repeated(self, seeds: Sequence[int]) -> "list[RunSpec]":
        """The runs that differ from this one in their seed; what they share is checked and written once."""
        shared = {item.name: getattr(self, item.name) for item in fields(self)}
        shared["_texts"] = self._texts
        runs = []
        for seed in seeds:
            run = object.__new__(RunSpec)
            run.__dict__.update(shared, seed=seed)
            runs.append(run)
        return runs

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, in plain JSON values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunSpec) and self.run_id == other.run_id

    def __hash__(self) -> int:
        return hash(self.run_id)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a result came to be: what may differ between two honest executions of one `RunSpec`.

    `tuning` says how the hyper-parameters were chosen: `how`, one of TUNINGS, or "task preset, 2 settings
    overridden (lr, n_updates)"; `tried`, the number of configurations; `source`, in words; `preset`, the
    source of the preset below what was overridden, or None; `overridden`, the names of the settings that
    differ from what is published; `published_updates` and `published_episodes`, the budget that is
    published for this method and task, or None. Older records have the first three.
    """

    # the label of the board's row, e.g. "iql+aw"
    entry: str
    commit: str
    dirty: bool
    versions: Mapping[str, Any]
    device: str
    backend: str
    precision: str
    # runs stacked in the process which made this one
    pack: int
    wall_s: float  # of the whole pack
    train_s: float
    tuning: Mapping[str, Any]
    created: str  # ISO 8601, UTC
    overrides: Mapping[str, Any] = field(default_factory=dict)
    # e.g. {"cpus": 16}; never a name
    host: Mapping[str, Any] = field(default_factory=dict)
    # settings that were left to the data
    fitted: Mapping[str, Any] = field(default_factory=dict)
    # setting -> where its value came from
    sources: Mapping[str, Any] = field(default_factory=dict)
    # run ids of the runs that were stacked with this one, in their order; rounding depends on them
    stack: Sequence[str] = ()

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))
        if self.pack < 1:
            raise UserError(f"provenance: pack is {self.pack}, it counts the run itself")
        how = self.tuning.get("how")
        if how not in TUNINGS and not str(how).startswith("task preset, "):
            raise unknown("tuning.how", how, TUNINGS)
        if named := [name for name in self.host if name.lower() in _IDENTIFYING]:
            raise UserError(f"provenance: host.{named[0]} would publish who or where you are")
        if not _is_utc(self.created):
            raise UserError(f"provenance: created is {self.created!r}, not an ISO time in UTC")

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, in plain JSON values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


class _Named(NamedTuple):
    """A name and type, as of a field."""

    name: str
    type: Any


def _checked(item: Any, value: Any) -> Any:
    """The value of one field, copied into plain JSON types, or a UserError naming the field."""
    name, kind = item.name, item.type
    if kind == str | None and value is None:
        return None
    if kind in (str, str | None):
        if not isinstance(value, str) or not value:
            raise UserError(f"{name}: {value!r} is not a non-empty string")
        return str(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{name}: {value!r} is not true or false")
        return value
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UserError(f"{name}: {value!r} is not a whole number >= 0")
        return int(value)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{name}: {value!r} is not a number")
        return float(_plain(value, name))
    if kind == Sequence[str]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{name}: {value!r} is not a list of names")
        return [_checked(_Named(name, str), item) for item in value]
    if not isinstance(value, Mapping):
        raise UserError(f"{name}: {value!r} is not a mapping")
    return _plain(value, name)


def _plain(value: Any, where: str) -> Any:
    """A deep copy of `value` in dicts, lists and scalars; refuses what JSON cannot hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where}: {value} is not a finite number")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UserError(f"{where}: key {key!r} is not a string")
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise UserError(f"{where}: {kind} is not a JSON value; pass plain numbers, text, lists")


def utc_now() -> str:
    """The time, as `Provenance.created` has it: ISO 8601, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False
