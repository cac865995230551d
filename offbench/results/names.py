"""Names of entries and tasks where there is little room: no two that differ look the same."""

import re
from collections.abc import Sequence

# of what is left of a name the share that is its end
_TAILS = (0.4, 0.6, 0.8, 0.2, 1.0, 0.0)


def folded(name: str, width: int) -> str:
    """A name in lines of at most `width`, broken behind `+`, `,` and `(` where that is possible, else anywhere.

    >>> folded("mine.Method(lr=0.1)+chunk5", 20)
    'mine.Method(lr=0.1)+\\nchunk5'
    """
    lines = [""]
    for part in re.findall(r"[^+,(]*[+,(]?", name):
        if len(lines[-1]) + len(part) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
        while len(lines[-1]) > width:
            lines[-1:] = lines[-1][:width], lines[-1][width:]
    return "\n".join(line for line in lines if line)


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Names of at most `width`, longer ones without their middle; where all cuts make two alike, with a number.

    >>> shortened(["hopper-medium-v2", "hopper-medium-replay-v2"], 12)
    ['hopper-…m-v2', 'hopper-…y-v2']
    """
    for tail in _TAILS:
        cut = [_without_middle(name, width, tail) for name in names]
        if len(set(cut)) == len(set(names)):
            return cut
    number = {name: f"…{i}" for i, name in enumerate(dict.fromkeys(names), 1)}
    return [
        n if len(n) <= width else n[: max(0, width - len(number[n]))] + number[n] for n in names
    ]


def _without_middle(name: str, width: int, share: float) -> str:
    tail = int(share * (width - 1))
    end = name[-tail:] if tail else ""
    return name if len(name) <= width else f"{name[: width - 1 - tail]}…{end}"
