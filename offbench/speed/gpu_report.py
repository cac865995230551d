"""What the GPU check found, as files: summary.md, check.json, speed.csv and profile.csv."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offbench.speed.gpu_parts import GATE_AT, PRODUCT, Found
from offbench.speed.gpu_plan import Job
from offbench.training.gate import ROUNDINGS

Rows = list[dict[str, Any]]


@dataclass(eq=False)
class Record:
    """A job, and what is known of it."""

    job: Job
    # verb -> what was found
    found: dict[str, Found] = field(default_factory=dict)
    error: str | None = None
    # verbs that were asked and not answered
    open: list[str] = field(default_factory=list)
    measured: bool = False
    # the process, while it lives
    worker: Any = None

    @property
    def failure(self) -> str:
        """Empty where nothing failed."""
        refused = [v for v, found in self.found.items() if found.get("ok") is False]
        return self.error or (f"{refused[0]} not passed" if refused else "")

    @property
    def missing(self) -> str:
        """What was not reached, which is no failure."""
        verbs = () if self.error else ("set_up", *self.job.first, *self.job.alone)
        return ", ".join(verb for verb in verbs if verb not in self.found)


def passed(records: Iterable[Record]) -> bool:
    """Whether nothing failed."""
    return not any(r.failure for r in records)


def write(out: Path, records: Sequence[Record], seconds: float) -> None:
    """Writes what is known after so many seconds."""
    whole = [
        {"job": r.job._asdict(), "error": r.error, "missing": r.missing, **r.found} for r in records
    ]
    (out / "check.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    rates, kernels = _rates(records), _kernels(records)
    for name, rows in (("speed.csv", rates), ("profile.csv", kernels)):
        if rows:
            with open(out / name, "w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
    facts = _of(records, "environment", "set_up") | _of(records, "environment", "ceilings")
    text = [f"# GPU check, after {seconds:.0f} s", "", *(f"- {k}: {v}" for k, v in facts.items())]
    text += ["", *_gate(records), *_speed(rates), *_profile(records, kernels), *_run(records)]
    text += [*_rest(out, records), *(_marks(rates) if facts.get("device") == "cuda" else [])]
    (out / "summary.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def _of(records: Iterable[Record], part: str, verb: str) -> Found:
    """What a part other than a learner found; empty where it failed or was not reached."""
    found = next((r.found[verb] for r in records if r.job.part == part and verb in r.found), {})
    return {} if "error" in found else {k: v for k, v in found.items() if k != "took_s"}


def _having(records: Iterable[Record], verb: str) -> Iterator[tuple[Job, Found]]:
    """(job, what it found) of learners."""
    for r in records:
        if r.job.part == "learner" and verb in r.found and "error" not in r.found[verb]:
            yield r.job, r.found[verb]


def _markdown(rows: Rows) -> list[str]:
    def text(x: Any) -> str:
        if isinstance(x, bool):
            return "yes" if x else "**no**"
        if isinstance(x, float):
            return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
        return "" if x is None else str(x).replace("|", "/")[:100]

    body = [list(map(text, row.values())) for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *body] if rows else []
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


# --- the sections


def _gate(records: Sequence[Record]) -> list[str]:
    columns = (*(f"after_{n}" for n in GATE_AT), "repeats", "waits", "ok")
    rows = [
        {"method": job.method, "size": "small" if job.small else "full", "backend": job.backend}
        | {"precision": job.precision, "seeds": job.seeds, **{c: f[c] for c in columns}}
        for job, f in _having(records, "gate")
    ]
    text = (
        "Distance of the end states from the eager float32 run's, relative to the way from the start, the "
        f"worst tensor, after so many steps. Allowed: {', '.join(f'{t:g} after {n}' for n, t in GATE_AT.items())}; "
        f"where more, a tensor counts as that much if it is off by {ROUNDINGS} times what other last bits of the "
        "start change. Rounded products (tf32) are told, not judged. repeats: bit for bit. "
        "waits: the first operation of a warm loop that waits for the device."
    )
    return ["## gate", "", text, "", *_markdown(rows)]


def _rates(records: Sequence[Record]) -> Rows:
    """Rows of the speed table."""
    flops = {job.method: f["flops"] for job, f in _having(records, "cost")}
    set_up = dict(_having(records, "set_up"))
    timed = dict(_having(records, "time"))
    loops = {(job.method, job.backend): f["updates_per_s"] for job, f in timed.items()}
    peak = _of(records, "environment", "ceilings").get("matmul_flops_per_s", {})
    rows = []
    for job, f in timed.items():
        rate = f["updates_per_s"] * job.seeds
        base = {k: loops.get((job.method, k)) for k in ("plain", "captured")}
        work, most = flops.get(job.method), peak.get(job.precision)
        row = {"method": job.method, "hidden": set_up[job]["hidden"], "backend": job.backend}
        row |= {"precision": job.precision, "seeds": job.seeds}
        row |= {"updates_per_s": f["updates_per_s"], "seed_updates_per_s": rate}
        row |= {"us_per_seed_update": 1e6 / rate}
        row |= {f"ratio_to_{k}": rate / x if x else None for k, x in base.items()}
        row |= {"of_matmul": rate * work / most if work and most else None}
        rows.append(row | {"setup_s": set_up[job]["setup_s"], "peak_mb": f["peak_mb"]})
    return rows


def _speed(rows: Rows) -> list[str]:
    text = (
        "An update is a minibatch. Ratios are of seed-updates per second to those of one seed of the same "
        "method in this run: plain is torch.nn modules, backward(), Adam(fused=True) and .item() at each "
        "step; captured is the same without .item(), in a CUDA graph. of_matmul: FLOP/s of the matrix "
        "products over that of one large product of the same precision."
    )
    return ["## speed", "", text, "", *_markdown(rows)]


def _kernels(records: Sequence[Record]) -> Rows:
    return [
        {"program": job.name, "kernel": name, "launches": calls, "us": us}
        | {"share": us / f["device_us"], "product": bool(PRODUCT.search(name))}
        for job, f in _having(records, "profile")
        for name, calls, us in f["kernels"]
    ]


def _profile(records: Sequence[Record], kernels: Rows) -> list[str]:
    lines = [
        "## kernels",
        "",
        "For one minibatch of the stack; all of them are in profile.csv.",
        "",
    ]
    timed = dict(_having(records, "time"))
    for job, f in _having(records, "profile"):
        busy = f["device_us"] * timed[job]["updates_per_s"] / 1e6 if job in timed else float("nan")
        mine = [{k: v for k, v in row.items() if k != "program"} for row in kernels if row["program"] == job.name]  # fmt: skip
        lines += [
            f"{job.name}: {f['launches']:.1f} launches, {f['device_us']:.1f} us, which is {busy:.0%} of the "
            f"time it takes; {f['of_products']:.0%} of it in matrix products.",
            "",
            *_markdown(mine[:12]),
        ]
    return lines


def _run(records: Sequence[Record]) -> list[str]:
    facts = _of(records, "run", "set_up") | _of(records, "run", "train")
    return ["## a run with evaluation", "", *(f"- {k}: {v}" for k, v in facts.items()), ""]


def _rest(out: Path, records: Sequence[Record]) -> list[str]:
    """The tests, failures, and what was not reached."""
    log, told = out / "tests.txt", _of(records, "tests", "run")
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    counts = ", ".join(f"{text.count(f' {w} ')} {w}" for w in ("PASSED", "FAILED", "SKIPPED"))
    failed = [f"- {r.job.name}: {r.failure}" for r in records if r.failure]
    left = [f"- {r.job.name}: {r.missing}" for r in records if r.missing]
    lines = ["## tests marked gpu", "", told.get("last", f"Not ended; until then {counts}."), ""]
    lines += ["## failed", "", *(failed or ["Nothing."]), ""]
    return [*lines, "## skipped: not ready in time", "", *(left or ["Nothing."]), ""]


def _marks(rows: Rows) -> list[str]:
    """The marks that were set beforehand, and what was measured."""
    marks = [(m, 1, "ratio_to_plain", 10.0) for m in ("td3_bc", "iql")]
    marks += [(m, 16, "ratio_to_plain", 100.0) for m in ("td3_bc", "iql")]
    marks += [("acsac", 4, "us_per_seed_update", 2000.0)]
    body = []
    for method, seeds, column, goal in marks:
        least = column.startswith("ratio")
        for r in rows:
            if (r["method"], r["seeds"], r["backend"]) == (method, seeds, "cudagraph"):
                value = r[column]
                met = None if value is None else value >= goal if least else value <= goal
                what = f"{column} {'at least' if least else 'at most'} {goal:g}"
                body.append({"method": method, "seeds": seeds, "precision": r["precision"], "mark": what, "measured": value, "met": met})  # fmt: skip
    return ["## marks", "", *_markdown(body)]
