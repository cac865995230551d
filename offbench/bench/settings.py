"""Settings of a run outside its method (`conf/run.yaml`), with types and checks."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from offbench.bench.targets import BUILT_IN, option_of, parameters
from offbench.bench.values import coerce
from offbench.errors import UserError, unknown
from offbench.ranges import check_options
from offbench.tasks.task import Loader

Keep = Literal["policy", "state", "none"]

# default of eval.validation for tasks without an environment
HELD_OUT = 0.1

# what a protocol has of `eval` where nothing is played
ESTIMATING = ("by", "fqe_updates", "fqe_hidden", "fqe_gamma")

# of the first look of bench.until=decided: with fewer its error rate was not measured
FEWEST_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """The types of `eval` in conf/run.yaml."""

    episodes: int | None = None
    envs: int = 5
    monitor_at: tuple[float, ...] | None = None
    monitor_episodes: int | tuple[int, ...] = 3
    validation: float | None = None
    by: Literal["play", "fqe"] = "play"
    fqe_updates: int = 10_000
    fqe_hidden: tuple[int, ...] = (64, 64)
    fqe_gamma: float = 0.99
    processes: int | Literal["auto"] = "auto"


LoggerName = Literal["none", "wandb", "tensorboard"]


@dataclass(frozen=True, kw_only=True)
class WandbSettings:
    """The types of `wandb` in conf/run.yaml."""

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline", "disabled"] | None = None


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """The types of `bench` in conf/run.yaml."""

    until: Literal["seeds", "decided"] = "seeds"
    max_seeds: int = 20


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """The types of `ray` in conf/run.yaml."""

    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """The types of `slurm` in conf/run.yaml."""

    cluster: Literal["slurm", "local"] = "slurm"
    partition: str | None = None
    time: int = 240
    cpus: int = 1
    gpus: int | None = None
    memory: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    folder: str | None = None


# settings that say where runs are made, and nothing of what they are: no record has them
WHERE = ("executor", "ray", "slurm", "eval.processes")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The types of conf/run.yaml."""

    task: str | None = None
    methods: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    n_updates: int | None = None
    batch_size: int = 256
    gamma: float = 0.99
    transforms: Mapping[str, Any] = field(default_factory=dict)
    preset: Literal["usual", "paper", "corl", "alone", "none"] = "usual"
    eval: EvalSettings = EvalSettings()
    bench: BenchSettings = BenchSettings()
    device: str = "auto"
    engine: Literal["auto", "vmap", "eager", "compile", "cudagraph"] = "auto"
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    data: Literal["device", "host"] = "device"
    keep: Keep = "state"
    max_stack: int | None = None
    checkpoint_minutes: float = 5.0
    executor: Literal["local", "ray", "slurm"] = "local"
    jobs: int | Literal["auto"] = "auto"
    ray: RaySettings = RaySettings()
    slurm: SlurmSettings = SlurmSettings()
    logger: LoggerName | tuple[LoggerName, ...] = "none"
    wandb: WandbSettings = WandbSettings()
    results: str = "results"
    tuning: Mapping[str, Any] | None = None
    label: str | None = None
    strict: bool = False
    loader: Loader = "offbench"

    @property
    def possible_seeds(self) -> tuple[int, ...]:
        """The seeds that runs may have: those asked for; until=decided, then the next integers up to max_seeds."""
        asked = self.seeds or ()
        if self.bench.until == "seeds":
            return asked
        following = max(asked) + 1
        return (*asked, *range(following, following + self.bench.max_seeds - len(asked)))

    @property
    def loggers(self) -> tuple[str, ...]:
        """The names of the loggers."""
        names = (self.logger,) if isinstance(self.logger, str) else self.logger
        return tuple(name for name in names if name != "none")


_TRANSFORMS = BUILT_IN["transform"]


