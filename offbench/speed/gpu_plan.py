"""The plan of the GPU check: its sizes, and the job of each of its processes."""

from typing import NamedTuple

from offbench.speed.contenders import Yardstick, shipped
from offbench.training.engine import Backend, Precision


class Sizes(NamedTuple):
    """How much of everything: the real check, or its miniature."""

    device: str
    # the backend that is checked and measured
    fast: Backend
    # method -> seeds of the stack that is held against eager float32, the most telling first
    leading: dict[str, int]
    # methods of the speed table: its loops of one seed, stacks and precisions
    table: tuple[str, ...]
    loops: tuple[Yardstick, ...]
    seeds: tuple[int, ...]
    precisions: tuple[Precision, ...]
    profiled: tuple[str, ...]
    # of the leading methods and the table
    hidden: tuple[int, ...]
    # the methods that are held against eager float32 last, small and with SMALL_SEEDS seeds
    others: tuple[str, ...]
    # of random data, 1000 steps each
    episodes: int
    batch_size: int
    # of one measurement; each program has several
    round_s: float
    # of the run with evaluation
    run_s: float
    run_seeds: int
    # of every time limit
    patience: float


LEADING = {"td3_bc": 16, "iql": 16, "acsac": 4, "dt": 4}
SMALL_SEEDS = 3
GPU = Sizes(
    device="cuda",
    fast="cudagraph",
    leading=LEADING,
    table=("td3_bc", "iql"),
    loops=("plain", "captured"),
    seeds=(1, 16, 64, 4),
    precisions=("float32", "tf32"),
    profiled=("td3_bc", "acsac"),
    hidden=(256, 256),
    others=tuple(sorted(set(shipped()) - set(LEADING))),
    episodes=100,
    batch_size=256,
    round_s=0.25,
    run_s=8.0,
    run_seeds=16,
    patience=1.0,
)
DRY = Sizes(
    device="cpu",
    fast="eager",
    leading={"iql": 2, "bc": 2},
    table=("bc",),
    loops=("plain",),
    seeds=(1, 2),
    precisions=("float32", "tf32"),
    profiled=("bc",),
    hidden=(8,),
    others=("td3_bc",),
    episodes=2,
    batch_size=8,
    round_s=0.02,
    run_s=0.3,
    run_seeds=2,
    # a busy machine has as long as it takes
    patience=20.0,
)


class Job(NamedTuple):
    """What one process is set up for; `first` it does at once, `alone` when nothing else runs."""

    part: str
    method: str = ""
    backend: Backend | Yardstick = "eager"
    seeds: int = 1
    precision: Precision = "float32"
    small: bool = False
    first: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        if not self.method:
            return self.part
        size = " small" if self.small else ""
        return f"{self.method}{size} {self.backend} x{self.seeds} {self.precision}"


def jobs(sizes: Sizes) -> list[Job]:
    """The processes of a check, the most telling first."""

    def stack(name: str, seeds: int, precision: Precision = "float32") -> Job:
        telling = seeds == sizes.leading[name]
        first = ("gate",) if telling else ("cost",) if seeds == 1 and precision == "float32" else ()
        profiled = telling and precision == "float32" and name in sizes.profiled
        alone = ("time", "profile") if profiled else ("time",)
        return Job("learner", name, sizes.fast, seeds, precision, first=first, alone=alone)

    found = [Job("environment", alone=("ceilings",))]
    found += [stack(name, seeds) for name, seeds in sizes.leading.items()]
    found += [Job("learner", m, loop, alone=("time",)) for loop in sizes.loops for m in sizes.table]
    found += [stack(m, n) for n in sizes.seeds for m in sizes.table]
    found += [Job("run", alone=("train",))]
    found += [
        stack(m, n, p) for p in sizes.precisions[1:] for n in sizes.seeds for m in sizes.table
    ]
    found += [stack(m, sizes.leading[m], p) for p in sizes.precisions[1:] for m in sizes.profiled]
    found += [
        Job("learner", m, sizes.fast, SMALL_SEEDS, small=True, first=("gate",))
        for m in sizes.others
    ]
    found.insert(-len(sizes.others) or len(found), Job("tests", first=("run",)))
    return list(dict.fromkeys(found))
