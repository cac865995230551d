"""Checks of arrays: shapes, types, ranges, duplicates."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from offbench.data.replay import ACTION_TOLERANCE, is_one_hot
from offbench.errors import listed
from offbench.tasks.doctor.report import Finding, Severity
from offbench.tasks.doctor.rows import Facts, Flat, Rows, two_dimensional


def all_finite(flat: Flat) -> bool:
    """Whether all observations and actions are finite numbers."""
    return all(
        np.asarray(x).dtype.kind in "fiub" and bool(np.isfinite(x).all())
        for x in (flat.observations, flat.actions)
    )


def shapes(flat: Flat) -> list[Finding]:
    """Arrays that are not numeric or differ in length; no further check is possible then."""
    arrays = {k: np.asarray(v) for k, v in flat._asdict().items() if v is not None}
    bad = [k for k, v in arrays.items() if v.dtype.kind not in "fiub"]
    if bad:
        kinds = {k: str(arrays[k].dtype) for k in bad}
        return [Finding("dtypes", "severe", f"no numbers: {_list(kinds)}", kinds)]
    shapes = {k: list(v.shape) for k, v in arrays.items()}
    flat_ones = ("rewards", "terminals", "timeouts", "steps")
    tables = ("observations", "next_observations")
    wrong: list[str] = [k for k in tables if k in arrays and arrays[k].ndim < 2]
    wrong += ["actions"] * (arrays["actions"].ndim != 2 and arrays["actions"].dtype.kind == "f")
    wrong += [k for k in flat_ones if k in arrays and arrays[k].size != len(arrays[k])]
    rows = {k: (v.shape[0] if v.ndim else 0) for k, v in arrays.items()}
    if len(set(rows.values())) > 1 or rows["actions"] < 2 or wrong:
        words = f"arrays do not go together: {_list({k: tuple(v) for k, v in shapes.items()})}"
        return [Finding("shapes", "severe", words, shapes)]
    return []


def _list(words: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in words.items())


def dtypes(flat: Flat) -> list[Finding]:
    """Columns that are neither float32 nor float64, except images and discrete actions."""
    images = np.asarray(flat.observations).dtype == np.uint8
    choices = np.asarray(flat.actions).dtype.kind in "iu"
    names = ["rewards"] + ["observations", "next_observations"] * (not images)
    names += ["actions"] * (not choices)
    odd = {
        k: str(np.asarray(getattr(flat, k)).dtype)
        for k in names
        if getattr(flat, k) is not None
        and np.asarray(getattr(flat, k)).dtype not in (np.float32, np.float64)
    }
    if not odd:
        return []
    return [Finding("dtypes", "warning", f"neither float32 nor float64: {_list(odd)}", odd)]


def not_finite(rows: Rows) -> list[Finding]:
    """Columns with a NaN or an infinite number."""
    found = []
    for name in ("obs", "action", "reward"):
        bad = ~np.isfinite(getattr(rows, name).reshape(len(rows.step), -1)).all(1)
        if bad.any():
            first = int(np.argmax(bad))
            words = f"{name}: NaN or Inf in {int(bad.sum())} rows, first in row {first}"
            numbers = {"field": name, "rows": int(bad.sum()), "first": first}
            found.append(Finding("not_finite", "severe", words, numbers))
    return found


def actions(rows: Rows) -> list[Finding]:
    """The number of discrete actions; the shares of continuous ones outside [-1, 1] and at the bounds."""
    top = _last_choice(rows)
    if top is not None:
        return [Finding("choices", "info", f"actions are choices 0 to {top}", {"max": top})]
    action = np.abs(rows.action[rows.step].astype(np.float64))
    found, largest = [], float(np.nanmax(action, initial=0.0))
    if largest > 1 + ACTION_TOLERANCE:
        share = float((action > 1 + ACTION_TOLERANCE).any(1).mean())
        words = f"actions reach {largest:.4g} in {share:.2%} of the rows, outside [-1, 1]"
        found.append(Finding("action_range", "severe", words, {"largest": largest, "share": share}))
    at_bound = (action >= 1 - 1e-6).mean(0)
    numbers = {"mean": float(at_bound.mean()), "worst": float(at_bound.max())}
    words = (
        f"{numbers['mean']:.1%} of the action components lie at the bound, "
        f"{numbers['worst']:.1%} in dimension {int(at_bound.argmax())}"
    )
    severity: Severity = "warning" if numbers["worst"] > 0.9 else "info"
    return [*found, Finding("action_clipping", severity, words, numbers)]


def _last_choice(rows: Rows) -> int | None:
    """The largest discrete action (whole numbers or one-hot rows), None for continuous ones."""
    action = torch.from_numpy(np.require(rows.action, np.float32, ["C", "W"]))
    if is_one_hot(action, torch.from_numpy(rows.step)):
        return rows.action.shape[1] - 1
    return int(rows.action.max()) if rows.action.dtype.kind in "iu" else None


def constant(rows: Rows) -> list[Finding]:
    """Dimensions of observations and actions that have one value in all rows."""
    found = []
    for name, severity in (("obs", "info"), ("action", "warning")):
        x = getattr(rows, name)[rows.step]
        same = np.flatnonzero((x == x[:1]).all(0)).tolist()
        if same:
            worst: Severity = "severe" if len(same) == x.shape[1] else severity  # type: ignore[assignment]
            words = (
                f"{name}: {len(same)} of {x.shape[1]} dimensions never change: {listed(same, 8)}"
            )
            found.append(
                Finding("constant_dimension", worst, words, {"field": name, "dimensions": same})
            )
    return found


def duplicates(rows: Rows, facts: Facts) -> list[Finding]:
    """Episodes that repeat an earlier one, byte for byte."""
    seen: dict[bytes, int] = {}
    copies = []
    for episode, (start, stop) in enumerate(zip(rows.first, rows.last + 1)):
        digest = hashlib.blake2b(digest_size=16)
        for x in (rows.obs, rows.action, rows.reward):
            digest.update(np.ascontiguousarray(x[start:stop]).tobytes())
        if seen.setdefault(digest.digest(), episode) != episode:
            copies.append(episode)
    if not copies:
        return []
    count, total = len(copies), len(rows.first)
    words = f"{count} of {total} episodes repeat an earlier one"
    severity: Severity = "warning"
    if facts.repeats:
        severity, words = "info", f"{words}, as drawn with replacement"
    return [Finding("duplicate_episodes", severity, words, {"episodes": copies[:1000]})]


def recorded_next(flat: Flat, rows: Rows) -> list[Finding]:
    """Recorded next observations that are not those of the next row, or are of the next episode."""
    if flat.next_observations is None:
        return []
    same = (two_dimensional(flat.next_observations)[:-1] == rows.obs[1:]).all(1)
    found, broken = [], np.flatnonzero(~same & ~rows.gap)
    if len(broken):
        words = (
            f"in {len(broken)} rows inside episodes the recorded next observation is not that of "
            f"the next row (first: row {int(broken[0])})"
        )
        numbers = {"count": len(broken), "rows": broken[:1000].tolist()}
        found.append(Finding("next_observation", "severe", words, numbers))
    timed_out = np.flatnonzero(same & rows.gap & ~rows.terminal[:-1])
    if len(timed_out):
        words = (
            f"at {len(timed_out)} time-outs the recorded next observation is the first of the next "
            "episode"
        )
        numbers = {"count": len(timed_out)}
        found.append(Finding("boundary_next_observation", "severe", words, numbers))
    return found
