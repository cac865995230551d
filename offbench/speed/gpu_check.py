"""Everything a GPU is needed for to be known, in one command of less than eight minutes.

    python -m offbench.speed.gpu_check OUT_FOLDER            exit code 2 without a CUDA device
    python -m offbench.speed.gpu_check OUT_FOLDER --dry-run  a miniature on the CPU

Every part runs in a process of its own with a time limit of its own, so a part that fails, hangs or
breaks the device's context leaves the others as they were, and what it had found is kept.
`summary.md` is written anew after each part. While the first parts run, other processes compile what
the later ones measure, so that those find inductor's cache warm.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from offbench.speed.contenders import shipped
from offbench.speed.gpu_parts import DRY, GATE_SEEDS, GPU, LEADING, PARTS, Save, Sizes, build
from offbench.speed.gpu_report import write
from offbench.training.engine import Engine, Precision

# processes that compile ahead
COMPILERS = 12
TOTAL_S = 460

# --- compiling ahead


Job = tuple[str, tuple[int, ...], int, Precision, int]


def _jobs(sizes: Sizes) -> list[Job]:
    """(method, network, seeds, precision, episodes) of every program, the most telling first."""
    first = (LEADING[0], sizes.hidden)
    jobs: list[Job] = [(n, sizes.gate_hidden, GATE_SEEDS, "float32", 100) for n in shipped()]
    jobs += [(*first, sizes.train_seeds, "float32", sizes.episodes)]
    for hidden, seeds in sizes.seeds.items():
        jobs += [(name, hidden, n, "float32", 100) for name in LEADING for n in seeds]
    jobs += [(*first, n, p, 100) for n in sizes.precision_seeds for p in sizes.precisions]
    return list(dict.fromkeys(jobs))


def compile_ahead(sizes: Sizes, worker: int) -> None:
    """This worker's share of the jobs; inductor keeps what it made on disk."""
    for name, hidden, seeds, kind, episodes in _jobs(sizes)[worker::COMPILERS]:
        try:
            step, carry = build(shipped()[name], hidden, seeds, sizes, episodes)
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
    write(out, found, PARTS)
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
            write(out, found, PARTS)
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
