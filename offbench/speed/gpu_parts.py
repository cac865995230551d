"""The parts of the GPU check: what a process sets up, and what it measures when asked to.

A part is a class: it is made of a `Job`, has `facts` of its set-up, and a method for each verb of the
job, which returns what it found as plain data.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from offbench.data.pipeline import make_pipeline
from offbench.speed.contenders import SPEC, Cell, Entry, is_of_engine, random_data, shipped
from offbench.speed.cost import copy_ceiling, cost, matmul_ceiling
from offbench.speed.gpu_plan import Job, Sizes
from offbench.speed.gpu_run import Run
from offbench.testing.fakes import sized, view_for
from offbench.training import gate
from offbench.training.engine import BLOCK, Engine
from offbench.training.step import initial_carry, make_step, n_minibatches

# steps -> what a state may be off after them: rounding grows with the run. From BLOCK on a captured engine
# replays its graph
GATE_AT = {1: gate.TOLERANCE, 20: gate.TOLERANCE, BLOCK: gate.TOLERANCE, 100: 5 * gate.TOLERANCE}

PACKAGE = Path(__file__).parents[1]
Found = dict[str, Any]
SMALL = (64, 64)


# --- the machine


class Environment:
    """The device, its driver, and the rates of one large product and one large copy."""

    def __init__(self, job: Job, out: Path, sizes: Sizes):
        self.device, self.sizes = torch.device(sizes.device), sizes
        self.facts: Found = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": _version("triton"),
            "cpus": os.cpu_count(),
            "device": sizes.device,
            "batch_size": sizes.batch_size,
        }
        if sizes.device == "cuda":
            p = torch.cuda.get_device_properties(0)
            self.facts |= {"gpu": p.name, "memory_gib": round(p.total_memory / 2**30, 1)}
            self.facts |= {"multiprocessors": p.multi_processor_count}
            self.facts |= {"capability": f"{p.major}.{p.minor}"} | _nvidia_smi()

    def ceilings(self) -> Found:
        small = self.sizes.device == "cpu"
        product = {
            p: matmul_ceiling(self.device, p, n=64 if small else 0) for p in self.sizes.precisions
        }
        copy = copy_ceiling(self.device, nbytes=2**16 if small else 0)
        return {"matmul_flops_per_s": product, "copy_bytes_per_s": copy} | _nvidia_smi()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> dict[str, str]:
    """Driver and clocks, read only; nothing where the tool is not there."""
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [v.strip() for v in done.stdout.strip().split(",")]
    return dict(zip(fields.split(","), values, strict=False)) if done.returncode == 0 else {}


# --- a learner


class Learner:
    """A stack of seeds on one backend, or a loop of one seed, compiled and captured once."""

    def __init__(self, job: Job, out: Path, sizes: Sizes):
        start = time.perf_counter()
        self.job, self.sizes, self.cuda = job, sizes, sizes.device == "cuda"
        data = random_data(torch.device(sizes.device), sizes.episodes)
        cell = Cell(job.method, sizes.hidden, data, sizes.batch_size)
        self.per_step = n_minibatches(cell.method)
        if is_of_engine(job.backend):
            self.step, self.carry = _small(cell, job.seeds) if job.small else cell.parts(job.seeds)
            self.engine = Engine(
                self.step, self.carry, backend=job.backend, precision=job.precision
            )
        else:
            self.loop = cell.build(Entry(job.backend))
        self.advance(1)
        self.n, self.best = BLOCK if self.cuda else 1, 0.0
        self.facts: Found = {"hidden": "x".join(map(str, sizes.hidden))}
        self.facts["setup_s"] = round(time.perf_counter() - start, 1)

    def advance(self, n: int) -> None:
        """n steps, and the end of them."""
        if is_of_engine(self.job.backend):
            # reading a metric waits for the device
            next(iter(self.engine.run(n).values())).tolist()
        else:
            self.loop(n)

    def gate(self) -> Found:
        """Against eager float32 from the first update; the same bits again; no wait in the loop.

        `ok` is None where the products are rounded: what is found is the price of that.
        """
        judge = gate.Judge(self.step, self.carry)
        row: Found = {}
        ok = True
        for n, tolerance in GATE_AT.items():
            self.engine.load(self.carry)
            self.engine.run(n)
            state = self.engine.carry.state
            row[f"after_{n}"] = off = judge.deviation(state, n, tolerance)
            ok &= off <= tolerance
        self.engine.load(self.carry)
        self.engine.run(max(GATE_AT))
        again = tree_leaves(self.engine.carry.state)
        row["repeats"] = all(map(torch.equal, again, tree_leaves(state)))
        row["waits"] = self._waits() if self.cuda else "not on a GPU"
        ok &= row["repeats"] and row["waits"] in ("none", "not on a GPU")
        return row | {"ok": ok if self.job.precision == "float32" else None}

    def _waits(self) -> str:
        """The first operation of a warm loop that waits for the device, or `none`."""
        self.engine.run(2 * BLOCK)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.engine.run(2 * BLOCK + 5)
            return "none"
        except RuntimeError as error:
            frames = traceback.extract_tb(error.__traceback__)
            # not what a checkout has beside the package: an environment, tests
            last = [f for f in frames if PACKAGE in Path(f.filename).parents][-1]
            return f"{Path(last.filename).name}:{last.lineno} {last.line}: {error}"[:300]
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def cost(self) -> Found:
        """Floating-point operations of the matrix products of one minibatch of one seed."""
        work = cost(self.step, self.carry)
        return {"flops": work.flops / self.per_step / self.job.seeds}

    def time(self) -> Found:
        """Minibatches per second, the best round so far; the first call finds how many steps fill one."""
        while not self.best and self._seconds(self.n) < self.sizes.round_s / 2:
            self.n *= 2
        self.best = max(self.best, self.n * self.per_step / self._seconds(self.n))
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.cuda else None
        return {"updates_per_s": self.best, "peak_mb": peak}

    def _seconds(self, n: int) -> float:
        start = time.perf_counter()
        self.advance(n)
        return time.perf_counter() - start

    def profile(self) -> Found:
        """Kernels of two replays: how often and how long (us) each runs for one minibatch of the stack."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        n = 2 * BLOCK if self.cuda else 2
        self.advance(n)
        watch = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + self.cuda]
        with profile(activities=watch) as watched:
            self.advance(n)
        calls: Counter[str] = Counter()
        spent: Counter[str] = Counter()
        kind = DeviceType.CUDA if self.cuda else DeviceType.CPU
        for e in watched.events():
            if e.device_type == kind and not e.is_user_annotation:
                calls[e.name] += 1
                # a kernel has no children
                spent[e.name] += e.time_range.elapsed_us() if self.cuda else e.self_cpu_time_total
        if not calls:
            raise RuntimeError("the profiler saw no kernels")
        each = n * self.per_step
        return {
            "kernels": [(k, calls[k] / each, us / each) for k, us in spent.most_common()],
            "launches": calls.total() / each,
            "device_us": spent.total() / each,
            "of_products": sum(us for k, us in spent.items() if PRODUCT.search(k)) / spent.total(),
        }


