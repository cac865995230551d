"""Tables in Markdown."""

from collections.abc import Collection, Iterable, Sequence


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)
) -> str:
    """A table as GitHub shows it; columns are aligned to the right, but for those at the places `left`."""
    ruler = ["---" if i in left else "---:" for i in range(len(head))]
    lines = [_escaped(head), ruler, *map(_escaped, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(texts: Sequence[str]) -> list[str]:
    # a tag that a page knows would vanish from a label, or change what follows
    return [text.replace("|", "\\|").replace("<", "&lt;") for text in texts]
