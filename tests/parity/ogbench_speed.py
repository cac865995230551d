"""How fast goal-conditioned methods train here and in OGBench's JAX code, taking turns in one process on one core.

    python tests/parity/ogbench_speed.py FOLDER/TASK.npz --ogbench OGBENCH/impls --out speed.csv

FOLDER/TASK.npz is of `ogbench_peer.py export`. Needs jax, flax, distrax, optax, ml_collections and ogbench beside
offbench. Each side does what it does in training: OGBench's sampler in numpy and its jitted update, and
offbench's engine, which draws goals and batches itself. What compiles and warms up comes before the first turn.

    large   one seed, batches of 1024, networks of 3x512: OGBench's settings
    small   batches of 256, networks of 2x64: 4 seeds stacked and one here; OGBench trains a seed at a time,
            so its seed-updates per second are those of one seed however many it trains

Rows: seed-updates per second over all turns, in the slowest and the fastest turn; `ratio`, to OGBench's in the same
case, its least and largest value over the rounds, and that by processor time, which a busy core disturbs less;
`sampling`, the share of the processor time of an update that making its batch takes.
"""

import argparse
import csv
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CASES = {"large": (1024, [512, 512, 512], (1,)), "small": (256, [64, 64], (4, 1))}
# updates whose batches offbench makes at once
BLOCK = 32
HEADER = [
    "case", "method", "side", "seeds", "batch_size", "hidden", "engine", "seed_updates_per_s", "slowest", "fastest",
    "ratio", "ratio_low", "ratio_high", "ratio_processor", "sampling", "updates", "rounds", "cpu", "versions",
]  # fmt: skip


class Contender(NamedTuple):
    """`advance(n)` makes n updates, `sample(n)` n batches."""

    about: dict[str, Any]
    advance: Callable[[int], object]
    sample: Callable[[int], object]


def peer(method: str, path: Path, impls: Path, batch_size: int, hidden: list[int]) -> Contender:
    from ogbench_peer import Peer

    it = Peer(method, path, impls, hidden, {"batch_size": batch_size})
    it.begin(0)

    def sample(n: int) -> None:
        for _ in range(n):
            it.dataset.sample(batch_size)

    return Contender({"side": "OGBench", "seeds": 1, "engine": "jax.jit"}, it.train, sample)


def replay(path: Path) -> Any:
    """The arrays of the file as offbench holds them."""
    import numpy as np
    import torch

    from offbench.data.replay import ReplayData

    file = np.load(path)
    valid = file["valids"] > 0
    ends = np.flatnonzero(~valid)
    episode = np.searchsorted(ends, np.arange(len(valid)))
    obs, action = (torch.from_numpy(file[k]) for k in ("observations", "actions"))
    never = torch.zeros(len(valid), dtype=torch.bool)
    last, episode = torch.from_numpy(ends[episode]), torch.from_numpy(episode)
    return ReplayData(obs, action, torch.zeros(len(valid)), never, last, episode)


def ours(
    method: str, path: Path, batch_size: int, hidden: list[int], seeds: int, backend: str
) -> Contender:
    from offbench.data.goals import Goal
    from offbench.data.pipeline import make_pipeline
    from offbench.speed.contenders import sized_method
    from offbench.training.blocks import Blocks
    from offbench.training.engine import Engine
    from offbench.training.step import initial_carry, make_step
    from offbench.types import Spec

    learner = sized_method(method, tuple(hidden))
    data = replay(path)
    pipeline = make_pipeline(
        data, view=Goal().for_needs(learner.needs), batch_size=batch_size, needs=learner.needs
    )
    spec = pipeline.spec(Spec(data.obs.shape[1], data.action.shape[1], 0.99, 1000))
    step, carry = make_step(learner, pipeline), initial_carry(learner, spec, range(seeds))
    engine = Engine(step, carry, backend=backend)  # type: ignore[arg-type]
    blocks = Blocks(step, carry.key, backend=backend)

    def sample(n: int) -> None:
        for first in range(0, n, BLOCK):
            blocks.load(carry.key)
            blocks.at(first)

    about = {"side": "offbench", "seeds": seeds, "engine": backend}
    return Contender(about, engine.run, sample)