# names of kernels that multiply matrices: of cuBLAS, CUTLASS and Triton; on a CPU of operations
PRODUCT = re.compile(
    r"gemm|gemv|cutlass|xmma|nvjet|cublas|triton_tem|splitK|aten::(b?mm|addmm)", re.I
)


def _small(cell: Cell, seeds: int) -> Any:
    """Step and first carry of small networks."""
    method = sized(shipped()[cell.name], SMALL)
    needs = getattr(method, "needs", ())
    size = min(64, cell.batch_size)
    pipeline = make_pipeline(cell.data, view=view_for(needs), batch_size=size, needs=needs)
    carry = initial_carry(method, pipeline.spec(SPEC), range(seeds), cell.data.obs.device)
    return make_step(method, pipeline), carry


# --- the tests


# the gate is held for every method by processes of its own
LEFT_OUT = "not compiled_and_captured and not never_waits and not run_repeats"


class Tests:
    """The tests marked gpu; pyproject's strictness about warnings is left out."""

    def __init__(self, job: Job, out: Path, sizes: Sizes):
        self.log = out / "tests.txt"
        self.facts: Found = {}

    def run(self) -> Found:
        folder = Path(__file__).resolve().parents[2] / "tests"
        files = sorted(folder.rglob("test_*.py"))
        files = [p for p in files if "mark.gpu" in p.read_text(encoding="utf-8")]
        if not files or importlib.util.find_spec("pytest") is None:
            return {"last": "no gpu tests beside the package, or pytest is not installed"}
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-k", LEFT_OUT, "-v"]
        command += ["-p", "no:cacheprovider", "-W", "default", "-o", "addopts="]
        command += ["--continue-on-collection-errors", *map(str, files)]
        if importlib.util.find_spec("xdist"):
            command += ["-p", "xdist", "-n", str(min(6, os.cpu_count() or 1))]
        environ = os.environ | {"PYTHONUNBUFFERED": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        with open(self.log, "w", encoding="utf-8") as log:
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=folder.parent, env=environ
            )
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = (lines or ["no output"])[-1]
        # tests/conftest.py cannot be imported: a package is missing, which is no failure of a test
        if done.returncode == 4:
            return {"last": f"not run, tests/conftest.py cannot be imported: {last}"}
        return {"ok": done.returncode == 0, "last": last}


PARTS = {"environment": Environment, "learner": Learner, "run": Run, "tests": Tests}


class Station:
    """Answers the verbs of one job, `set_up` first. Whatever raises is an answer, too."""

    def __init__(self, job: Job, out: Path, sizes: Sizes):
        self.job, self.out, self.sizes = job, out, sizes
        self.part: Any = None

    def answer(self, verb: str) -> Found:
        start = time.perf_counter()
        try:
            if verb == "set_up":
                self.part = PARTS[self.job.part](self.job, self.out, self.sizes)
                found = dict(self.part.facts)
            else:
                found = getattr(self.part, verb)()
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]}
        return found | {"verb": verb, "took_s": round(time.perf_counter() - start, 1)}
