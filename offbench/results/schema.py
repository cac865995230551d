"""The rows of results, one per evaluation episode: their columns, types and rules."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd
import pyarrow as pa

from offbench.errors import UserError, nearest, unknown
from offbench.results.spec import RunSpec

EPISODE_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "run_id": "object",
        "entry": "object",
        "suite": "object",
        "task": "object",
        "method": "object",
        "seed": "int64",
        "update": "int64",
        "stream": "object",
        "episode": "int64",
        "env_seed": "int64",
        "return": "float64",
        "score": "float64",
        "length": "int64",
        "success": "boolean",
        "terminated": "bool",
        "truncated": "bool",
        "plans": "Int64",
        "chunk_lengths": "object",
        "start_value": "Float64",
        "discounted_return": "Float64",
    }
)
"""Column -> pandas dtype, in order. `score` is on the 0-100 scale (success x 100 where that is the
score). `plans` counts the times the policy was asked for actions: `length` / `plans` is the mean length
of the chunks it executed. `chunk_lengths` is the histogram of those lengths, how many were 1, 2, ... h
steps long, where the policy executes chunks. `start_value` is what the method's critics said of its first
decision, `discounted_return` what came of it on the rewards and with the discount of its data
(`offbench.rollout.evaluate`); methods without critics have neither. `success` and all from `plans` on
may be missing; older records lack columns at the end."""

NULLABLE = ("success", "plans", "chunk_lengths", "start_value", "discounted_return")

# in the order in which records came to have them
LATER_COLUMNS = NULLABLE[1:]

VALIDATION_ERRORS = frozenset({"validation/action_error", "validation/action_disagreement"})
"""The curves of what a policy does otherwise than held-out episodes have it (`offbench.training.held_out`)."""

STREAMS = ("test", "monitor", "tune")

_ARROW = {
    "object": pa.string(),
    "int64": pa.int64(),
    "Int64": pa.int64(),
    "float64": pa.float64(),
    "Float64": pa.float64(),
    "boolean": pa.bool_(),
    "bool": pa.bool_(),
}

_COUNTS = pa.list_(pa.int64())

ARROW_SCHEMA = pa.schema(
    [
        pa.field(name, _COUNTS if name == "chunk_lengths" else _ARROW[kind], name in NULLABLE)
        for name, kind in EPISODE_COLUMNS.items()
    ]
)


def no_episodes() -> pd.DataFrame:
    """The episodes of a run without an environment."""
    return pd.DataFrame({k: pd.Series(dtype=kind) for k, kind in EPISODE_COLUMNS.items()})


def episode_table(run: RunSpec, episodes: pd.DataFrame, entry: str) -> pa.Table:
    """`episodes` as the rows of `run`, typed and in order, or a UserError saying what is wrong."""
    frame = episodes.copy()
    constant = {
        "run_id": run.run_id,
        "entry": entry,
        "suite": run.suite,
        "task": run.task,
        "method": run.method,
        "seed": run.seed,
    }
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
    for name, kind in EPISODE_COLUMNS.items():
        if kind in ("bool", "boolean") and not _is_boolean(frame[name]):
            raise UserError(f"episodes: column {name!r} is not true or false")
        if name not in NULLABLE and frame[name].isna().any():
            raise UserError(f"episodes: {name} is not finite or is missing in some rows")
    try:
        table = pa.Table.from_pandas(frame, schema=ARROW_SCHEMA, preserve_index=False)
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
    least = 0 if run.protocol.get("validation") else 1
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < least:
        raise UserError(f"protocol.episodes: {wanted!r} is not a number of test episodes")
    if len(test) != wanted:
        raise UserError(f"episodes: {len(test)} test episodes, the protocol has {wanted}")
