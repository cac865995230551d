"""Curves and episodes of an unfinished stack, stored next to its checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.bench import provenance
from offbench.bench.settings import Settings
from offbench.bench.stacks import Pack
from offbench.io import atomic_write
from offbench.results.schema import EVALUATION_COLUMNS, typed
from offbench.results.store import Record, Store

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Progress:
    """Curves and monitor episodes of an unfinished stack, stored next to its checkpoint."""

    curves: list[dict[str, Any]] = field(default_factory=list)
    frames: "list[pd.DataFrame]" = field(default_factory=list)
    train_s: float = 0.0
    # the commits that trained it, the first one first
    code: list[str] = field(default_factory=list)
    # remark on the run that each member was resumed from; empty if none was
    resumed_from: list[str] = field(default_factory=list)
    # update -> why its monitor episodes could not be played
    unwatched: dict[str, str] = field(default_factory=dict)
    # why a kept shorter run was not resumed
    note: str | None = None

    @staticmethod
    def path(checkpoint: Path) -> Path:
        return checkpoint.with_suffix(".json")

    def save(self, checkpoint: Path) -> None:
        """Writes the progress; call it before saving the checkpoint, so that it is never behind."""
        rows = [f.astype(object).where(f.notna(), None).to_dict("list") for f in self.frames]
        body = {f.name: getattr(self, f.name) for f in fields(self)} | {"frames": rows}
        atomic_write(self.path(checkpoint), json.dumps(body).encode())

    @classmethod
    def load(cls, checkpoint: Path) -> "Progress":
        """The progress of a checkpoint; empty where either file is missing."""
        import pandas as pd

        path = cls.path(checkpoint)
        if not (checkpoint.exists() and path.exists()):
            return cls()
        body = json.loads(path.read_text(encoding="utf-8"))
        # the name in files of earlier versions
        body.setdefault("resumed_from", body.pop("began", []))
        return cls(**{**body, "frames": [typed(pd.DataFrame(f)) for f in body["frames"]]})

    @classmethod
    def of_records(cls, records: Sequence[Record], n_updates: int, store: Store) -> "Progress":
        """The progress in the records of shorter runs, one per member of the stack."""
        own = [m for record in records if (m := record.metrics) is not None]
        whole = len(own) == len(records) and all(m["update"].equals(own[0]["update"]) for m in own)
        names = list(own[0]) if whole else []
        curves = [
            {"update": int(own[0]["update"][i])}
            | {k: [float(m[k][i]) for m in own] for k in names if k != "update"}
            for i in range(len(own[0]) if whole else 0)
        ]
        frames = []
        for i, record in enumerate(records):
            seen = store.episodes(run_id=record.path.stem, stream="monitor")
            if len(seen):
                frames.append(seen[list(EVALUATION_COLUMNS)].assign(member=i))
        remark = "went on from the kept state of run {} ({} updates)"
        return cls(
            curves,
            frames,
            max(record.provenance.train_s for record in records),
            list(
                dict.fromkeys(
                    _spelt_commit(r.provenance.commit, r.provenance.dirty) for r in records
                )
            ),
            resumed_from=[remark.format(record.spec.run_id, n_updates) for record in records],
        )

    def forget_from(self, update: int) -> None:
        """Drops points at `update` and later, which are trained again."""
        self.curves[:] = [c for c in self.curves if c["update"] < update]
        self.frames[:] = [f for f in self.frames if f["update"].iloc[0] < update]
        self.unwatched = {u: why for u, why in self.unwatched.items() if int(u) < update}


def code_version() -> str:
    return _spelt_commit(*provenance.commit())


def _spelt_commit(commit: str, dirty: bool) -> str:
    return f"{commit[:7]}{' with changes' if dirty else ''}"


def checkpoint_path(pack: Pack, settings: Settings) -> Path:
    return Path(settings.results) / "checkpoints" / f"{pack.name}.safetensors"
