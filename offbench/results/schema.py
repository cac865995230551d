"""The rows of results, one per evaluation episode: their columns, types and rules."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from offbench.errors import UserError, nearest, unknown
from offbench.results.spec import RunSpec

Stream = Literal["test", "monitor", "tune"]
STREAMS: tuple[str, ...] = get_args(Stream)

AnyStream = Stream | Literal["played"]
"""The lists of start states: those of records, and that of policies played again (`offbench.results.decisions`)."""

VALIDATION_ERRORS = frozenset({"validation/action_error", "validation/action_disagreement"})
"""The curves of how a policy's actions differ from those of held-out episodes (`offbench.training.held_out`)."""


ESTIMATE = "estimate/fqe"
"""The curve whose last value is what a policy is estimated to be worth (`eval.by=fqe`, `offbench.ope`)."""

ESTIMATE_ERROR = "estimate/standard_error"
"""That of the mean over start states."""

RECORDED = "estimate/recorded"
"""The mean discounted return of the recorded episodes, without a bootstrap where they were cut."""


def known(name: str, kind: pa.DataType) -> pa.Field:
    """A column that is never null."""
    return pa.field(name, kind, nullable=False)


EPISODE_SCHEMA = pa.schema(
    [
        # the run: the same in all its rows
        known("run_id", pa.string()),
        known("entry", pa.string()),
        known("suite", pa.string()),
        known("task", pa.string()),
        known("method", pa.string()),
        known("seed", pa.int64()),
        # updates made before the evaluation
        known("update", pa.int64()),
        # which list of start states: one of STREAMS
        known("stream", pa.string()),
        # its place in that list
        known("episode", pa.int64()),
        # what the environment was reset with
        known("env_seed", pa.int64()),
        # sum of the raw rewards
        known("return", pa.float64()),
        # on the scale of 0 to 100; 100 for a success where that is the score
        known("score", pa.float64()),
        # steps
        known("length", pa.int64()),
        # null where the environment does not say
        pa.field("success", pa.bool_()),
        known("terminated", pa.bool_()),
        known("truncated", pa.bool_()),
        # how often the policy was asked for actions: length / plans is the mean executed chunk length
        pa.field("plans", pa.int64()),
        # how many of the executed chunks were 1, 2, ... h steps long; null for policies without chunks
        pa.field("chunk_lengths", pa.list_(pa.int64())),
        # what the method's critics said of the first decision; null without critics
        pa.field("start_value", pa.float64()),
        # the return on the rewards and with the discount of the method's data; null without critics
        pa.field("discounted_return", pa.float64()),
        # the goal that was to be reached, of goal-conditioned tasks; null for others
        pa.field("task_id", pa.int64()),
    ]
)
"""The rows of results, one per evaluation episode. `offbench.rollout.evaluate` has the definitions."""

RUN_COLUMNS = ("run_id", "entry", "suite", "task", "method", "seed")
"""The columns that are the same in all rows of a run."""

EVALUATION_COLUMNS = tuple(
    name for name in EPISODE_SCHEMA.names if name not in ("run_id", "entry", "suite", "method")
)
"""The columns that an evaluation fills; a record adds the others."""

LATER_COLUMNS = ("plans", "chunk_lengths", "start_value", "discounted_return", "task_id")
"""The columns that older records lack, in the order in which they were added; they are read as null."""

_DTYPES = {pa.string(): "object", pa.int64(): "int64", pa.float64(): "float64", pa.bool_(): "bool"}

NULLABLE = {
    pa.int64(): pd.Int64Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}
"""The pandas dtypes of columns that may be null."""

EPISODE_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        f.name: str(NULLABLE.get(f.type, "object")) if f.nullable else _DTYPES[f.type]
        for f in EPISODE_SCHEMA
    }
)
"""The columns and their pandas dtypes, in order."""


def typed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the dtypes of EPISODE_COLUMNS; columns that are none of an episode stay as they are."""
    return rows.astype({name: kind for name, kind in EPISODE_COLUMNS.items() if name in rows})


def no_episodes() -> pd.DataFrame:
    """The episodes of a run without an environment."""
    return typed(pd.DataFrame(columns=list(EPISODE_COLUMNS)))


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A table of EPISODE_SCHEMA as a frame of EPISODE_COLUMNS."""
    frame = table.select([f.name for f in EPISODE_SCHEMA if not f.nullable]).to_pandas()
    for i, field in enumerate(EPISODE_SCHEMA):
        if field.nullable:
            frame.insert(i, field.name, table[field.name].to_pandas(types_mapper=NULLABLE.get))
    return frame


