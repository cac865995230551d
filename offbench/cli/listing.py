"""`offbench list`: methods, tasks, suites, samplers, views, weights, synthetic data, sources of published scores."""

import sys
from collections.abc import Callable
from pathlib import Path

from offbench.cli.console import print_list
from offbench.cli.plan import is_here
from offbench.cli.published import list_sources
from offbench.errors import UserError
from offbench.io import read_csv, shipped


def show_list(kind: str | None) -> int:
    """Prints the names of a kind and what each is. Raises UserError without one."""
    kinds: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "methods": _methods,
        "samplers": lambda: _options("sampler"),
        "views": lambda: _options("view"),
        "weights": lambda: _options("weight"),
        "synthetic": lambda: _options("synthetic"),
        "suites": lambda: _options("suite"),
        "tasks": _tasks,
        "published": list_sources,
    }
    if kind is None:
        raise UserError(f"list needs one of: {', '.join(kinds)}")
    print_list(kinds[kind]())
    return 0


def _options(group: str) -> list[tuple[str, str]]:
    from offbench.bench.hydra import options, read_option
    from offbench.bench.trust import check_target

    rows = []
    for name in options(group):
        option = read_option(group, name)
        if target := option.get("method", option).get("_target_"):
            check_target(target, f"{group} {name}")
        about = option.get("summary") or (_heading(group, name) if group != "method" else "")
        rows.append((name, about or (_first_line(target) if target else "")))
    return rows


def _heading(group: str, name: str) -> str:
    """The comment at the head of an option's yaml; several are one class with other settings."""
    from offbench.bench.hydra import conf_dir

    path = conf_dir() / group / f"{name}.yaml"  # a plugin's is elsewhere
    first = path.read_text(encoding="utf-8").split("\n")[0] if path.exists() else ""
    return first.removeprefix("# ") if first.startswith("# ") and "@package" not in first else ""


# needs of a method besides transitions; what a view provides is not listed
_NEEDS = {
    "next_action": "the action after each transition",
    "return_to_go": "whole episodes",
    "sparse_return_to_go": "whole episodes",
    "context": "whole episodes",
}


def _methods() -> list[tuple[str, str]]:
    """Every method with its paper; below it its kind of actions, its view, its needs and its parity."""
    from offbench.bench.hydra import options, read_option
    from offbench.bench.targets import locate

    # checked in `_options`
    views = {read_option("view", name)["_target_"]: name for name in options("view")}
    tables = shipped("results/parity")
    scores, updates = _parity(tables / "parity.csv"), _updates(tables / "same_updates.csv")
    rows = []
    for name, about in _options("method"):
        config = read_option("method", name)
        cls = locate(config["method"]["_target_"])
        view = views.get(config["view"]["_target_"], config["view"]["_target_"])
        method = cls(**{k: v for k, v in config["method"].items() if k != "_target_"})
        needs = [_NEEDS[need] for need in getattr(method, "needs", ()) if need in _NEEDS]
        compared = [table[name] for table in (updates, scores) if name in table]
        parts = [
            f"{getattr(cls, 'actions', 'continuous')} actions",
            f"view={view}",
            *([f"needs {', '.join(needs)}"] if needs else []),
            f"parity: {', '.join(compared)}" if compared else "not compared with other code",
        ]
        rows += [(name, about), ("", "; ".join(parts))]
    return rows


def _parity(path: Path) -> dict[str, str]:
    """Method -> how many of its comparisons agreed, from a table of verdicts."""
    verdicts: dict[str, list[str]] = {}
    for row in read_csv(path):
        verdicts.setdefault(row["name"], []).append(row["verdict"])

    def summary(found: list[str]) -> str:
        agreed = sum(v.startswith("agrees") for v in found)
        wide = sum(v.endswith("wide") for v in found)
        words = f"{agreed} of {len(found)} scores agree with CORL's"
        return words + (f" ({wide} with wide intervals)" if wide else "")

    return {name: summary(found) for name, found in verdicts.items()}


def _updates(path: Path) -> dict[str, str]:
    """Method -> how far its updates went from those of somebody else's code."""
    furthest: dict[str, tuple[float, str]] = {}
    for row in read_csv(path):
        found = float(row["largest_difference"]), row["reference"].rsplit(" ", 1)[0]
        furthest[row["algorithm"]] = max(furthest.get(row["algorithm"], found), found)
    return {name: f"updates within {far:.0e} of {code}'s" for name, (far, code) in furthest.items()}


def _first_line(target: str) -> str:
    """The first line of the docstring of what is named, or of the module it is in."""
    from offbench.bench.targets import locate

    obj = locate(target)
    own = (obj.__doc__ or "").strip()
    if not own or own.startswith(f"{obj.__name__}("):
        own = (sys.modules[obj.__module__].__doc__ or "").strip()
    return own.split("\n")[0]


def _tasks() -> list[tuple[str, str]]:
    from offbench.tasks.embedded import manifests
    from offbench.tasks.locate import load_task

    rows = [
        (
            name,
            f"{m['env']['id']}, {m['rows']:,} transitions, {m['episodes']:,} episodes, score: {m['score']['kind']}"
            + ("" if is_here(load_task(name)) else f"; not here: offbench data make {name}"),
        )
        for name, (_, m) in sorted(manifests().items())
    ]
    if not rows:
        raise UserError(
            "no datasets found here; set OFFBENCH_DATASETS to the folder of their manifests"
        )
    return rows
