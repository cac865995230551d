"""Everything a GPU is needed for to be known, in one command of less than eight minutes.

    python -m offbench.speed.gpu_check OUT_FOLDER            exit code 2 without a CUDA device
    python -m offbench.speed.gpu_check OUT_FOLDER --dry-run  a miniature on the CPU

Every part runs in a process of its own with a time limit of its own, so a part that fails, hangs or
breaks the device's context leaves the others as they were, and what it had found is kept.
`summary.md` is written anew after each part. While the first parts run, other processes compile what
the later ones measure, so that those find inductor's cache warm.
"""

import argparse
import csv
import dataclasses
import importlib
import importlib.util
import json
import os
import pkgutil
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import offbench.methods
from offbench.data.pipeline import make_pipeline
from offbench.speed import benchmark as speed
from offbench.testing.contract import sized, view_for
from offbench.training.engine import BLOCK, GATE_TOLERANCE, Engine, deviation, make_engine
from offbench.training.step import initial_carry, make_step, n_minibatches

# steps; from BLOCK on a captured engine replays its graph
GATE_AT = (1, 20, BLOCK, 100)
GATE_SEEDS = 3
# processes that compile ahead
COMPILERS = 12
TOTAL_S = 460

Save = Callable[[dict[str, Any]], None]


class Sizes(NamedTuple):
    """How much of everything: the real check, or its miniature."""

    device: str
    # held against eager float32
    backends: tuple[str, ...]
    gate_hidden: tuple[int, ...]
    # the backend that is measured
    fast: str
    # network -> stacks, the most telling first
    seeds: dict[tuple[int, ...], tuple[int, ...]]
    others: tuple[speed.Entry, ...]  # in the same table
    precisions: tuple[str, ...]
    precision_seeds: tuple[int, ...]
    train_seeds: int
    train_s: float
    # of the data that is trained on, 1000 steps each
    episodes: int
    seconds: float  # for each row of a table
    batch_size: int

    @property
    def hidden(self) -> tuple[int, ...]:
        """The first network: what is trained."""
        return next(iter(self.seeds))


GPU = Sizes(
    device="cuda",
    backends=("eager", "compile", "cudagraph"),
    gate_hidden=(64, 64),
    fast="cudagraph",
    seeds={(256, 256): (1, 16, 64, 8, 4, 32, 2), (64, 64): (1, 16, 64, 4)},
    others=tuple(speed.product((*speed.YARDSTICKS, "eager"), (1, 16))),
    precisions=("float32", "tf32", "bf16"),
    precision_seeds=(16, 64),
    train_seeds=16,
    train_s=60.0,
    episodes=1000,
    seconds=1.0,
    batch_size=256,
)
DRY = Sizes(
    device="cpu",
    backends=("eager",),
    gate_hidden=(8,),
    fast="eager",
    seeds={(8,): (1, 2)},
    others=tuple(speed.product(("plain", "unstacked"), (1,))),
    precisions=("float32", "bf16"),
    precision_seeds=(2,),
    train_seeds=2,
    train_s=0.3,
    episodes=2,
    seconds=0.02,
    batch_size=8,
)


# --- the parts: each saves what it finds as it finds it


def environment(out: Path, sizes: Sizes, save: Save, until: float) -> None:
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cpus": os.cpu_count(),
        "device": sizes.device,
    }
    if sizes.device == "cuda":
        p = torch.cuda.get_device_properties(0)
        facts |= {"gpu": p.name, "memory_gib": round(p.total_memory / 2**30, 1)}
        facts |= {"multiprocessors": p.multi_processor_count, "capability": f"{p.major}.{p.minor}"}
        save(facts)
        facts |= _nvidia_smi()
    save(facts)


def _nvidia_smi() -> dict[str, str]:
    """Driver and clocks, read only; nothing where the tool is not there."""
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,utilization.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [v.strip() for v in done.stdout.strip().split(",")]
    return dict(zip(fields.split(","), values, strict=False)) if done.returncode == 0 else {}