def completed(table: pa.Table) -> pa.Table:
    """Rows of an older record with the columns that it lacks, as null."""
    for name in LATER_COLUMNS:
        if name not in table.column_names:
            field = EPISODE_SCHEMA.field(name)
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def episode_table(run: RunSpec, episodes: pd.DataFrame, entry: str) -> pa.Table:
    """The episodes of a run as rows of EPISODE_SCHEMA, ordered by stream, update and number.

    Args:
        episodes: EVALUATION_COLUMNS, those of LATER_COLUMNS if known; RUN_COLUMNS may be there too.
        entry: the label of the board's row.

    Raises:
        UserError: a column is unknown, missing or of another type; a row is of another run, not finite,
            or double; or the test episodes are not those of the protocol after the last update.
    """
    frame = episodes.copy()
    constant = {name: entry if name == "entry" else getattr(run, name) for name in RUN_COLUMNS}
    for name in frame.columns:
        if name not in EPISODE_COLUMNS:
            raise UserError(f"episodes: unknown column {name!r}: {nearest(name, EPISODE_COLUMNS)}")
    for name, value in constant.items():
        if name not in frame:
            frame[name] = value
        elif not (same := frame[name] == value).all():
            other = frame[name][~same].iloc[0]
            raise UserError(f"episodes: {name} is {other!r} in a run whose {name} is {value!r}")
    for name in LATER_COLUMNS:
        if name not in frame:
            frame[name] = pd.array([None] * len(frame), EPISODE_COLUMNS[name])
    if absent := [name for name in EPISODE_COLUMNS if name not in frame]:
        raise UserError(f"episodes: no column {', '.join(absent)}")
    frame = frame[list(EPISODE_COLUMNS)]
    for field in EPISODE_SCHEMA:
        if field.type == pa.bool_() and not _is_boolean(frame[field.name]):
            raise UserError(f"episodes: column {field.name!r} is not true or false")
        if not field.nullable and frame[field.name].isna().any():
            raise UserError(f"episodes: {field.name} is not finite or is missing in some rows")
    try:
        table = pa.Table.from_pandas(frame, schema=EPISODE_SCHEMA, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"episodes: wrong type: {'; '.join(map(str, error.args))}") from None
    _check_rows(run, table.to_pandas())
    order = [("stream", "ascending"), ("update", "ascending"), ("episode", "ascending")]
    return table.replace_schema_metadata(None).sort_by(order)


def _is_boolean(column: pd.Series) -> bool:
    if pd.api.types.is_bool_dtype(column.dtype):
        return True
    return column.dropna().map(lambda value: isinstance(value, bool | np.bool_)).all()


def _check_rows(run: RunSpec, frame: pd.DataFrame) -> None:
    for name in ("return", "score"):
        if not np.isfinite(frame[name]).all():
            raise UserError(f"episodes: {name} is not finite in some rows; use Store.fail")
    for stream in frame["stream"].unique():
        if stream not in STREAMS:
            raise unknown("stream", stream, STREAMS)
    if (frame["length"] < 1).any():
        raise UserError("episodes: an episode has no steps")
    if not frame["update"].between(0, run.n_updates).all():
        raise UserError(f"episodes: update {frame['update'].max()} of a run of {run.n_updates}")
    key = ["stream", "update", "episode"]
    if (twice := frame.duplicated(key)).any():
        stream, update, episode = frame.loc[twice.idxmax(), key]
        raise UserError(f"episodes: {stream} episode {episode} at update {update} occurs twice")
    test = frame[frame["stream"] == "test"]
    early = test["update"] != run.n_updates
    if early.any():
        raise UserError(
            f"episodes: test episodes at update {test['update'][early].iloc[0]}; the test stream is"
            f" read once, at the last update ({run.n_updates}); use the monitor stream before"
        )
    wanted = run.protocol.get("episodes")
    unplayed = run.protocol.get("validation") or run.protocol.get("by")
    least = 0 if unplayed else 1
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < least:
        raise UserError(f"protocol.episodes: {wanted!r} is not a number of test episodes")
    if len(test) != wanted:
        raise UserError(f"episodes: {len(test)} test episodes, the protocol has {wanted}")
