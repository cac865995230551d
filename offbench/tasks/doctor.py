"""The dataset doctor: what is wrong with a set, found in its arrays or known from its id.

`check` looks at the raw arrays of a file (`Flat`, before episodes are split, where some defects
are only visible) or at what is trained on (`ReplayData`) and returns a `Report` of findings, each
with a severity:

    severe     transitions that never happened, numbers that cannot be trained on, or data that are
               not those of the id
    warning    something a reader of the scores should know
    info       a measurement

Unmarked resets and marks where nothing was reset are found by asking of every pair of successive
rows how well the second follows from the first: the change in each dimension, and what is left of
it after a linear fit on state and action, each against its 99th percentile inside episodes.
"""

import functools
import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offbench.data.replay import ACTION_TOLERANCE, ReplayData
from offbench.errors import UserError
from offbench.io import atomic_write
from offbench.tasks.files import cache_dir

Severity = Literal["info", "warning", "severe"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "severe")
# of stored reports; raise it when a check is added or changes
FORMAT = 1


class DataWarning(UserWarning):
    """A set with a severe defect is loaded."""


class Flat(NamedTuple):
    """Arrays of a file as they are, one row per recorded step, episodes one after another."""

    observations: NDArray[Any]  # (N, O)
    actions: NDArray[Any]  # (N, A)
    rewards: NDArray[Any]  # (N,)
    terminals: NDArray[Any]  # (N,) the environment ended
    timeouts: NDArray[Any] | None = None  # (N,) the recording was cut
    next_observations: NDArray[Any] | None = None  # (N, O)
    steps: NDArray[Any] | None = None  # (N,) the row is a transition; None: every row is


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a set besides its arrays; whatever is None is not checked."""

    id: str
    max_episode_steps: int | None = None
    # the limit is taken from the data: terminals there are remarked on and never severe
    limit_guessed: bool = False
    score: Literal["return", "success"] | None = None
    ref_min: float | None = None
    ref_max: float | None = None
    # a terminal does not end the trajectory (OGBench single tasks)
    terminal_inside: bool = False
    # episodes were drawn with replacement
    repeats: bool = False
    # the environment moves the agent across the maze
    teleports: bool = False
    # goal-conditioned: no rewards are recorded
    goals: bool = False
    # ids of the sets it is composed of, whose known defects it has
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Any, **changes: Any) -> "Facts":
        """From anything with a task's attributes."""
        names = ("max_episode_steps", "score", "ref_min", "ref_max", "terminal_inside")
        known = {n: getattr(task, n) for n in names} | {"teleports": "teleport" in task.id}
        known["goals"] = bool(task.task_ids)
        if not task.scaled:
            known |= {"ref_min": None, "ref_max": None}
        return cls(id=task.id, **(known | changes))


@dataclass(frozen=True)
class Finding:
    name: str
    severity: Severity
    words: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    id: str
    rows: int  # transitions looked at
    episodes: int
    findings: tuple[Finding, ...]
    # of the file, or the fingerprint of the arrays
    sha256: str | None = None

    @property
    def severe(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "severe")

    @property
    def worst(self) -> Severity:
        found = {f.severity for f in self.findings}
        return next((s for s in reversed(SEVERITIES) if s in found), "info")

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name; KeyError where there is none."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(f.name == name for f in self.findings)


# --- the arrays, in one form ----------------------------------------------------------------


class _Rows(NamedTuple):
    """Rows in file order. `gap[i]` lies between row i and row i + 1: False inside an episode."""

    obs: NDArray[Any]  # (R, O)
    action: NDArray[Any]  # (R, A)
    reward: NDArray[Any]  # (R,)
    terminal: NDArray[np.bool_]  # (R,)
    timeout: NDArray[np.bool_]  # (R,)
    step: NDArray[np.bool_]  # (R,) the row is a transition (not a last observation)
    gap: NDArray[np.bool_]  # (R - 1,)

    @property
    def first(self) -> NDArray[np.intp]:
        return np.flatnonzero(np.r_[True, self.gap])

    @property
    def last(self) -> NDArray[np.intp]:
        """The last transition of each episode."""
        ends = np.r_[np.flatnonzero(self.gap), len(self.step) - 1]
        return np.where(self.step[ends], ends, ends - 1)

    @property
    def lengths(self) -> NDArray[np.intp]:
        return self.last - self.first + 1