def tests(out: Path, sizes: Sizes, save: Save, until: float) -> None:
    """The tests marked gpu, in their own process; pyproject's strictness about warnings is left out."""
    folder = Path(__file__).resolve().parents[2] / "tests"
    files = [
        str(p)
        for p in sorted(folder.glob("test_*.py"))
        if "mark.gpu" in p.read_text(encoding="utf-8")
    ]
    if not files or importlib.util.find_spec("pytest") is None:
        save(
            {"passed": None, "last": "no gpu tests beside the package, or pytest is not installed"}
        )
        return
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += ["-W", "default", "-o", "addopts=", "--continue-on-collection-errors", *files]
    with open(out / "tests.txt", "w", encoding="utf-8") as log:
        try:
            seconds = max(5.0, until - time.monotonic())
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, cwd=folder.parent
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = -1
    lines = (out / "tests.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = "stopped at the time limit" if code == -1 else (lines or ["no output"])[-1]
    save({"passed": code == 0, "last": last})


def shipped() -> dict[str, type]:
    """Every method of the package by its file's name."""
    found = {}
    for info in pkgutil.iter_modules(offbench.methods.__path__):
        module = importlib.import_module(f"offbench.methods.{info.name}")
        for value in vars(module).values():
            own = getattr(value, "__module__", None) == module.__name__
            if own and dataclasses.is_dataclass(value) and hasattr(value, "update"):
                found[info.name] = value
    return found


def _parts(
    cls: type, hidden: tuple[int, ...], seeds: int, sizes: Sizes, episodes: int = 100
) -> Any:
    """Step and first carry, on the device; everything that is compiled ahead is made here too."""
    data = speed.random_data(torch.device(sizes.device), min(episodes, sizes.episodes))
    method = sized(cls, hidden)
    needs = getattr(method, "needs", ())
    pipeline = make_pipeline(data, view=view_for(needs), batch_size=sizes.batch_size, needs=needs)
    step = make_step(method, pipeline)
    return step, initial_carry(method, pipeline.spec(speed.SPEC), range(seeds), sizes.device)


def gate(out: Path, sizes: Sizes, save: Save, until: float) -> None:
    """Every method and backend against eager float32 from the first update; and no wait in its loop."""
    rows: list[dict[str, Any]] = []
    for name, cls in shipped().items():
        step, carry = _parts(cls, sizes.gate_hidden, GATE_SEEDS, sizes)
        judge, ends = Engine(step, carry, backend="eager"), {}
        for n in GATE_AT:
            judge.load(carry)
            judge.run(n)
            ends[n] = judge.carry.state
        for backend in sizes.backends:
            row: dict[str, Any] = {"method": name, "backend": backend}
            rows.append(row)
            if time.monotonic() > until:
                row["error"] = "skipped for lack of time"
                continue
            try:
                row |= _held(step, carry, backend, ends)
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            save({"rows": rows})
    columns = [
        "method",
        "backend",
        *(f"after_{n}" for n in GATE_AT),
        "repeats",
        "waits",
        "setup_s",
        "ok",
        "error",
    ]
    with open(out / "gate.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


def _held(step: Any, carry: Any, backend: str, ends: dict[int, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    engine = Engine(step, carry, backend=backend)
    engine.run(1)
    row: dict[str, Any] = {"setup_s": round(time.perf_counter() - start, 1), "ok": True}
    for n, end in ends.items():
        engine.load(carry)
        engine.run(n)
        state = engine.carry.state
        off = deviation(state, end, carry.state)
        row[f"after_{n}"] = off
        # rounding grows with the run
        row["ok"] &= off <= GATE_TOLERANCE * (5 if n > BLOCK else 1)
    engine.load(carry)
    engine.run(n)
    row["repeats"] = all(map(torch.equal, _leaves(engine.carry.state), _leaves(state)))
    row["waits"] = _waits(engine) if carry.key.is_cuda else "not on a GPU"
    row["ok"] &= row["repeats"] and (row["waits"] == "none" or not carry.key.is_cuda)
    return row


def _leaves(tree: Any) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(tree)


def _waits(engine: Engine) -> str:
    """The first operation of a warm loop that waits for the device, or `none`."""
    engine.run(2 * BLOCK)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.run(2 * BLOCK + 5)
        return "none"
    except RuntimeError:
        frames = traceback.extract_tb(sys.exc_info()[2])
        ours = [f for f in frames if "offbench" in f.filename]
        return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].line}"[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def training(out: Path, sizes: Sizes, save: Save, until: float) -> None:
    """A long run in pieces, as a user's would be: what is sustained, not the best round."""
    name = speed.LEADING[0]
    cls = speed.CONTENDERS[name][0]
    step, carry = _parts(cls, sizes.hidden, sizes.train_seeds, sizes, sizes.episodes)
    start = time.perf_counter()
    # a miniature is not worth compiling
    n_steps = 500_000 if carry.key.is_cuda else 0
    engine, chosen = make_engine(step, carry, backend="auto", n_steps=n_steps)
    metrics = engine.run(BLOCK)
    _read(metrics)
    found: dict[str, Any] = {
        "method": name,
        "hidden": sizes.hidden,
        "seeds": sizes.train_seeds,
        "engine": chosen,
        "rows": sizes.episodes * speed.SPEC.max_episode_steps,
        "setup_s": time.perf_counter() - start,
    }
    per_step, piece, steps, pieces = n_minibatches(cls), BLOCK, 0, []
    begin = time.perf_counter()
    end = min(begin + sizes.train_s, begin + until - time.monotonic())
    while (now := time.perf_counter()) < end:
        metrics = _read(engine.run(piece))
        seconds = time.perf_counter() - now
        steps += piece
        pieces.append(piece * per_step / seconds)
        if seconds < sizes.train_s / 60:
            piece *= 2
        rate = steps * per_step / (time.perf_counter() - begin)
        save(
            found
            | {
                "updates": steps * per_step,
                "seconds": time.perf_counter() - begin,
                "updates_per_s": rate,
                "seed_updates_per_s": rate * sizes.train_seeds,
                "slowest_piece": min(pieces[len(pieces) // 2 :]),
                "fastest_piece": max(pieces),
                "extrapolated_s_per_million": 1e6 / rate,
                "metrics_of_seed_0": {k: v[0] for k, v in metrics.items()},
                "finite": all(x == x for v in metrics.values() for x in v),
            }
        )


def _read(metrics: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Metrics as numbers; reading them waits for the device."""
    return {name: value.tolist() for name, value in metrics.items()}


def table(out: Path, sizes: Sizes, save: Save, until: float) -> None:
    """The speed table; the widest network of every method first."""
    whole: speed.Result | None = None
    for hidden, seeds in sizes.seeds.items():
        entries = (*sizes.others, *(speed.Entry(sizes.fast, n) for n in seeds))
        for name in speed.LEADING:
            part = _measure(name, hidden, entries, sizes, until)
            whole = part if whole is None else _merged(whole, part)
            save({"rows": whole.rows, "facts": whole.facts})
            speed.write(whole, out)


def precision(out: Path, sizes: Sizes, save: Save, until: float) -> None:
    """What rounding the matrix products buys, and how far it leads away."""
    name = speed.LEADING[0]
    entries = [
        speed.Entry(sizes.fast, n, p) for n in sizes.precision_seeds for p in sizes.precisions
    ]
    result = _measure(name, sizes.hidden, entries, sizes, until)
    save({"rows": result.rows, "facts": result.facts})
    step, carry = _parts(speed.CONTENDERS[name][0], sizes.hidden, sizes.precision_seeds[0], sizes)
    ends = {}
    for kind in sizes.precisions:
        if time.monotonic() > until:
            break
        engine = Engine(step, carry, backend=sizes.fast, precision=kind)
        engine.run(100)
        ends[kind] = engine.carry.state
        off = {k: deviation(state, ends["float32"], carry.state) for k, state in ends.items()}
        save({"rows": result.rows, "facts": result.facts, "deviation_after_100": off})


def _measure(
    name: str, hidden: tuple[int, ...], entries: Any, sizes: Sizes, until: float
) -> speed.Result:
    return speed.measure(
        [name],
        hidden=[hidden],
        entries=entries,
        batch_size=sizes.batch_size,
        device=sizes.device,
        seconds=sizes.seconds,
        episodes=min(100, sizes.episodes),
        until=until,
    )


def _merged(a: speed.Result, b: speed.Result) -> speed.Result:
    facts = dict(a.facts)
    for key in ("failed", "products_flops_per_s"):
        facts[key] = a.facts[key] | b.facts[key]
    facts["skipped"] = a.facts["skipped"] + b.facts["skipped"]
    return speed.Result(a.rows + b.rows, facts)


class Part(NamedTuple):
    run: Callable[[Path, Sizes, Save, float], None]
    # what it may take; what earlier parts left is added
    seconds: float
    # measures, so nothing else may run
    alone: bool = False


PARTS = {
    "environment": Part(environment, 20),
    "gate": Part(gate, 90),
    "tests": Part(tests, 75),
    "training": Part(training, 85, alone=True),
    "table": Part(table, 150, alone=True),
    "precision": Part(precision, 40, alone=True),
}


# --- compiling ahead


Job = tuple[str, tuple[int, ...], int, str, int]


def _jobs(sizes: Sizes) -> list[Job]:
    """(method, network, seeds, precision, episodes) of every program, the most telling first."""
    first = (speed.LEADING[0], sizes.hidden)
    jobs: list[Job] = [(n, sizes.gate_hidden, GATE_SEEDS, "float32", 100) for n in shipped()]
    jobs += [(*first, sizes.train_seeds, "float32", sizes.episodes)]
    for hidden, seeds in sizes.seeds.items():
        jobs += [(name, hidden, n, "float32", 100) for name in speed.LEADING for n in seeds]
    jobs += [(*first, n, p, 100) for n in sizes.precision_seeds for p in sizes.precisions]
    return list(dict.fromkeys(jobs))


def compile_ahead(sizes: Sizes, worker: int) -> None:
    """This worker's share of the jobs; inductor keeps what it made on disk."""
    for name, hidden, seeds, kind, episodes in _jobs(sizes)[worker::COMPILERS]:
        try:
            step, carry = _parts(shipped()[name], hidden, seeds, sizes, episodes)
            Engine(step, carry, backend="compile", precision=kind).run(1)
        # it will be reported where it is measured
        except Exception as error:
            print(f"{name} {hidden} x{seeds} {kind}: {type(error).__name__}: {error}"[:300])


def _start_compilers(out: Path) -> list[subprocess.Popen]:
    environ = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "offbench.speed.gpu_check", str(out), "--compile"]
    return [
        subprocess.Popen(
            [*command, str(i)], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for i in range(COMPILERS)
    ]


def _stop(compilers: list[subprocess.Popen], deadline: float) -> int:
    """Waits for the compilers until `deadline` and ends the others; how many those were."""
    late = 0
    for process in compilers:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            late += 1
            process.kill()
            process.wait()
    compilers.clear()
    return late


# --- the whole


def check(out: Path, sizes: Sizes, *, apart: bool = True) -> bool:
    """Runs every part and writes what it found; whether nothing failed. `apart`: in processes."""
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    compilers = _start_compilers(out) if apart and sizes.device == "cuda" else []
    found: dict[str, dict[str, Any]] = {}
    _write(out, found)
    try:
        for i, (name, part) in enumerate(PARTS.items()):
            later = sum(p.seconds for p in list(PARTS.values())[i + 1 :])
            limit = max(part.seconds / 2, begin + TOTAL_S - later - time.monotonic())
            if part.alone and compilers:
                late = _stop(compilers, time.monotonic() + limit - part.seconds)
                found["environment"]["compilers_stopped"] = late
                limit = max(part.seconds / 2, begin + TOTAL_S - later - time.monotonic())
            start = time.monotonic()
            found[name] = (_apart if apart else _here)(name, out, sizes, limit)
            found[name]["took_s"] = round(time.monotonic() - start, 1)
            print(f"{name}: {found[name]['took_s']} s {found[name].get('error', '')}", flush=True)
            _write(out, found)
    finally:
        _stop(compilers, 0.0)
    return _ok(found)


def _apart(name: str, out: Path, sizes: Sizes, limit: float) -> dict[str, Any]:
    """The part in a process that is ended at the limit; what it saved until then is kept."""
    with tempfile.TemporaryDirectory() as folder:
        kept, log = Path(folder) / "found.json", Path(folder) / "log"
        command = [sys.executable, "-m", "offbench.speed.gpu_check", str(out), "--part", name]
        command += ["--save", str(kept), "--seconds", str(limit - 5)]
        command += ["--dry-run"] if sizes is DRY else []
        error = None
        with open(log, "w", encoding="utf-8") as file:
            try:
                done = subprocess.run(command, stdout=file, stderr=file, timeout=limit)
                if done.returncode:
                    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    error = f"exit code {done.returncode}: {(lines or ['no output'])[-1]}"[:500]
            except subprocess.TimeoutExpired:
                error = f"stopped at its limit of {limit:.0f} s"
        found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    return found | ({"error": error} if error else {})


def _here(name: str, out: Path, sizes: Sizes, limit: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        PARTS[name].run(out, sizes, found.update, time.monotonic() + limit)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"[:500]
    return found


def _saver(path: Path) -> Save:
    def save(found: dict[str, Any]) -> None:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(found), encoding="utf-8")
        # whole or not at all, whenever the process is ended
        new.replace(path)

    return save


def _ok(found: dict[str, dict[str, Any]]) -> bool:
    rows = found.get("gate", {}).get("rows", [])
    return (
        not any("error" in part for part in found.values())
        and all(row.get("ok") for row in rows)
        and found.get("tests", {}).get("passed") is not False
        and not found.get("table", {}).get("facts", {}).get("failed")
    )


# --- the summary


def _write(out: Path, found: dict[str, dict[str, Any]]) -> None:
    (out / "check.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "summary.md").write_text(_summary(found), encoding="utf-8")


def _summary(found: dict[str, dict[str, Any]]) -> str:
    lines = ["# GPU check", ""]
    for name in PARTS:
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
    return "\n".join(lines + _targets(found)) + "\n"


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
    result = speed.Result(part["rows"], part["facts"])
    return [speed.to_markdown(result), "", *speed.note(result).splitlines()]


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


def _targets(found: dict[str, dict[str, Any]]) -> list[str]:
    """The marks that were set beforehand, and what was measured. Only where a GPU was."""
    if found.get("environment", {}).get("device") != "cuda":
        return []
    rows = found.get("table", {}).get("rows", [])
    wide = "x".join(map(str, GPU.hidden))

    def get(method: str, column: str, backend: str, seeds: int) -> float:
        key = (method, wide, backend, seeds)
        fits = [r for r in rows if (r["method"], r["hidden"], r["backend"], r["seeds"]) == key]
        return fits[0][column] if fits and fits[0][column] is not None else float("nan")

    body = []
    for name in speed.LEADING:
        one = get(name, "ratio", GPU.fast, 1)
        body.append([f"{name}, 1 seed: 10x the plain loop", f"{one:.1f}x", one >= 10])
        many = get(name, "ratio", GPU.fast, 16)
        body.append([f"{name}, 16 seeds: 100x its seed-updates/s", f"{many:.0f}x", many >= 100])
        share = get(name, "of_products", GPU.fast, 64)
        body.append(
            [
                f"{name}, 64 seeds: half the rate of the same products alone",
                f"{share:.0%}",
                share >= 0.5,
            ]
        )
        rivals = [get(name, "updates_per_s", b, 1) for b in ("captured", "unstacked")]
        rival = max((x for x in rivals if x == x), default=float("nan"))
        cost = get(name, "updates_per_s", GPU.fast, 1) / rival
        body.append(
            [f"{name}, 1 seed: 95 % of the faster single-seed loop", f"{cost:.0%}", cost >= 0.95]
        )
    million = found.get("training", {}).get("extrapolated_s_per_million", float("nan"))
    mark = f"{speed.LEADING[0]}, 16 seeds: a million updates in 300 s (extrapolated)"
    body.append([mark, f"{million:.0f} s", million <= 300])
    shown = [
        [what, got, "yes" if met else "not measured" if "nan" in got else "no"]
        for what, got, met in body
    ]
    return [f"## marks, at {wide}", "", *_markdown(["mark", "measured", "met"], shown)]


# --- the command


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m offbench.speed.gpu_check")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="a miniature on the CPU")
    for internal in ("--part", "--save", "--seconds", "--compile"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    if not given.dry_run and not torch.cuda.is_available():
        print("gpu_check: torch finds no CUDA device here; nothing was measured", file=sys.stderr)
        return 2
    sizes = DRY if given.dry_run else GPU
    if given.compile is not None:
        compile_ahead(sizes, int(given.compile))
        return 0
    if given.part is not None:
        until = time.monotonic() + float(given.seconds)
        PARTS[given.part].run(given.out, sizes, _saver(Path(given.save)), until)
        return 0
    ok = check(given.out, sizes, apart=not given.dry_run)
    print(
        f"written: {given.out}; {'everything passed' if ok else 'something failed, see summary.md'}"
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