class Took(NamedTuple):
    """Seconds: of the clock, and of the processor, which do not count what others take of a busy core."""

    clock: float
    processor: float


def timed(work: Callable[[int], object], n: int) -> Took:
    start = Took(time.perf_counter(), time.process_time())
    work(n)
    return Took(time.perf_counter() - start.clock, time.process_time() - start.processor)


def take_turns(contenders: list[Contender], seconds: float, rounds: int) -> list[dict[str, Any]]:
    """A row each. A turn is as many updates as take about `seconds`: whole blocks of batches, or half a one."""
    numbers, rows = [], []
    for contender in contenders:
        # compiles
        contender.advance(1)
        blocks = seconds / (BLOCK / 4 * timed(contender.advance, 4).clock)
        numbers.append(BLOCK * max(1, round(blocks)) if blocks > 0.75 else BLOCK // 2)
    took: list[list[Took]] = [[] for _ in contenders]
    for _ in range(rounds):
        for contender, n, times in zip(contenders, numbers, took, strict=True):
            times.append(timed(contender.advance, n))
    for contender, n, times in zip(contenders, numbers, took, strict=True):
        seeds = contender.about["seeds"]
        contender.sample(BLOCK)
        batch_s = min(timed(contender.sample, BLOCK).processor for _ in range(3)) / BLOCK
        rates = [n * seeds / t.clock for t in times]
        update_s, processor_s = (sum(x) / (rounds * n) for x in zip(*times, strict=True))
        rows.append(
            contender.about
            | {"seed_updates_per_s": seeds / update_s, "slowest": min(rates), "fastest": max(rates)}
            | {"sampling": batch_s / processor_s, "updates": rounds * n, "rounds": rounds}
            | {"_rates": rates, "_processor": seeds / processor_s}
        )
    return rows


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their ratios to OGBench's, the first, over all turns and round by round."""
    them = rows[0]
    for row in rows:
        each = [a / b for a, b in zip(row["_rates"], them["_rates"], strict=True)]
        row["ratio"] = row["seed_updates_per_s"] / them["seed_updates_per_s"]
        row |= {"ratio_low": min(each), "ratio_high": max(each)}
        row["ratio_processor"] = row["_processor"] / them["_processor"]
    return [{k: v for k, v in row.items() if k[0] != "_"} for row in rows]


def processor() -> str:
    """Its name, and how many cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, 1 core"


def main(
    path: Path,
    impls: Path,
    out: Path,
    methods: list[str],
    engines: list[str],
    cases: list[str],
    seconds: float,
    rounds: int,
) -> None:
    import torch
    from ogbench_peer import versions

    torch.set_num_threads(1)
    facts = {"cpu": processor(), "versions": f"torch {torch.__version__} {versions()}"}
    table = []
    for case in cases:
        batch_size, hidden, stacks = CASES[case]
        for method in methods:
            contenders = [peer(method, path, impls, batch_size, hidden)]
            for engine in engines:
                contenders += [
                    ours(method, path, batch_size, hidden, seeds, engine) for seeds in stacks
                ]
            about = {"case": case, "method": method, "batch_size": batch_size} | facts
            about["hidden"] = "x".join(map(str, hidden))
            for row in compared(take_turns(contenders, seconds, rounds)):
                table.append(about | row)
                print(
                    f"{case} {method} {row['side']} {row['engine']} x{row['seeds']}: "
                    f"{row['seed_updates_per_s']:.1f} seed-updates/s, {row['ratio']:.2f} "
                    f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) of OGBench's, "
                    f"{row['ratio_processor']:.2f} by processor time, batches {row['sampling']:.1%}",
                    flush=True,
                )
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        for row in table:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--ogbench", dest="impls", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["gcivl", "hiql"])
    parser.add_argument("--engines", nargs="+", default=["eager"], help="also compile")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=4)
    given = vars(parser.parse_args())
    # before jax and torch count the cores: every thread of both has to share one
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    main(**given)
