"""Finds unmarked resets, and marks of an end without a reset.

For every pair of successive rows, the change in each dimension and its residual after a linear fit on
state and action are compared with their 99th percentiles inside episodes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offbench.tasks.doctor.report import Finding, Severity
from offbench.tasks.doctor.rows import Facts, Flat, Rows, is_finite_float, of_flat, timeouts

# one dimension that jumps (a switch, a contact) is no reset
_CAP = 10.0
_FIT_ROWS = 50_000
_CHUNK = 50_000
_MAX_ROWS = 2_000_000
# times the 99th percentile inside episodes
_BEYOND = 3.0


class _Jumps(NamedTuple):
    """Changes between successive rows, in units of their 99th percentile inside episodes."""

    change: NDArray[np.float64]  # (R - 1,) change of the observation
    surprise: NDArray[np.float64]  # (R - 1,) residual of the linear fit
    many: NDArray[np.bool_]  # (R - 1,) several dimensions jump: no mere contact or switch


def _jumps(rows: Rows) -> _Jumps:
    """Compares every pair of successive rows, in blocks to save memory."""
    inside = np.flatnonzero(~rows.gap)
    sample = inside[:: max(1, len(inside) // _FIT_ROWS)]
    x, y = _inputs(rows, sample), _change(rows, sample)
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    x = (x - mean) / scale
    gram = x.T @ x + 1e-6 * max(1, len(sample)) * np.eye(x.shape[1])
    offset = y.mean(0)
    fit = np.linalg.solve(gram, x.T @ (y - offset))
    units = [np.quantile(np.abs(v), 0.99, axis=0) for v in (y, y - offset - x @ fit)]
    sizes, many = np.zeros((2, len(rows.gap))), np.zeros(len(rows.gap), np.bool_)
    wanted = min(2, int((units[0] > 1e-9).sum()))
    for start in range(0, len(rows.gap), _CHUNK):
        at = np.arange(start, min(start + _CHUNK, len(rows.gap)))
        change = _change(rows, at)
        left = change - offset - ((_inputs(rows, at) - mean) / scale) @ fit
        sizes[:, at] = [_size(v, unit) for v, unit in zip((change, left), units)]
        many[at] = (np.abs(change) > _BEYOND * np.maximum(units[0], 1e-9)).sum(1) >= wanted
    change, left = (v / max(float(np.quantile(v[sample], 0.99)), 1e-9) for v in sizes)
    return _Jumps(change, left, many)


def _inputs(rows: Rows, at: NDArray[np.intp]) -> NDArray[np.float64]:
    return np.concatenate([rows.obs[at], rows.action[at]], axis=1, dtype=np.float64)


def _change(rows: Rows, at: NDArray[np.intp]) -> NDArray[np.float64]:
    return rows.obs[at + 1].astype(np.float64) - rows.obs[at]


def _size(change: NDArray[np.float64], unit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square over the dimensions that move, each in its unit and capped."""
    moving = unit > 1e-9
    if not moving.any():
        return np.zeros(len(change))
    size = np.minimum(np.abs(change[:, moving]) / unit[moving], _CAP)
    return np.sqrt((size**2).mean(1))


def continuing(flat: Flat) -> NDArray[np.bool_]:
    """Time-outs after which the trajectory continues, which therefore end no episode.

    None where no terminal marks an end: one long trajectory cut at will (maze2d, D4RL issue 85) keeps
    its cuts.

    Args:
        flat: the arrays of a file, N rows.

    Returns:
        (N,) True at those time-outs.
    """
    n = len(flat.terminals)
    none = np.zeros(n, np.bool_)
    rows = of_flat(flat)
    marks = np.flatnonzero(rows.timeout[:-1] & ~rows.terminal[:-1])
    enough = n >= 50 and len(marks) >= 2 and (~rows.gap).sum() >= 30
    if not enough or not rows.terminal[:-1].any() or not is_finite_float(rows.obs):
        return none
    jumps = _jumps(rows)
    inside = ~rows.gap
    resets = jumps.surprise[rows.terminal[:-1]]
    if np.median(resets) <= np.quantile(jumps.surprise[inside], 0.99):
        # where resets are no larger than steps, marks cannot be tested
        return none
    smooth = jumps.surprise[marks] <= np.quantile(jumps.surprise[inside], 0.95)
    if smooth.mean() < 0.1:
        return none
    goes_on = (jumps.surprise[marks] <= np.quantile(jumps.surprise[inside], 0.999)) & (
        jumps.change[marks] <= np.quantile(jumps.change[inside], 0.999)
    )
    none[marks[goes_on]] = True
    return none


def unmarked(rows: Rows, facts: Facts) -> list[Finding]:
    """Rows inside episodes whose next observation does not follow, as after a reset."""
    if not is_finite_float(rows.obs) or (~rows.gap).sum() < 100:
        return []
    if len(rows.gap) > _MAX_ROWS:
        rows = Rows._make([*(x[: _MAX_ROWS + 1] for x in rows[:-1]), rows.gap[:_MAX_ROWS]])
    change, surprise, many = _jumps(rows)
    bar = _BEYOND
    far = change[rows.gap]
    real = far[far > _BEYOND]
    if len(real) >= 5 and len(real) >= len(far) / 2:
        # as far as this set's resets go
        bar = max(bar, float(np.quantile(real, 0.05)))
    jumped = (change > bar) & (surprise > _BEYOND) & many
    usual = float(np.quantile(surprise[rows.gap], 0.05)) if len(far) >= 5 else 0.0
    # the resets of this set may be small, but no step predicts them
    if usual > _BEYOND:
        jumped |= (surprise >= usual) & (change > 1.2) & many
    jumps = np.flatnonzero(~rows.gap & jumped)
    if not len(jumps):
        return []
    words = (
        f"in {len(jumps)} place{'s' * (len(jumps) > 1)} inside episodes the next observation does not follow "
        f"(first: row {int(jumps[0])}), as after a reset that is not marked"
    )
    often = len(jumps) >= max(3, len(rows.first) // 100)
    severity: Severity = "severe" if often and len(far) >= 5 else "warning"
    if facts.teleports:
        severity, words = "info", f"{words}; this environment teleports"
    numbers = {"count": len(jumps), "rows": jumps[:1000].tolist()}
    return [Finding("jump_inside", severity, words, numbers)]


def marks_inside(flat: Flat, goes_on: NDArray[np.bool_] | None) -> list[Finding]:
    """Time-outs without a reset; `goes_on` (N,) is the result of `continuing`."""
    if goes_on is None or not goes_on.any():
        return []
    marks, rows = int(timeouts(flat).sum()), np.flatnonzero(goes_on)
    words = (
        f"{len(rows)} of {marks} time-outs lie inside an episode: the next row goes on from there "
        f"(first: row {int(rows[0])}); they do not end an episode"
    )
    numbers = {"count": len(rows), "of": marks, "rows": rows[:1000].tolist()}
    return [Finding("timeout_inside", "severe", words, numbers)]
