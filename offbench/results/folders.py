"""Records in several folders, of several machines, read as if they lay in one."""

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from offbench.errors import UserError
from offbench.results.record import DamageError, load, read_episodes
from offbench.results.store import Store


class Folders:
    """Stores whose records count together; a run that several have counts once."""

    def __init__(self, folders: Sequence[str | Path]):
        for folder in folders if len(folders) > 1 else ():
            if not Path(folder).is_dir():
                raise UserError(f"results: there is no folder {folder}")
        self.stores = [Store(folder) for folder in folders]
        # run id -> the store that it is read from
        self._home: dict[str, Store] = {}

    def __str__(self) -> str:
        return ", ".join(str(store.root) for store in self.stores)

    def runs(self, suite: str) -> pd.DataFrame:
        """`Store.runs()` of a suite in all folders.

        A run that is whole in one folder and failed in another counts as whole.

        Raises:
            UserError: two folders have different episodes of one run; names both.
        """
        parts: list[pd.DataFrame] = []
        status: dict[str, str] = {}
        for store in self.stores:
            lines = store.runs(suite=suite)
            kept = []
            for run_id, one in zip(lines["run_id"], lines["status"], strict=True):
                known = status.get(run_id)
                # a failure does not replace what is there, a whole record replaces a damaged one
                kept.append(
                    known is None
                    or (one == "ok" and (known != "ok" or self._is_damaged(run_id, store)))
                )
                if kept[-1]:
                    self._home[run_id], status[run_id] = store, one
            new = lines[kept]
            parts = [part[~part["run_id"].isin(list(new["run_id"]))] for part in parts]
            parts.append(new)
        filled = [part for part in parts if len(part)] or parts[:1]
        return pd.concat(filled, ignore_index=True)

    def episodes(self, run_ids: Collection[str]) -> pd.DataFrame:
        """`Store.episodes()` of some runs that `runs` found."""
        frames = []
        for store in dict.fromkeys(self.stores):
            own = [run_id for run_id in run_ids if self._home.get(run_id) is store]
            if own:
                frames.append(store.episodes(run_id=own))
        return (
            pd.concat(frames, ignore_index=True) if frames else self.stores[0].episodes(run_id=[])
        )

    def _is_damaged(self, run_id: str, other: Store) -> bool:
        """Whether the episodes of a run are damaged where it is read from, and not in another store.

        Raises:
            UserError: both have episodes of it, and they differ.
        """
        paths = [store.read(run_id).path for store in (self._home[run_id], other)]
        a, b = map(_episodes, paths)
        if a is not None and b is not None and not a.equals(b):
            raise UserError(
                f"two records of run {run_id} have different episodes: {paths[0]} and {paths[1]};"
                " leave one folder out"
            )
        return a is None and b is not None


def _episodes(mark: Path) -> pa.Table | None:
    """The episodes of a record; None where they are damaged."""
    try:
        return read_episodes(mark, load(mark)["episodes"])
    except DamageError:
        return None
