"""An interval drawn on an axis of text."""

import numpy as np
import pandas as pd

WIDTH = 14


def axis(aggregate: pd.DataFrame) -> tuple[float, float]:
    """Whole tens around everything that is drawn."""
    ends = aggregate[["low", "iqm", "high"]].to_numpy(dtype=np.float64)
    if np.isnan(ends).all():
        return 0.0, 100.0
    low, high = 10 * np.floor(np.nanmin(ends) / 10), 10 * np.ceil(np.nanmax(ends) / 10)
    return float(low), float(high if high > low else low + 10)


def axis_heading(low: float, high: float) -> str:
    left, right = f"{low:.0f}", f"{high:.0f}"
    return left + right.rjust(WIDTH - len(left))


def draw(low: float, point: float, high: float, start: float, end: float) -> str:
    """An interval on an axis of text: "   ├──●─┤    "."""

    def place(value: float) -> int:
        return round((value - start) / (end - start) * (WIDTH - 1))

    strip = [" "] * WIDTH
    if not np.isnan(low):
        first, last = place(low), place(high)
        strip[first : last + 1] = "─" * (last + 1 - first)
        strip[first], strip[last] = "├", "┤"
    strip[place(point)] = "●"
    return "".join(strip)
