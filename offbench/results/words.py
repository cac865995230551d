"""Numbers in words: how many there are of something, and the bounds of an interval."""


def plural(count: int | str, noun: str) -> str:
    """`1 run`, `2,000 runs`, `3-5 seeds`, `3 entries`.

    >>> plural(1, "policy"), plural(2000, "policy"), plural("3-5", "seed")
    ('1 policy', '2,000 policies', '3-5 seeds')
    """
    shown = count if isinstance(count, str) else f"{count:,}"
    several = f"{noun[:-1]}ies" if noun.endswith(("ry", "cy")) else f"{noun}s"
    return f"{shown} {noun if shown == '1' else several}"


def bounds(low: float, high: float, digits: int = 1, *, sign: str = "") -> str:
    """` [60.6, 74.5]` behind a number, with `sign="+"` ` [-1.2, +3.4]`; empty where there are none.

    >>> bounds(60.55, 74.5), bounds(float("nan"), float("nan"))
    (' [60.5, 74.5]', '')
    """
    return "" if low != low else f" [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
