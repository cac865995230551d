"""The summary of the GPU check: what every part found, and which marks were met."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from offbench.speed.gpu_parts import GATE_AT, GPU, LEADING
from offbench.speed.table import Result, note, to_markdown
from offbench.training.engine import GATE_TOLERANCE


def write(out: Path, found: dict[str, dict[str, Any]], parts: Iterable[str]) -> None:
    """Writes check.json and summary.md.

    Args:
        out: the folder, which exists.
        found: what each part saved, by its name; parts that have not run are absent.
        parts: the names of all parts, in the order of the summary.
    """
    (out / "check.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "summary.md").write_text(_summary(found, parts), encoding="utf-8")


def _summary(found: dict[str, dict[str, Any]], parts: Iterable[str]) -> str:
    lines = ["# GPU check", ""]
    for name in parts:
        part = found.get(name)
        lines += [f"## {name}", ""]
        if part is None:
            lines += ["Not run yet.", ""]
            continue
        lines += [f"Took {part.get('took_s', 0)} s."]
        if "error" in part:
            lines += [f"**Failed:** {part['error']}"]
        try:
            lines += ["", *_TELL[name](part), ""]
        except (KeyError, TypeError, ValueError, IndexError):
            lines += ["", "What it found is incomplete; see check.json.", ""]
    return "\n".join(lines + targets(found)) + "\n"


def _tell_environment(part: dict[str, Any]) -> list[str]:
    hidden = {"took_s", "error"}
    return [f"- {key}: {value}" for key, value in part.items() if key not in hidden]


def _tell_gate(part: dict[str, Any]) -> list[str]:
    head = [
        "method",
        "backend",
        *(f"after {n}" for n in GATE_AT),
        "repeats bitwise",
        "waits in the loop",
        "ok",
    ]
    body = []
    for r in part["rows"]:
        if "error" in r:
            body.append([r["method"], r["backend"], r["error"], *[""] * (len(head) - 4), "no"])
            continue
        off = [f"{r[f'after_{n}']:.1e}" for n in GATE_AT]
        yes = ["no", "yes"]
        body.append([r["method"], r["backend"], *off, yes[r["repeats"]], r["waits"], yes[r["ok"]]])
    text = (
        "Distance of the end states from the eager float32 run's, relative to the way from the start, "
        f"the worst tensor of the state, after so many steps; allowed: {GATE_TOLERANCE}, at "
        f"{GATE_AT[-1]} steps {5 * GATE_TOLERANCE:g}."
    )
    return [text, "", *_markdown(head, body)]


def _tell_training(part: dict[str, Any]) -> list[str]:
    return [
        f"{part['method']}, {part['seeds']} seeds, hidden {list(part['hidden'])}, "
        f"{part['rows']:,} random transitions, engine {part['engine']}: "
        f"{part['updates']:,} updates in {part['seconds']:.1f} s, {part['updates_per_s']:,.0f} updates/s, "
        f"{part['seed_updates_per_s']:,.0f} seed-updates/s (pieces {part['slowest_piece']:,.0f} to "
        f"{part['fastest_piece']:,.0f} updates/s); set up in {part['setup_s']:.1f} s; metrics "
        f"{'finite' if part['finite'] else 'NOT FINITE'}.",
        f"Extrapolated, not run: a million updates in {part['extrapolated_s_per_million']:.0f} s.",
    ]


def _tell_table(part: dict[str, Any]) -> list[str]:
    result = Result(part["rows"], part["facts"])
    return [to_markdown(result), "", *note(result).splitlines()]


def _tell_precision(part: dict[str, Any]) -> list[str]:
    off = part.get("deviation_after_100", {})
    text = ", ".join(f"{kind} {x:.1e}" for kind, x in off.items())
    return [
        *_tell_table(part),
        "",
        f"Deviation from float32 after 100 steps: {text or 'not measured'}.",
    ]


_TELL: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "environment": _tell_environment,
    "tests": lambda part: [part["last"]],
    "gate": _tell_gate,
    "training": _tell_training,
    "table": _tell_table,
    "precision": _tell_precision,
}


def _markdown(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *body)]


def targets(found: dict[str, dict[str, Any]]) -> list[str]:
    """The marks that were set beforehand, and what was measured. Only where a GPU was."""
    if found.get("environment", {}).get("device") != "cuda":
        return []
    rows = found.get("table", {}).get("rows", [])
    wide = "x".join(map(str, GPU.hidden))

    def get(method: str, column: str, backend: str, seeds: int) -> float:
        key = (method, wide, backend, seeds)
        fits = [r for r in rows if (r["method"], r["hidden"], r["backend"], r["seeds"]) == key]
        return fits[0][column] if fits and fits[0][column] is not None else float("nan")

    body: list[tuple[str, str, bool]] = []
    for name in LEADING:
        one = get(name, "ratio", GPU.fast, 1)
        body.append((f"{name}, 1 seed: 10x the plain loop", f"{one:.1f}x", one >= 10))
        many = get(name, "ratio", GPU.fast, 16)
        body.append((f"{name}, 16 seeds: 100x its seed-updates/s", f"{many:.0f}x", many >= 100))
        share = get(name, "of_products", GPU.fast, 64)
        body.append(
            (
                f"{name}, 64 seeds: half the rate of the same products alone",
                f"{share:.0%}",
                share >= 0.5,
            )
        )
        rivals = [get(name, "updates_per_s", b, 1) for b in ("captured", "unstacked")]
        rival = max((x for x in rivals if x == x), default=float("nan"))
        cost = get(name, "updates_per_s", GPU.fast, 1) / rival
        body.append(
            (f"{name}, 1 seed: 95 % of the faster single-seed loop", f"{cost:.0%}", cost >= 0.95)
        )
    million = found.get("training", {}).get("extrapolated_s_per_million", float("nan"))
    mark = f"{LEADING[0]}, 16 seeds: a million updates in 300 s (extrapolated)"
    body.append((mark, f"{million:.0f} s", million <= 300))
    shown = [
        [what, got, "yes" if met else "not measured" if "nan" in got else "no"]
        for what, got, met in body
    ]
    return [f"## marks, at {wide}", "", *_markdown(["mark", "measured", "met"], shown)]