def _of_replay(data: ReplayData) -> _Rows:
    step = data.valid.cpu().numpy()
    terminal = data.terminal.cpu().numpy().astype(bool)
    gap = ~step[:-1]
    nothing = np.zeros(len(step), np.bool_)
    obs, action, reward = (x.cpu().numpy() for x in (data.obs, data.action, data.reward))
    return _Rows(obs, action, reward, terminal, nothing, step, gap)


def _of_flat(flat: Flat, ignore: NDArray[np.bool_] | None = None) -> _Rows:
    terminal = np.asarray(flat.terminals).astype(bool).reshape(-1)
    timeout = _timeouts(flat)
    marks = terminal | (timeout if ignore is None else timeout & ~ignore)
    step = np.ones(len(terminal), np.bool_) if flat.steps is None else np.asarray(flat.steps)
    return _Rows(
        _two_dimensional(flat.observations),
        _two_dimensional(flat.actions),
        np.asarray(flat.rewards).reshape(-1),
        terminal,
        timeout,
        step.astype(bool),
        marks[:-1],
    )


def _two_dimensional(x: NDArray[Any]) -> NDArray[Any]:
    """Images as rows of numbers, numbers of choices as one column."""
    return np.asarray(x).reshape(len(x), -1)


def _timeouts(flat: Flat) -> NDArray[np.bool_]:
    if flat.timeouts is None:
        return np.zeros(len(flat.terminals), np.bool_)
    return np.asarray(flat.timeouts).astype(bool).reshape(-1)


# --- does a row follow from the one before --------------------------------------------------

# one dimension that jumps (a switch, a contact) is no reset
_CAP = 10.0
_FIT_ROWS = 50_000
_CHUNK = 50_000
_MAX_ROWS = 2_000_000
# times the 99th percentile inside episodes
_BEYOND = 3.0


class _Jumps(NamedTuple):
    """From row to row, in units of the 99th percentile inside episodes."""

    change: NDArray[np.float64]  # (R - 1,) how far the observation moves
    surprise: NDArray[np.float64]  # (R - 1,) how far from where a linear fit expects it
    many: NDArray[np.bool_]  # (R - 1,) more than one dimension is far off: no mere crash or switch


def _jumps(rows: _Rows) -> _Jumps:
    """In chunks, so that a large set needs little memory beside itself."""
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


def _inputs(rows: _Rows, at: NDArray[np.intp]) -> NDArray[np.float64]:
    return np.concatenate([rows.obs[at], rows.action[at]], axis=1, dtype=np.float64)


def _change(rows: _Rows, at: NDArray[np.intp]) -> NDArray[np.float64]:
    return rows.obs[at + 1].astype(np.float64) - rows.obs[at]


