"""A cell: one entry on one task, with its seeds. Plain data, pickled to worker processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offbench.bench.hydra import AROUND
from offbench.bench.sources import Source
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
    hparams: Mapping[str, Any]
    # view, sampler, transforms, batch_size, gamma
    pipeline: Mapping[str, Any]
    seeds: tuple[int, ...]
    n_updates: int
    protocol: Mapping[str, Any]
    tuning: Mapping[str, Any]
    # what the command line set
    overrides: Mapping[str, Any]
    # dotted setting -> where its value came from
    sources: Mapping[str, Source]

    @property
    def recorded_sources(self) -> dict[str, str]:
        """Setting -> source in words, for the settings that define a run (not device, engine, ...)."""
        return {k: str(v) for k, v in sorted(self.sources.items()) if k.split(".")[0] in _DEFINING}

    def runs(self) -> list[RunSpec]:
        """The specification of each seed's run."""
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
        return self.task.environment


# groups and settings whose values count as tuning
TUNABLE = ("method", *AROUND, "transforms", "batch_size", "gamma")

_DEFINING = (*TUNABLE, "n_updates", "eval", "seeds", "loader", "precision")
