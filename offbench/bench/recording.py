"""The records of a finished pack, with what a reader of a score must know."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from offbench.bench import provenance
from offbench.bench.cells import Cell
from offbench.bench.settings import Settings
from offbench.bench.stacks import Pack
from offbench.results.schema import VALIDATION_ERRORS, no_episodes
from offbench.results.spec import Provenance
from offbench.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from offbench.data.pipeline import Pipeline

# times what any policy could earn: no error of estimation, the values have diverged
TOO_FAR = 10


class Outcome(NamedTuple):
    """What came of one cell."""

    cell: Cell
    scores: dict[int, float]  # seed -> mean test score
    failed: dict[int, str]  # seed -> reason
    # seed -> what to know of a score that counts
    remarks: dict[int, str]
    wall_s: float
    # which engine ran, with the reason where a faster one was refused
    backend: str
    # seed -> action error on held-out episodes, where any were held out
    errors: dict[int, float]
    # what is to be said once, and not of a score
    note: str | None = None


class Trained(NamedTuple):
    """A stack that was trained, and what it has shown; lists have one value per member of the stack."""

    backend: str
    device: str
    # whether a parameter is not finite
    broken: list[bool]
    # episodes with their `member`; the last are those after the last update
    frames: "list[pd.DataFrame]"
    # {"update": update, metric: [its values]}
    curves: list[dict[str, Any]]
    wall_s: float
    train_s: float
    # settings that were left to the data
    fitted: dict[str, Any]
    # the largest discounted return that the rewards allow
    most: float
    # other commits that trained a part of it, before a checkpoint
    earlier: list[str]
    # where each began, if not at 0
    began: list[str]

    def episodes(self, i: int) -> "list[pd.DataFrame]":
        return [f[f["member"] == i].drop(columns="member") for f in self.frames]

    def curve(self, i: int) -> dict[str, list[float]]:
        names = dict.fromkeys(n for c in self.curves for n in c if n != "update")
        return {"update": [c["update"] for c in self.curves]} | {
            m: [c[m][i] if m in c else float("nan") for c in self.curves] for m in names
        }

    def remark(self, i: int, curve: Mapping[str, list[float]]) -> str | None:
        """What to know of a score that counts."""
        last = {m: values[-1] for m, values in curve.items() if m != "update"}
        said = [exploded(last, self.most), *self.began[i : i + 1]]
        if self.earlier:
            said.append(f"trained in part by commit {', '.join(self.earlier)}")
        return "; ".join(filter(None, said)) or None


def record(
    pack: Pack,
    store: Store,
    settings: Settings,
    trained: Trained,
    keep_run: Callable[[int, Path], None] | None,
) -> list[Outcome]:
    """The records of all runs; `keep_run(place, path of the record)` keeps what was trained."""
    import pandas as pd

    outcomes = {
        cell.entry: Outcome(cell, {}, {}, {}, trained.wall_s, trained.backend, {})
        for cell in pack.cells
    }
    for i, (cell, run) in enumerate(pack.members):
        outcome = outcomes[cell.entry]
        made = provenance_of(
            cell,
            settings,
            trained.device,
            trained.backend,
            len(pack.members),
            trained.wall_s,
            trained.train_s,
            trained.fitted,
        )
        if trained.broken[i]:
            reason = f"a parameter is not finite after {cell.n_updates} updates"
            outcome.failed[run.seed] = reason
            store.fail(run, reason, made, status="diverged")
            continue
        rows, curve = trained.episodes(i), trained.curve(i)
        if remark := trained.remark(i, curve):
            outcome.remarks[run.seed] = remark
        if keep_run is not None:
            keep_run(i, store.path(run, cell.entry))
        episodes = pd.concat(rows, ignore_index=True) if rows else no_episodes()
        store.append(run, episodes, made, curve, remark=remark)
        if cell.protocol["episodes"]:
            outcome.scores[run.seed] = float(rows[-1]["score"].mean())
        for name in VALIDATION_ERRORS & curve.keys():
            outcome.errors[run.seed] = curve[name][-1]
    return list(outcomes.values())


def most_earned(pipeline: "Pipeline") -> float:
    """No policy's discounted return can be larger than this, by the rewards as a method sees them."""
    gamma = pipeline.view.gamma
    return float(pipeline.data.reward.abs().max()) / (1 - gamma) if gamma < 1 else float("inf")


def exploded(metrics: Mapping[str, float], most: float) -> str | None:
    """Says so where the mean of a method's values (`q`, else `v`) lies far beyond what can be earned.

    The policy is finite and its score is its score: to leave it out would be to choose the runs that
    count by their outcome. Where all rewards are 0 there is no scale to judge by.
    """
    name = next((n for n in ("q", "v") if n in metrics), None)
    if name is None or most == 0 or abs(metrics[name]) <= TOO_FAR * most:
        return None
    return (
        f"values diverged: mean {name} {metrics[name]:.1e}, while the rewards allow {most:.1e} "
        "(the largest / (1 - gamma))"
    )


def provenance_of(
    cell: Cell,
    settings: Settings,
    device: str,
    backend: str,
    size: int,
    wall_s: float,
    train_s: float,
    fitted: dict[str, Any],
) -> Provenance:
    commit, dirty = provenance.commit()
    return Provenance(
        entry=cell.entry,
        commit=commit,
        dirty=dirty,
        versions=provenance.versions(),
        device=provenance.device_name(device),
        backend=backend,
        precision=settings.precision,
        pack=size,
        wall_s=round(wall_s, 3),
        train_s=round(train_s, 3),
        tuning=cell.tuning,
        created=provenance.now(),
        overrides={k: v for k, v in cell.overrides.items() if v is not None},
        host=provenance.host(),
        fitted=fitted,
        sources=cell.recorded_sources,
    )