def _size(change: NDArray[np.float64], unit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square over the dimensions that move, each in its unit and capped."""
    moving = unit > 1e-9
    if not moving.any():
        return np.zeros(len(change))
    size = np.minimum(np.abs(change[:, moving]) / unit[moving], _CAP)
    return np.sqrt((size**2).mean(1))


def continuing(flat: Flat) -> NDArray[np.bool_]:
    """(N,) time-outs after which the next row goes on as if nothing had been reset.

    Such a mark does not end an episode. None are reported where terminals mark no end at all: a
    set that is one long trajectory cut at will (maze2d, D4RL issue 85) keeps its cuts.
    """
    n = len(flat.terminals)
    none = np.zeros(n, np.bool_)
    rows = _of_flat(flat)
    marks = np.flatnonzero(rows.timeout[:-1] & ~rows.terminal[:-1])
    enough = n >= 50 and len(marks) >= 2 and (~rows.gap).sum() >= 30
    if not enough or not rows.terminal[:-1].any() or not _numeric(rows.obs):
        return none
    jumps = _jumps(rows)
    inside = ~rows.gap
    resets = jumps.surprise[rows.terminal[:-1]]
    if np.median(resets) <= np.quantile(jumps.surprise[inside], 0.99):
        # where even a reset looks like a step, nothing can be told of the marks
        return none
    smooth = jumps.surprise[marks] <= np.quantile(jumps.surprise[inside], 0.95)
    if smooth.mean() < 0.1:
        return none
    goes_on = (jumps.surprise[marks] <= np.quantile(jumps.surprise[inside], 0.999)) & (
        jumps.change[marks] <= np.quantile(jumps.change[inside], 0.999)
    )
    none[marks[goes_on]] = True
    return none


def _numeric(x: NDArray[Any]) -> bool:
    return x.ndim == 2 and x.dtype.kind == "f" and bool(np.isfinite(x).all())


# --- the checks -----------------------------------------------------------------------------


def check(data: ReplayData | Flat, facts: Facts, *, sha256: str | None = None) -> Report:
    """Look at a set: the arrays of a file, or what is trained on. Never raises for its content."""
    findings = [f for part in facts.parts or (facts.id,) for f in known_defects(part)]
    if isinstance(data, Flat):
        broken = _shapes(data)
        if broken:
            return Report(facts.id, 0, 0, (*findings, *broken), sha256)
        goes_on = continuing(data) if _all_finite(data) else None
        rows = _of_flat(data, goes_on)
        findings += _dtypes(data) + _timeouts_inside(data, goes_on) + _recorded_next(data, rows)
    else:
        rows = _of_replay(data)
    findings += _finite(rows)
    clean = not any(f.name == "not_finite" for f in findings)
    findings += _actions(rows, facts) + _constant(rows) + _duplicates(rows, facts)
    if clean:
        findings += _inside_jumps(rows, facts)
        findings += _rewards(rows, facts) + _returns(rows, facts)
    findings += _lengths(rows, facts, raw=isinstance(data, Flat))
    order = {s: i for i, s in enumerate(reversed(SEVERITIES))}
    findings.sort(key=lambda f: order[f.severity])
    return Report(facts.id, int(rows.step.sum()), len(rows.first), tuple(findings), sha256)


def _all_finite(flat: Flat) -> bool:
    return all(
        np.asarray(x).dtype.kind in "fiub" and bool(np.isfinite(x).all())
        for x in (flat.observations, flat.actions)
    )


def _shapes(flat: Flat) -> list[Finding]:
    arrays = {k: np.asarray(v) for k, v in flat._asdict().items() if v is not None}
    bad = [k for k, v in arrays.items() if v.dtype.kind not in "fiub"]
    if bad:
        kinds = {k: str(arrays[k].dtype) for k in bad}
        return [Finding("dtypes", "severe", f"no numbers: {_list(kinds)}", kinds)]
    shapes = {k: list(v.shape) for k, v in arrays.items()}
    flat_ones = ("rewards", "terminals", "timeouts", "steps")
    wrong = [k for k in ("observations", "next_observations") if k in arrays and arrays[k].ndim < 2]
    wrong += ["actions"] * (arrays["actions"].ndim != 2 and arrays["actions"].dtype.kind == "f")
    wrong += [k for k in flat_ones if k in arrays and arrays[k].size != len(arrays[k])]
    rows = {k: (v.shape[0] if v.ndim else 0) for k, v in arrays.items()}
    if len(set(rows.values())) > 1 or rows["actions"] < 2 or wrong:
        words = f"arrays do not go together: {_list({k: tuple(v) for k, v in shapes.items()})}"
        return [Finding("shapes", "severe", words, shapes)]
    return []


def _list(words: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in words.items())


def _dtypes(flat: Flat) -> list[Finding]:
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


def _finite(rows: _Rows) -> list[Finding]:
    found = []
    for name in ("obs", "action", "reward"):
        bad = ~np.isfinite(getattr(rows, name).reshape(len(rows.step), -1)).all(1)
        if bad.any():
            first = int(np.argmax(bad))
            words = f"{name}: NaN or Inf in {int(bad.sum())} rows, first in row {first}"
            found.append(
                Finding(
                    "not_finite",
                    "severe",
                    words,
                    {"field": name, "rows": int(bad.sum()), "first": first},
                )
            )
    return found


def _actions(rows: _Rows, facts: Facts) -> list[Finding]:
    if rows.action.dtype.kind in "iu":
        top = int(rows.action.max())
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


def _constant(rows: _Rows) -> list[Finding]:
    found = []
    for name, severity in (("obs", "info"), ("action", "warning")):
        x = getattr(rows, name)[rows.step]
        same = np.flatnonzero((x == x[:1]).all(0)).tolist()
        if same:
            worst: Severity = "severe" if len(same) == x.shape[1] else severity  # type: ignore[assignment]
            words = f"{name}: {len(same)} of {x.shape[1]} dimensions never change: {_few(same)}"
            found.append(
                Finding("constant_dimension", worst, words, {"field": name, "dimensions": same})
            )
    return found


def _few(numbers: Sequence[int], shown: int = 8) -> str:
    more = f" and {len(numbers) - shown} more" if len(numbers) > shown else ""
    return ", ".join(map(str, numbers[:shown])) + more


def _duplicates(rows: _Rows, facts: Facts) -> list[Finding]:
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


def _inside_jumps(rows: _Rows, facts: Facts) -> list[Finding]:
    if not _numeric(rows.obs) or (~rows.gap).sum() < 100:
        return []
    if len(rows.gap) > _MAX_ROWS:
        rows = _Rows(*(x[: _MAX_ROWS + 1] for x in rows[:-1]), rows.gap[:_MAX_ROWS])
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
    return [
        Finding(
            "jump_inside", severity, words, {"count": len(jumps), "rows": jumps[:1000].tolist()}
        )
    ]


def _timeouts_inside(flat: Flat, goes_on: NDArray[np.bool_] | None) -> list[Finding]:
    if goes_on is None or not goes_on.any():
        return []
    marks, rows = int(_timeouts(flat).sum()), np.flatnonzero(goes_on)
    words = (
        f"{len(rows)} of {marks} time-outs lie inside an episode: the next row goes on from there "
        f"(first: row {int(rows[0])}); they do not end an episode"
    )
    numbers = {"count": len(rows), "of": marks, "rows": rows[:1000].tolist()}
    return [Finding("timeout_inside", "severe", words, numbers)]


def _recorded_next(flat: Flat, rows: _Rows) -> list[Finding]:
    """Recorded next observations against the rows that follow."""
    if flat.next_observations is None:
        return []
    same = (_two_dimensional(flat.next_observations)[:-1] == rows.obs[1:]).all(1)
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
        found.append(
            Finding("boundary_next_observation", "severe", words, {"count": len(timed_out)})
        )
    return found


def _lengths(rows: _Rows, facts: Facts, *, raw: bool) -> list[Finding]:
    lengths, limit = rows.lengths, facts.max_episode_steps
    numbers = {"min": int(lengths.min()), "median": float(np.median(lengths))}
    numbers["max"] = int(lengths.max())
    words = f"episodes of {numbers['min']} to {numbers['max']} steps, median {numbers['median']:g}"
    found = [Finding("lengths", "info", words, numbers)]
    ends_terminal = rows.terminal[rows.last]
    if not ends_terminal[-1] and not rows.timeout[rows.last[-1]]:
        at_limit = limit is not None and lengths[-1] >= limit
        if raw or not at_limit:
            words = (
                f"the last episode is not finished ({int(lengths[-1])} steps); kept, with bootstrap"
            )
            found.append(Finding("unfinished", "info", words, {"steps": int(lengths[-1])}))
    if limit is None:
        return found + ([] if facts.terminal_inside else _all_alike(lengths, ends_terminal))
    longer = int((lengths > limit).sum())
    if longer:
        words = f"{longer} of {len(lengths)} episodes are longer than the environment's limit of {limit}"
        found.append(
            Finding(
                "too_long",
                "info" if facts.terminal_inside else "warning",
                words,
                {"count": longer, "limit": limit},
            )
        )
    if not facts.terminal_inside:
        found += _ends_and_limit(lengths, ends_terminal, limit, guessed=facts.limit_guessed)
    return found


def _all_alike(lengths: NDArray[np.intp], ends_terminal: NDArray[np.bool_]) -> list[Finding]:
    """Where no limit is known: terminals that all lie at one number of steps may be time-outs."""
    if len(lengths) < 3 or not ends_terminal.all() or np.ptp(lengths):
        return []
    words = (
        f"all {len(lengths)} episodes end with a terminal at exactly {lengths[0]} steps; if that is the time "
        "limit, a time-out is meant"
    )
    numbers = {"count": len(lengths), "of": len(lengths)}
    return [Finding("terminal_at_limit", "warning", words, numbers)]


def terminals_at_limit(data: ReplayData, facts: Facts) -> list[Finding]:
    """The finding on terminals where time-outs are meant, alone: it costs no look at the observations."""
    found = _lengths(_of_replay(data), facts, raw=False)
    return [f for f in found if f.name == "terminal_at_limit"]


def _ends_and_limit(
    lengths: NDArray[np.intp], ends_terminal: NDArray[np.bool_], limit: int, *, guessed: bool
) -> list[Finding]:
    found = []
    full = (lengths == limit) | (~ends_terminal & (lengths == limit - 1))
    terminal = int((full & ends_terminal).sum())
    if terminal:
        words = (
            f"{terminal} of {int(full.sum())} episodes that reach the limit of {limit} steps end "
            "with a terminal there, where a time-out is meant"
        )
        many = terminal >= 2 and terminal >= full.sum() / 2
        severity: Severity = "severe" if many and not guessed else "warning"
        found.append(
            Finding(
                "terminal_at_limit", severity, words, {"count": terminal, "of": int(full.sum())}
            )
        )
    # a last row without a recorded next observation is no transition
    early = (lengths < limit - 1) & ~ends_terminal
    # the recording may stop anywhere
    early[-1] = False
    if early.any():
        shortest = int(lengths[early].min())
        words = (
            f"{int(early.sum())} of {len(lengths)} episodes end without a terminal before the "
            f"limit of {limit} steps (shortest: {shortest})"
        )
        found.append(
            Finding(
                "timeout_early", "warning", words, {"count": int(early.sum()), "shortest": shortest}
            )
        )
    return found


def _rewards(rows: _Rows, facts: Facts) -> list[Finding]:
    reward = rows.reward[rows.step]
    if facts.goals or not (reward == reward[0]).all():
        return []
    value = float(reward[0])
    if value == 0:
        return [Finding("rewards_constant", "severe", "every reward is zero", {"value": 0.0})]
    words = f"every reward is {value:g}: no episode is better than another of its length"
    return [Finding("rewards_constant", "warning", words, {"value": value})]


LEVELS = {"min": 0.0, "q10": 0.1, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q90": 0.9, "max": 1.0}


def returns_of(data: ReplayData | Flat) -> NDArray[np.float64]:
    """(E,) undiscounted return of each episode, time-outs inside episodes passed over."""
    rows = _of_flat(data, continuing(data)) if isinstance(data, Flat) else _of_replay(data)
    return _sums(rows)


def apparent_limit(data: ReplayData | Flat) -> int | None:
    """The steps of the longest episodes, if so many end there without a terminal that it must be the
    limit of the environment (one in twenty and three at least)."""
    rows = _of_flat(data, continuing(data)) if isinstance(data, Flat) else _of_replay(data)
    longest = int(rows.lengths.max())
    cut = (rows.lengths == longest) & ~rows.terminal[rows.last]
    return longest if cut.sum() >= max(3, len(cut) / 20) else None


def _sums(rows: _Rows) -> NDArray[np.float64]:
    reward = np.where(rows.step, rows.reward.astype(np.float64), 0.0)
    return np.add.reduceat(reward, rows.first)


def _returns(rows: _Rows, facts: Facts) -> list[Finding]:
    if facts.goals:
        return []
    values = _sums(rows)
    mean = float(values.mean())
    psv = float(np.mean(np.maximum(values - mean, 0.0) ** 2))
    numbers = {k: float(np.quantile(values, q)) for k, q in LEVELS.items()}
    numbers |= {"mean": mean, "positive_sided_variance": psv}
    words = (
        f"returns {numbers['min']:.4g} to {numbers['max']:.4g}, mean {mean:.4g}, median "
        f"{numbers['q50']:.4g}, root of the positive-sided variance {psv**0.5:.4g}"
    )
    found = [Finding("returns", "info", words, numbers)]
    if facts.score == "success":
        found += _success(rows, facts)
    if facts.score == "return" and facts.ref_min is not None and facts.ref_max is not None:
        score = 100 * (mean - facts.ref_min) / (facts.ref_max - facts.ref_min)
        words = f"normalised mean return {score:.1f}"
        found.append(Finding("normalised_mean", "info", words, {"score": score}))
    return found


def _success(rows: _Rows, facts: Facts) -> list[Finding]:
    """Share of episodes that reach the goal: a terminal inside, or a positive reward."""
    hit = rows.terminal if facts.terminal_inside else rows.reward > 0
    share = float((np.add.reduceat((hit & rows.step).astype(np.int64), rows.first) > 0).mean())
    severity: Severity = "info" if share > 0 else "warning"
    return [Finding("success", severity, f"{share:.1%} of the episodes succeed", {"share": share})]


# --- defects that others have found ---------------------------------------------------------


class Defect(NamedTuple):
    # regular expression over the whole id
    pattern: str
    severity: Severity
    words: str
    reference: str  # the public thread


_D4RL, _MINARI = "Farama-Foundation/D4RL", "Farama-Foundation/Minari"

KNOWN_DEFECTS: tuple[Defect, ...] = (
    Defect(
        r"d4rl/antmaze-(umaze-diverse|medium-.*|large-.*)-v[01]",
        "severe",
        "time-outs are out of step with the trajectories: the ant jumps across the maze inside episodes; v2 was made to repair it",
        f"{_D4RL}#77, {_D4RL}#146, {_D4RL}#128",
    ),
    Defect(
        r"d4rl/antmaze-umaze-diverse-v[02]",
        "warning",
        "a single reward per trajectory, where the other antmaze sets have one at every step near the goal",
        f"{_D4RL}#199",
    ),
    Defect(
        r"d4rl/.*-(medium|full)-replay-v[012]",
        "warning",
        "time-outs are not always marked, and some are marked after about 40 steps",
        f"{_D4RL}#162",
    ),
    Defect(
        r"d4rl/.*-mixed-v0",
        "warning",
        "named medium-replay in later versions; time-outs are not always marked",
        f"{_D4RL}#162",
    ),
    Defect(
        r"d4rl/hopper-medium-expert-v0",
        "severe",
        "is expert mixed with the replay set, not with medium (1,200,919 rows)",
        f"{_D4RL}#19",
    ),
    Defect(
        r"d4rl/hopper-(medium|expert)-v1",
        "warning",
        "the medium and expert files were swapped when first published; a copy downloaded before 2021-01 is the other one",
        f"{_D4RL}#76",
    ),
    Defect(
        r"d4rl/hopper-(medium|full)-replay-v1",
        "warning",
        "its returns are higher than those of the policies it is said to come from",
        f"{_D4RL}#86, {_D4RL}#76",
    ),
    Defect(
        r"d4rl/halfcheetah-.*-v0",
        "info",
        "no terminal anywhere, which is right for this environment; episodes end by time-out only",
        f"{_D4RL}#22",
    ),
    Defect(
        r"d4rl/halfcheetah-.*-v[12]",
        "warning",
        "may hold a single terminal although the environment never terminates",
        f"{_D4RL}#107",
    ),
    Defect(
        r"d4rl/maze2d-.*",
        "info",
        "one continuous trajectory; a time-out marks a goal that was reached, not a reset",
        f"{_D4RL}#85",
    ),
    Defect(
        r"d4rl/(pen|door|hammer|relocate)-human-v0",
        "warning",
        "time-outs and terminals are misplaced: trajectories of 200 failed and 100 successful steps alternate",
        f"{_D4RL}#137",
    ),
    Defect(
        r"(minari/)?(D4RL/antmaze/.*-v0|antmaze-.*-v0)",
        "severe",
        "some episodes lack their last observation, and a reached goal does not end the episode; v1 was made to repair it",
        f"{_MINARI}#199",
    ),
    Defect(
        r"(minari/)?D4RL/antmaze/.*-v1",
        "warning",
        "the recorded evaluation environment has another maze map than the one the data came from",
        f"{_MINARI}#304",
    ),
    Defect(
        r"(minari/)?D4RL/pointmaze/.*-v[12]",
        "warning",
        "the goal in the first step of an episode is that of the episode before",
        f"{_MINARI}#265",
    ),
    Defect(
        r"(minari/)?mujoco/.*-v0",
        "info",
        "no reference scores in its metadata, and not the D4RL data of the same name",
        f"{_MINARI}#323",
    ),
)


def known_defects(dataset_id: str) -> list[Finding]:
    """What others have reported of the set of that id."""
    return [
        Finding("known_defect", d.severity, f"{d.words} ({d.reference})", {"source": d.reference})
        for d in KNOWN_DEFECTS
        if re.fullmatch(d.pattern, dataset_id)
    ]


# --- what a report is for -------------------------------------------------------------------


def warn_once(report: Report) -> None:
    """Warn (DataWarning), once in a process for each set, if it has a severe defect."""
    if report.severe:
        _warn(report.id, _summary(report))


@functools.cache
def _warn(dataset_id: str, words: str) -> None:
    warnings.warn(f"{dataset_id}: {words}", DataWarning, stacklevel=4)


def refuse(report: Report, look: str = "") -> None:
    """The strict reading: UserError if the set has a severe defect. `look` is the command that shows it."""
    if report.severe:
        raise UserError(
            f"{report.id}: {_summary(report)}; strict=true refuses it "
            f"(see: {look or f'offbench data check {report.id}'})"
        )


def _summary(report: Report) -> str:
    return "; ".join(f.words for f in report.severe)


def report_path(dataset_id: str, folder: Path | None = None) -> Path:
    """Where the report of a set is kept."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "--", dataset_id).strip("-.")[:120]
    short = hashlib.sha256(dataset_id.encode()).hexdigest()[:8]
    return (cache_dir() / "reports" if folder is None else folder) / f"{plain}-{short}.json"


def save(report: Report, folder: Path | None = None) -> Path:
    path = report_path(report.id, folder)
    content = {"format": FORMAT} | asdict(report)
    atomic_write(path, json.dumps(content, indent=1).encode())
    return path


def stored(dataset_id: str, sha256: str) -> Report | None:
    """The report kept of exactly these data, by the checks of this version; None where there is none."""
    path = report_path(dataset_id)
    if not path.is_file():
        return None
    try:
        found = load(path)
        same = json.loads(path.read_text(encoding="utf-8"))["format"] == FORMAT
    except (UserError, ValueError, KeyError, OSError):
        return None
    return found if same and (found.id, found.sha256) == (dataset_id, sha256) else None


def load(path: Path) -> Report:
    """A report as stored. UserError for a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        findings = tuple(Finding(**f) for f in content["findings"])
        return Report(
            content["id"], content["rows"], content["episodes"], findings, content["sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no report of the dataset doctor ({error})") from None
