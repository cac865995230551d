"""What somebody who did not make them needs to see of records before taking them over."""

from collections.abc import Iterable, Mapping
from typing import Any

from offbench.results.sharing.files import Found, printable


def review(records: Iterable[Found]) -> list[str]:
    """Lines on each entry: its tasks, seeds and data, commits, and how its hyper-parameters were chosen."""
    by_entry: dict[tuple[str, str, int], list[Found]] = {}
    for found in records:
        if found.run is not None and found.body is not None:
            name = (found.body["provenance"]["entry"], found.run.suite, found.run.suite_version)
            by_entry.setdefault(name, []).append(found)
    return [
        printable(line)
        for (entry, suite, version), own in sorted(by_entry.items())
        for line in (f"{entry} on {suite} v{version}", *_of_entry(own))
    ]


def _of_entry(own: list[Found]) -> list[str]:
    facts = [found.body["provenance"] for found in own if found.body is not None]
    by_task: dict[str, list[Found]] = {}
    for found in own:
        by_task.setdefault(found.run.task if found.run else "", []).append(found)
    lines = [_of_task(task, by_task[task]) for task in sorted(by_task)]
    lines += [f"  commit {text}" for text in sorted({_commit(f) for f in facts})]
    lines += [
        f"  hyper-parameters: {text}" for text in sorted({_tuning(f["tuning"]) for f in facts})
    ]
    for found in own:
        if found.body is not None and found.body["status"] != "ok":
            seed = found.run.seed if found.run else "?"
            lines.append(f"  {found.body['status']}: seed {seed}: {found.body['reason']}")
    return lines


def _of_task(task: str, own: list[Found]) -> str:
    runs = [found.run for found in own if found.run is not None]
    failed = sum(not found.ok for found in own)
    parts = [
        f"seeds {_spelt(run.seed for run in runs)}",
        f"updates {_spelt(run.n_updates for run in runs)}",
        f"episodes {_spelt(run.protocol.get('episodes', 0) for run in runs)}",
        f"data {', '.join(sorted({str(run.dataset_sha256)[:12] for run in runs}))}",
        *([f"{failed} failed"] if failed else []),
    ]
    return f"  {task}: {'; '.join(parts)}"


def _spelt(numbers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(set(numbers))))


def _commit(facts: Mapping[str, Any]) -> str:
    return f"{facts['commit'][:12]}{', with uncommitted changes' if facts['dirty'] else ''}"


def _tuning(tuning: Mapping[str, Any]) -> str:
    tried = tuning.get("tried", 1)
    words = f"{tuning['how']} ({tuning.get('source') or 'no source'}), {tried} tried"
    overridden = tuning.get("overridden") or []
    return f"{words}; other than published: {', '.join(overridden)}" if overridden else words
