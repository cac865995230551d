"""Records of a finished stack, with the remarks that go with its scores."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from offbench.bench import provenance
from offbench.bench.cells import Cell
from offbench.bench.failures import failure_of
from offbench.bench.settings import Settings
from offbench.bench.stacks import Pack
from offbench.errors import UserError, publishable
from offbench.results.commit import RecordedAlready
from offbench.results.schema import ESTIMATE, VALIDATION_ERRORS, no_episodes
from offbench.results.spec import Provenance, RunSpec
from offbench.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from offbench.data.pipeline import Pipeline
    from offbench.training.engine import Ran

# a mean Q above this many times the largest possible return counts as diverged
TOO_FAR = 10
# seconds until records are written again where the disk was full, each time
FULL_DISK_S = (5.0, 20.0)


class Outcome(NamedTuple):
    """The result of one cell: scores, failures and remarks by seed."""

    cell: Cell
    # seed -> mean test score
    scores: dict[int, float]
    # seed -> reason
    failed: dict[int, str]
    # seed -> remark on its score
    remarks: dict[int, str]
    wall_s: float
    backend: "Ran"
    # seed -> action error on held-out episodes, where any were held out
    errors: dict[int, float]
    # seed -> estimated value, where nothing was played
    estimates: dict[int, float]
    # note on the whole stack
    note: str | None = None


class Trained(NamedTuple):
    """A trained stack with its curves and episodes; lists have one value per member."""

    backend: "Ran"
    device: str
    # whether a parameter is not finite
    broken: list[bool]
    # episodes with their `member`; the last are those after the last update
    frames: "list[pd.DataFrame]"
    # {"update": update, metric: [its values]}
    curves: list[dict[str, Any]]
    wall_s: float
    train_s: float
    # settings that were null and set from the data
    fitted: dict[str, Any]
    # upper bound of a discounted return
    largest_return: float
    # other commits that trained a part of it, before a checkpoint
    other_commits: list[str]
    # remark on the run that each member was resumed from; empty if none was
    resumed_from: list[str]
    # update -> why its monitor episodes could not be played
    unwatched: dict[str, str]
    # remarks on every run of the stack
    remarks: list[str]

    def episodes(self, i: int) -> "list[pd.DataFrame]":
        """The evaluation episodes of member i, a table per evaluation."""
        own = (f[f["member"] == i].drop(columns="member") for f in self.frames)
        return [rows for rows in own if len(rows)]

    def curve(self, i: int) -> dict[str, list[float]]:
        """The training curves of member i: metric -> values, nan where it was not reported."""
        names = dict.fromkeys(n for c in self.curves for n in c if n != "update")
        return {"update": [c["update"] for c in self.curves]} | {
            m: [c[m][i] if m in c else float("nan") for c in self.curves] for m in names
        }

    def diverged(self, i: int, rows: "list[pd.DataFrame]") -> str | None:
        """What is not finite of member i: a parameter, or a number of its episodes; None where all is."""
        if self.broken[i]:
            return "a parameter is not finite"
        for name in ("return", "score"):
            # false of nan, too
            if not all(table[name].abs().lt(float("inf")).all() for table in rows):
                return f"the {name} of an episode is not finite"
        return None

    def remark(self, i: int, curve: Mapping[str, list[float]]) -> str | None:
        """Remarks on the score of member i: diverged values, resumption, other commits, lost monitor
        evaluations."""
        last = {m: values[-1] for m, values in curve.items() if m != "update"}
        remarks = [exploded(last, self.largest_return), *self.resumed_from[i : i + 1]]
        if self.other_commits:
            remarks.append(f"trained in part by commit {', '.join(self.other_commits)}")
        for update, why in self.unwatched.items():
            remarks.append(f"no monitor episodes at update {update}: {why}")
        return "; ".join(filter(None, remarks)) or None


def record(
    pack: Pack,
    store: Store,
    settings: Settings,
    trained: Trained,
    keep_run: Callable[[int, Path], None] | None,
) -> list[Outcome]:
    """Stores the record of every run of a stack that has none; `keep_run(member, path of the record)` its policy.

    Returns the outcomes of the cells of which a run was recorded.
    """
    outcomes: dict[str, Outcome] = {}
    # others were trained for the sake of a run in the same stack that has no record
    absent = {run.run_id for run in store.missing(pack.runs)}
    for i, (cell, run) in enumerate(pack.members):
        if run.run_id not in absent:
            continue
        facts = provenance_of(
            cell,
            settings,
            trained.device,
            str(trained.backend),
            pack.run_ids,
            trained.wall_s,
            trained.train_s,
            trained.fitted,
        )
        new = Outcome(cell, {}, {}, {}, trained.wall_s, trained.backend, {}, {})
        outcome = outcomes.get(cell.entry, new)
        # by a worker that took the runs over while this process was suspended
        with suppress(RecordedAlready):
            _record_one(i, run, facts, store, trained, keep_run, outcome)
            outcomes[cell.entry] = outcome
    return list(outcomes.values())


def _record_one(
    i: int,
    run: RunSpec,
    facts: Provenance,
    store: Store,
    trained: Trained,
    keep_run: Callable[[int, Path], None] | None,
    outcome: Outcome,
) -> None:
    """Stores the record of member i, and enters it in the outcome of its cell."""
    import pandas as pd

    cell, rows, curve = outcome.cell, trained.episodes(i), trained.curve(i)
    if (reason := trained.diverged(i, rows)) is not None:
        reason = f"{reason} after {cell.n_updates} updates"
        store.fail(run, reason, facts, status="diverged")
        outcome.failed[run.seed] = reason
        return
    own = trained.remark(i, curve)
    if keep_run is not None:
        keep_run(i, store.path(run, cell.entry))
    episodes = pd.concat(rows, ignore_index=True) if rows else no_episodes()
    # those on the whole stack are shown once, as its note
    remark = "; ".join(filter(None, [own, *trained.remarks])) or None
    store.append(run, episodes, facts, curve, remark=remark)
    if own:
        outcome.remarks[run.seed] = own
    if cell.protocol["episodes"]:
        outcome.scores[run.seed] = float(rows[-1]["score"].mean())
    for name in VALIDATION_ERRORS & curve.keys():
        outcome.errors[run.seed] = curve[name][-1]
    if ESTIMATE in curve:
        outcome.estimates[run.seed] = curve[ESTIMATE][-1]


def patiently(write: Callable[[], list[Outcome]], stop: Callable[[], bool]) -> list[Outcome]:
    """Has records written, again where the disk was full. Raises UserError where it stays full."""
    for seconds in (*FULL_DISK_S, 0.0):
        try:
            return write()
        except (UserError, OSError) as error:
            kind, why = failure_of(error)
            if kind != "infrastructure":
                raise
        if stop():
            break
        time.sleep(seconds)
    # training once more would find no room for its records, either
    raise UserError(why)


def largest_return(pipeline: "Pipeline") -> float:
    """Upper bound of any discounted return: largest |reward| / (1 - gamma), rewards transformed."""
    gamma = pipeline.view.gamma
    return float(pipeline.data.reward.abs().max()) / (1 - gamma) if gamma < 1 else float("inf")


def exploded(metrics: Mapping[str, float], largest: float) -> str | None:
    """A remark where the mean value (`q`, else `v`) is above TOO_FAR times the largest return.

    The policy is finite and its score is its score: to leave it out would be to choose the runs that
    count by their outcome. None where all rewards are 0: there is no scale.
    """
    name = next((n for n in ("q", "v") if n in metrics), None)
    if name is None or largest == 0 or abs(metrics[name]) <= TOO_FAR * largest:
        return None
    return (
        f"values diverged: mean {name} {metrics[name]:.1e}, while the rewards allow {largest:.1e} "
        "(the largest / (1 - gamma))"
    )


def facts_of(cell: Cell, settings: Settings, device: str) -> dict[str, Any]:
    """What is known of a run before it is trained, in the words of its provenance."""
    facts = provenance_of(cell, settings, device, settings.engine, [], 0.0, 0.0, {}).as_dict()
    later = ("entry", "backend", "pack", "stack", "wall_s", "train_s", "created", "fitted")
    return {name: value for name, value in facts.items() if name not in later}


def provenance_of(
    cell: Cell,
    settings: Settings,
    device: str,
    backend: str,
    stack: Sequence[str],
    wall_s: float,
    train_s: float,
    fitted: dict[str, Any],
) -> Provenance:
    """The provenance of a run of a cell; `stack` are the run ids of the runs trained with it, its own too."""
    return Provenance(
        **provenance.made_here(device),
        entry=cell.entry,
        backend=backend,
        precision=settings.precision,
        pack=max(1, len(stack)),
        stack=list(stack),
        wall_s=round(wall_s, 3),
        train_s=round(train_s, 3),
        tuning=cell.tuning,
        # where records lie is no part of how they came to be, and says who lives there
        overrides={
            k: publishable(v) if isinstance(v, str) else v
            for k, v in cell.overrides.items()
            if v is not None and k != "results"
        },
        fitted=fitted,
        sources=cell.recorded_sources,
    )
