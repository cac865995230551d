"""What a pack has shown before its end, kept beside its checkpoint."""

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
    """What a pack has shown before its end, kept beside its checkpoint: curves and monitor episodes."""

    curves: list[dict[str, Any]] = field(default_factory=list)
    frames: "list[pd.DataFrame]" = field(default_factory=list)
    train_s: float = 0.0
    # the commits that trained it, the first one first
    code: list[str] = field(default_factory=list)
    # of each member: where it did, if not at 0
    began: list[str] = field(default_factory=list)
    # why it began at 0, if a shorter run was kept
    note: str | None = None

    @staticmethod
    def path(checkpoint: Path) -> Path:
        return checkpoint.with_suffix(".json")

    def save(self, checkpoint: Path) -> None:
        """Written before the checkpoint, so that it is never behind it; what is ahead is dropped."""
        rows = [f.astype(object).where(f.notna(), None).to_dict("list") for f in self.frames]
        body = {f.name: getattr(self, f.name) for f in fields(self)} | {"frames": rows}
        atomic_write(self.path(checkpoint), json.dumps(body).encode())

    @classmethod
    def load(cls, checkpoint: Path) -> "Progress":
        """Nothing where there is no checkpoint or nothing was kept beside it."""
        import pandas as pd

        path = cls.path(checkpoint)
        if not (checkpoint.exists() and path.exists()):
            return cls()
        body = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**body, "frames": [typed(pd.DataFrame(f)) for f in body["frames"]]})

    @classmethod
    def of_records(cls, records: Sequence[Record], n_updates: int, store: Store) -> "Progress":
        """What the records of a shorter run have, one for each member of the stack."""
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
            seen = store.episodes(run_id=record.spec.run_id, stream="monitor")
            if len(seen):
                frames.append(seen[list(EVALUATION_COLUMNS)].assign(member=i))
        began = "went on from the kept state of run {} ({} updates)"
        return cls(
            curves,
            frames,
            max(record.provenance.train_s for record in records),
            list(
                dict.fromkeys(
                    _spelt_commit(r.provenance.commit, r.provenance.dirty) for r in records
                )
            ),
            began=[began.format(record.spec.run_id, n_updates) for record in records],
        )

    def forget_from(self, update: int) -> None:
        self.curves[:] = [c for c in self.curves if c["update"] < update]
        self.frames[:] = [f for f in self.frames if f["update"].iloc[0] < update]


def code_version() -> str:
    return _spelt_commit(*provenance.commit())


def _spelt_commit(commit: str, dirty: bool) -> str:
    return f"{commit[:7]}{' with changes' if dirty else ''}"


def checkpoint_path(pack: Pack, settings: Settings) -> Path:
    return Path(settings.results) / "checkpoints" / f"{pack.name}.safetensors"
