"""Checks of whole episodes: lengths against the time limit, ends, rewards and returns."""

import numpy as np
from numpy.typing import NDArray

from offbench.data.replay import ReplayData
from offbench.tasks.doctor.report import Finding, Severity
from offbench.tasks.doctor.resets import continuing
from offbench.tasks.doctor.rows import Facts, Flat, Rows, of_flat, of_replay


def lengths_and_ends(rows: Rows, facts: Facts, *, raw: bool) -> list[Finding]:
    """Lengths of episodes, terminations and truncations at the time limit; `raw`: rows of a file."""
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
        severity: Severity = "info" if facts.terminal_inside else "warning"
        found.append(Finding("too_long", severity, words, {"count": longer, "limit": limit}))
    if not facts.terminal_inside:
        found += _ends_and_limit(lengths, ends_terminal, limit, guessed=facts.limit_guessed)
    return found


def _all_alike(lengths: NDArray[np.intp], ends_terminal: NDArray[np.bool_]) -> list[Finding]:
    """Without a known time limit: terminals that all lie at one step number may be truncations."""
    if len(lengths) < 3 or not ends_terminal.all() or np.ptp(lengths):
        return []
    words = (
        f"all {len(lengths)} episodes end with a terminal at exactly {lengths[0]} steps; if that is the time "
        "limit, a time-out is meant"
    )
    numbers = {"count": len(lengths), "of": len(lengths)}
    return [Finding("terminal_at_limit", "warning", words, numbers)]


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
        numbers = {"count": terminal, "of": int(full.sum())}
        found.append(Finding("terminal_at_limit", severity, words, numbers))
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
        numbers = {"count": int(early.sum()), "shortest": shortest}
        found.append(Finding("timeout_early", "warning", words, numbers))
    return found


def terminals_at_limit(data: ReplayData, facts: Facts) -> list[Finding]:
    """Terminals at the time limit, which should be truncations; reads no observations.

    Args:
        data: a loaded dataset.
        facts: facts that are not in the arrays.

    Returns:
        The finding, or none.
    """
    found = lengths_and_ends(of_replay(data), facts, raw=False)
    return [f for f in found if f.name == "terminal_at_limit"]


def rewards(rows: Rows, facts: Facts) -> list[Finding]:
    """Whether all rewards are the same."""
    reward = rows.reward[rows.step]
    if facts.goals or not (reward == reward[0]).all():
        return []
    value = float(reward[0])
    if value == 0:
        return [Finding("rewards_constant", "severe", "every reward is zero", {"value": 0.0})]
    words = f"every reward is {value:g}: no episode is better than another of its length"
    return [Finding("rewards_constant", "warning", words, {"value": value})]


_LEVELS = {"min": 0.0, "q10": 0.1, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q90": 0.9, "max": 1.0}


def returns_of(data: ReplayData | Flat) -> NDArray[np.float64]:
    """Undiscounted returns.

    Args:
        data: the arrays of a file, or a loaded dataset.

    Returns:
        (E,) the return of each episode; time-outs inside episodes do not end them.
    """
    return _sums(_rows(data))


def _rows(data: ReplayData | Flat) -> Rows:
    return of_flat(data, continuing(data)) if isinstance(data, Flat) else of_replay(data)


def apparent_limit(data: ReplayData | Flat) -> int | None:
    """The time limit inferred from the lengths of episodes.

    Args:
        data: the arrays of a file, or a loaded dataset.

    Returns:
        The steps of the longest episodes, if one in twenty and three at least have that length and no
        terminal there; None otherwise.
    """
    rows = _rows(data)
    longest = int(rows.lengths.max())
    cut = (rows.lengths == longest) & ~rows.terminal[rows.last]
    return longest if cut.sum() >= max(3, len(cut) / 20) else None


def _sums(rows: Rows) -> NDArray[np.float64]:
    """(E,) sums of the rewards of each episode."""
    reward = np.where(rows.step, rows.reward.astype(np.float64), 0.0)
    return np.add.reduceat(reward, rows.first)


def returns(rows: Rows, facts: Facts) -> list[Finding]:
    """Spread of the returns, and the success rate or the normalised mean of the set's task."""
    if facts.goals:
        return []
    values = _sums(rows)
    mean = float(values.mean())
    psv = float(np.mean(np.maximum(values - mean, 0.0) ** 2))
    numbers = {k: float(np.quantile(values, q)) for k, q in _LEVELS.items()}
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


def _success(rows: Rows, facts: Facts) -> list[Finding]:
    """Share of episodes that reach the goal: a terminal inside, or a positive reward."""
    hit = rows.terminal if facts.terminal_inside else rows.reward > 0
    share = float((np.add.reduceat((hit & rows.step).astype(np.int64), rows.first) > 0).mean())
    severity: Severity = "info" if share > 0 else "warning"
    return [Finding("success", severity, f"{share:.1%} of the episodes succeed", {"share": share})]