def typed_transforms(transforms: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Transforms with their options, coerced to the types of `offbench.data.transforms`; null ones dropped.

    Raises UserError for unknown options.
    """
    typed: dict[str, dict[str, Any]] = {}
    for name, given in transforms.items():
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise UserError(f"transforms.{name}={given!r} must be its options, {{}} for none")
        hints = {k: hint for k, (hint, _) in parameters(_TRANSFORMS[name] or "").items()}
        for key in given:
            if key not in hints:
                raise unknown(f"option of transforms.{name}", key, hints)
        typed[name] = {k: coerce(v, hints[k], f"transforms.{name}.{k}") for k, v in given.items()}
    return typed


def check_transforms(transforms: Mapping[str, Any]) -> None:
    """Raises UserError for an option of a transform outside its range; imports torch."""
    for name, options in typed_transforms(transforms).items():
        check_options(option_of("transform", name), options, f"transforms.{name}")


def monitor_plan(monitor_at: Sequence[float], episodes: int | Sequence[int]) -> dict[float, int]:
    """Fraction of training -> its monitor episodes, of a number for all or one for each."""
    each = [episodes] * len(monitor_at) if isinstance(episodes, int) else episodes
    return dict(zip(monitor_at, each, strict=True))


def _check_monitor(s: EvalSettings, need: Callable[[bool, str], None]) -> None:
    points, given = s.monitor_at or (), s.monitor_episodes
    for x in points:
        need(0 < x < 1, f"eval.monitor_at: {x} is not a fraction of training in (0, 1)")
    need(
        list(points) == sorted(set(points)),
        f"eval.monitor_at={list(points)} must ascend, each once",
    )
    each = (given,) if isinstance(given, int) else given
    shown = given if isinstance(given, int) else list(given)
    need(min(each, default=0) >= 1, f"eval.monitor_episodes={shown} must be at least 1")
    need(
        isinstance(given, int) or not points or len(each) == len(points),
        f"eval.monitor_episodes={shown} must be one number, or one for each of eval.monitor_at={list(points)}",
    )


def check_device_name(device: str) -> None:
    """UserError for what is no device, whatever this machine has."""
    if re.fullmatch(r"(mps|xpu|meta|hpu|xla)(:\d+)?", device):
        raise UserError(f"device={device}: runs are made on cpu and cuda only")
    if not re.fullmatch(r"auto|cpu(:0)?|cuda(:\d{1,3})?", device):
        raise UserError(f"device={device!r} is not a device; use auto, cpu or cuda")


def _check_estimator(own: EvalSettings, need: Callable[[bool, str], None]) -> None:
    need(
        1 <= own.fqe_updates <= _MOST_UPDATES,
        f"eval.fqe_updates={own.fqe_updates} must be at least 1",
    )
    need(0 <= own.fqe_gamma <= 1, f"eval.fqe_gamma={own.fqe_gamma:g} must lie in [0, 1]")
    need(
        all(n >= 1 for n in own.fqe_hidden),
        f"eval.fqe_hidden={list(own.fqe_hidden)} must be widths of at least 1",
    )


def _check_label(label: str | None, need: Callable[[bool, str], None]) -> None:
    if label is None:
        return
    need(bool(label.strip(" .")), f"label={label!r} must be a name")
    need(label == label.strip(), f"label={label!r} begins or ends with a space")
    need(len(label) <= 120, f"label={label[:20]}... has {len(label)} characters, and may have 120")


def _check_tuning(tuning: Mapping[str, Any], need: Callable[[bool, str], None]) -> None:
    for key in tuning:
        if key not in ("configurations", "source"):
            raise unknown("key of tuning", key, ("configurations", "source"))
    tried, source = tuning.get("configurations", 1), tuning.get("source")
    need(
        isinstance(tried, int) and not isinstance(tried, bool) and 1 <= tried <= _MOST_UPDATES,
        f"tuning: configurations={tried!r} must be a whole number, at least 1",
    )
    need(source is None or isinstance(source, str), f"tuning: source={source!r} must be text")


# more than any run has
_MOST_UPDATES, _MOST = 10**12, 10**6


# executor -> the package that it needs
_PACKAGES = {"ray": "ray", "slurm": "submitit"}


def _check_executor(s: Settings, need: Callable[[bool, str], None]) -> None:
    name, ray, slurm, apart = s.executor, s.ray, s.slurm, s.eval.processes
    need(s.jobs == "auto" or int(s.jobs) >= 1, f"jobs={s.jobs} must be auto or at least 1")
    need(apart == "auto" or int(apart) >= 0, f"eval.processes={apart} must be auto or at least 0")
    need(
        name != "slurm" or apart in ("auto", 0),
        f"eval.processes={apart}: a job of executor=slurm evaluates what it has trained; use auto or 0",
    )
    need(ray.cpus > 0, f"ray.cpus={ray.cpus:g} must be above 0")
    need(ray.gpus is None or ray.gpus >= 0, f"ray.gpus={ray.gpus} must not be negative")
    need(slurm.time >= 1, f"slurm.time={slurm.time} must be at least 1 minute")
    need(slurm.cpus >= 1, f"slurm.cpus={slurm.cpus} must be at least 1")
    need(slurm.gpus is None or slurm.gpus >= 0, f"slurm.gpus={slurm.gpus} must not be negative")
    need(
        slurm.memory is None or slurm.memory > 0,
        f"slurm.memory={slurm.memory} must be above 0 gigabytes",
    )
    if name == "local":
        return
    package = _PACKAGES[name]
    need(
        find_spec(package) is not None,
        f"executor={name} needs the package {package}: pip install 'offbench[{name}]'",
    )
    need(os.name == "posix", f"executor={name} runs on Linux and macOS only")
    need(
        ":" not in s.device,
        f"device={s.device}: executor={name} deals out the GPUs itself; use device=cuda",
    )


def _check_seeds(s: Settings, need: Callable[[bool, str], None]) -> None:
    seeds = s.seeds or ()
    need(len(seeds) > 0, "seeds must name at least one seed, for example seeds=[0,1,2]")
    need(len(set(seeds)) == len(seeds), f"seeds={list(seeds)} has duplicates")
    need(min(seeds) >= 0, f"seeds={list(seeds)}: a seed is a whole number >= 0")
    if s.bench.until == "decided":
        need(
            s.bench.max_seeds >= len(seeds),
            f"bench.max_seeds={s.bench.max_seeds} is below the {len(seeds)} seeds to begin with"
            f" (seeds={list(seeds)})",
        )
        need(
            len(seeds) >= FEWEST_SEEDS,
            f"seeds={list(seeds)}: bench.until=decided begins with {FEWEST_SEEDS} seeds at least",
        )
    need(max(seeds) < 2**63, f"seeds: {max(seeds)} must be below 2**63")


def _check_loggers(s: Settings, need: Callable[[bool, str], None]) -> None:
    named = [s.logger] if isinstance(s.logger, str) else list(s.logger)
    text = f"logger=[{','.join(named)}]"
    need(len(set(named)) == len(named), f"{text} has duplicates")
    need("none" not in named or len(named) == 1, f"{text}: none is no logger beside others")
    if "tensorboard" in s.loggers:
        from offbench.bench.event_files import check_installed

        check_installed()


def check_settings(s: Settings) -> None:
    """Raises UserError for values outside their ranges."""

    def need(good: bool, message: str) -> None:
        if not good:
            raise UserError(message)

    _check_seeds(s, need)
    need((s.n_updates or 0) >= 1, f"n_updates={s.n_updates} must be at least 1")
    need((s.n_updates or 0) <= _MOST_UPDATES, f"n_updates={s.n_updates} must be at most 10**12")
    need(s.batch_size >= 1, f"batch_size={s.batch_size} must be at least 1")
    need(0 <= s.gamma <= 1, f"gamma={s.gamma} must lie in [0, 1]")
    need(
        (s.eval.episodes or 0) >= 1
        or (s.eval.episodes == 0 and (bool(s.eval.validation) or s.eval.by != "play")),
        f"eval.episodes={s.eval.episodes} must be at least 1, or 0 with eval.validation=0.1",
    )
    need(
        s.eval.validation is None or 0 < s.eval.validation < 1,
        f"eval.validation={s.eval.validation} is not a share of the episodes in (0, 1)",
    )
    _check_estimator(s.eval, need)
    need(s.max_stack is None or s.max_stack >= 1, f"max_stack={s.max_stack} must be at least 1")
    need(
        s.checkpoint_minutes >= 0, f"checkpoint_minutes={s.checkpoint_minutes} must not be negative"
    )
    need(
        s.precision != "bf16" or s.engine != "vmap",
        "precision=bf16 needs a traced engine: engine=eager, compile or cudagraph",
    )
    for name, number in {
        "eval.episodes": s.eval.episodes,
        "eval.envs": s.eval.envs,
        "max_stack": s.max_stack,
        "jobs": None if s.jobs == "auto" else s.jobs,
        "eval.processes": None if s.eval.processes == "auto" else s.eval.processes,
    }.items():
        need(number is None or int(number) <= _MOST, f"{name}={number} must be at most {_MOST:,}")
    check_device_name(s.device)
    for setting, value, of_gpus in (
        ("engine", s.engine, "cudagraph"),
        ("precision", s.precision, "tf32"),
    ):
        need(
            value != of_gpus or not s.device.startswith("cpu"),
            f"{setting}={value} is for GPUs, and device={s.device}",
        )
    _check_label(s.label, need)
    _check_tuning(s.tuning or {}, need)
    _check_loggers(s, need)
    need(s.eval.envs >= 1, f"eval.envs={s.eval.envs} must be at least 1")
    _check_monitor(s.eval, need)
    _check_executor(s, need)
    for name in s.transforms:
        if name not in _TRANSFORMS:
            raise unknown("transform", name, _TRANSFORMS)
