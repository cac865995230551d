"""A cell: one entry on one task, with its seeds. Plain data, pickled to worker processes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from offbench.bench.hydra import AROUND
from offbench.bench.settings import WHERE
from offbench.bench.sources import Source
from offbench.results.identity import Written, earlier_protocols, name_of_run, texts_around_seed
from offbench.results.spec import RunSpec
from offbench.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One leaderboard row on one task: every seed of it, trained as one stack."""

    entry: str
    suite: str
    suite_version: int
    task: Task
    # registry name, or the dotted path of an outside class
    method: str
    # dotted path of the class
    target: str
    hparams: Written
    # view, sampler, transforms, batch_size, gamma
    pipeline: Written
    seeds: tuple[int, ...]
    n_updates: int
    protocol: Written
    tuning: Mapping[str, Any]
    # what the command line set
    overrides: Mapping[str, Any]
    # dotted setting -> where its value came from
    sources: Mapping[str, Source]

    def __post_init__(self) -> None:
        for name in ("hparams", "pipeline", "protocol"):
            if not isinstance(getattr(self, name), Written):
                object.__setattr__(self, name, Written(getattr(self, name)))

    @property
    def recorded_sources(self) -> dict[str, str]:
        """Setting -> source in words, for the settings that define a run (not device, engine, ...)."""
        defining = lambda key: key.split(".")[0] in _DEFINING and key not in WHERE
        return {k: str(v) for k, v in sorted(self.sources.items()) if defining(k)}

    def varied(self, **changes: Any) -> "Cell":
        """The same with other values of these fields, as `dataclasses.replace` in a third of its time."""
        other = object.__new__(Cell)
        other.__dict__.update(self.__dict__, **changes)
        return other

    def runs(self) -> list[RunSpec]:
        """The specification of each seed's run."""
        first = RunSpec(**self._of_all_seeds(), seed=self.seeds[0]) if self.seeds else None
        return first.repeated(self.seeds) if first is not None else []

    def run_ids(self) -> list[str]:
        """The run id of each seed, without the specifications."""
        around = texts_around_seed(self._of_all_seeds())
        return [name_of_run(around, seed) for seed in self.seeds]

    def earlier_ids(self) -> Iterator[str]:
        """Other names under which records of these runs may lie; see `RunSpec.recorded_ids`."""
        for protocol in earlier_protocols(self.protocol):
            around = texts_around_seed(self._of_all_seeds(), protocol)
            yield from (name_of_run(around, seed) for seed in self.seeds)

    def _of_all_seeds(self) -> dict[str, Any]:
        """What its runs have in common, as the fields of a `RunSpec`."""
        return {
            "suite": self.suite,
            "suite_version": self.suite_version,
            "task": self.task.id,
            "dataset": self.task.dataset,
            "dataset_sha256": self.task.sha256,
            "env": self.environment,
            "method": self.method,
            "hparams": self.hparams,
            "pipeline": self.pipeline,
            "n_updates": self.n_updates,
            "protocol": self.protocol,
        }

    @property
    def environment(self) -> dict[str, Any]:
        return self.task.environment


# groups and settings whose values count as tuning
TUNABLE = ("method", *AROUND, "transforms", "batch_size", "gamma")

_DEFINING = (*TUNABLE, "n_updates", "eval", "seeds", "loader", "precision")
