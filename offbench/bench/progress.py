"""Curves and episodes of an unfinished stack, stored in its checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.bench import provenance
from offbench.bench.settings import Settings
from offbench.bench.stacks import Pack
from offbench.results.claims import claimed, sweep
from offbench.results.commit import inside
from offbench.results.schema import EVALUATION_COLUMNS, typed
from offbench.results.sharing.gc import finished_checkpoints
from offbench.results.store import Record, Store

if TYPE_CHECKING:
    import pandas as pd

    from offbench.training.step import Carry

# a record's remark on the shorter run that its run went on from: that one's id and updates
WENT_ON = "went on from the kept state of run {} ({} updates)"


@dataclass
class Progress:
    """Curves and monitor episodes of an unfinished stack, stored in its checkpoint."""

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
    # remarks on every run of the stack
    remarks: list[str] = field(default_factory=list)
    # lines to be told with the outcome, by whoever evaluates
    told: list[str] = field(default_factory=list)
    # the ids of its runs, so that nobody has to plan them to know whether they are recorded
    runs: list[str] = field(default_factory=list)
    # of a stack whose training is over: the backend, its notes and the device's name
    trained: tuple[str, list[str], str] | None = None
    # then, the updates whose monitor episodes remain: their training states lie beside the checkpoint
    unplayed: list[int] = field(default_factory=list)
    # and the seconds that it took
    wall_s: float = 0.0
    # why a checkpoint could not be written; about this process, and not stored
    unsaved: str | None = None

    @property
    def update(self) -> int:
        """The last update of the curves."""
        return self.curves[-1]["update"] if self.curves else 0

    def save(self, carry: "Carry", checkpoint: Path) -> bool:
        """Writes the training state with this progress; whether it is worth trying again.

        Where it cannot be written, the checkpoint before it stays, and `unsaved` says why.
        """
        from offbench.training.checkpoint import save
        from offbench.training.object_state import NotPlain

        rows = [f.astype(object).where(f.notna(), None).to_dict("list") for f in self.frames]
        body = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "unsaved"}
        try:
            save(carry, checkpoint, {"pack": checkpoint.stem, **body, "frames": rows})
        except OSError as error:
            self.unsaved = f"a checkpoint could not be written: {error.strerror or error}"
        except NotPlain as error:
            self.unsaved = f"no checkpoints from update {int(carry.step)} on: {error}"
            return False
        return True

    def save_beside(self, states: "Mapping[int, Carry]", checkpoint: Path) -> bool:
        """Writes the training states of updates whose monitor episodes remain; whether all could be."""
        for update, carry in states.items():
            one = Progress(runs=self.runs)
            one.save(carry, state_of(checkpoint, update))
            self.unsaved = one.unsaved
            if one.unsaved:
                return False
        self.unplayed = [*states]
        return True

    def load_beside(
        self, checkpoint: Path, like: "Callable[[], Carry]"
    ) -> "Iterator[tuple[int, Carry]]":
        """(update, training state) of those that were saved beside a checkpoint; a damaged one is remarked on."""
        for update in self.unplayed:
            state, found = Progress.load(state_of(checkpoint, update), like())
            if state is None:
                self.unwatched[str(update)] = found.note or ""
            else:
                yield update, state

    @classmethod
    def load(cls, checkpoint: Path, like: "Carry") -> "tuple[Carry | None, Progress]":
        """The training state and progress of a checkpoint. A damaged file is set aside, and training begins
        again: (None, a progress that says so)."""
        import pandas as pd

        from offbench.training.checkpoint import Damaged, load, set_aside

        try:
            carry, about = load(checkpoint, like)
            if about.pop("pack", None) != checkpoint.stem:
                raise Damaged(checkpoint, "it is of another run")
            try:
                frames = [typed(pd.DataFrame(f)) for f in about.pop("frames")]
                return carry, cls(**about, frames=frames)
            except (TypeError, KeyError):
                raise Damaged(checkpoint, "its progress is of another version") from None
        except Damaged as error:
            line = f"{error}; training begins again"
        set_aside(checkpoint)
        return None, cls(note=line, remarks=[line])

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
        return cls(
            curves,
            frames,
            max(record.provenance.train_s for record in records),
            list(
                dict.fromkeys(
                    _spelt_commit(r.provenance.commit, r.provenance.dirty) for r in records
                )
            ),
            resumed_from=[WENT_ON.format(record.spec.run_id, n_updates) for record in records],
        )


def code_version() -> str:
    return _spelt_commit(*provenance.commit())


def _spelt_commit(commit: str, dirty: bool) -> str:
    return f"{commit[:7]}{' with changes' if dirty else ''}"


def checkpoint_path(pack: Pack, settings: Settings) -> Path:
    root = Path(settings.results)
    return inside(root, root / "checkpoints" / f"{pack.name}.safetensors")


def state_of(checkpoint: Path, update: int) -> Path:
    """The training state of an update whose monitor episodes remain when training is over."""
    return checkpoint.with_suffix(f".{update}.safetensors")


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint, and what killed processes and earlier versions have left of it."""
    folder, stem = checkpoint.parent, checkpoint.stem
    left = [*folder.glob(f".{stem}.*.tmp*"), *folder.glob(f"{stem}.*.safetensors")]
    for path in (checkpoint, checkpoint.with_suffix(".json"), *left):
        path.unlink(missing_ok=True)


def tidy(store: Store) -> None:
    """Removes what killed workers have left: their claims, and checkpoints of runs that they had just recorded.

    What cannot be removed stays.
    """
    sweep(store.root)
    living = claimed(store.root)
    # by the names of files, so that records are opened for these alone
    named = cache(lambda: {path.stem for path in store.records()})
    recorded = lambda runs: (
        living.keys().isdisjoint(runs) and named().issuperset(runs) and all(map(store.whole, runs))
    )
    for path in finished_checkpoints(store.root, recorded):
        with suppress(OSError):
            remove(path)
