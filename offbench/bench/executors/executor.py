"""What every executor does, and the processors and GPUs there are for it."""

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from offbench.bench.job import Event, Job
from offbench.bench.preflight import resolve_device
from offbench.bench.settings import Settings
from offbench.errors import UserError

# processes that evaluate for each that trains on a GPU, at most: their environments can be large
EVALUATORS = 4


class Executor(Protocol):
    """Runs stacks somewhere. It calls `offbench.bench.job.run_job` there, which records the results."""

    # stacks that run at once
    slots: int
    # and trained stacks that are evaluated at once beside them, in processes of their own: `Job.work`
    evaluators: int

    def submit(self, job: Job) -> None:
        """Starts a stack; at most `slots` and `evaluators` are given at once."""

    def events(self, timeout: float) -> list[Event]:
        """What has happened since the last call; waits up to `timeout` seconds for something to."""

    def stop(self) -> None:
        """Asks every stack to save its training state and end with the event `stopped`."""

    def close(self, timeout: float = 0.0) -> None:
        """Waits up to `timeout` seconds for the stacks to end, and ends those that have not."""


def is_here(settings: Settings) -> bool:
    """Whether stacks run on this machine, whatever starts them."""
    if settings.executor == "ray":
        return settings.ray.address is None
    return settings.executor == "local" or settings.slurm.cluster == "local"


def check_cluster(settings: Settings) -> None:
    """UserError where the commands of a cluster are not on this machine, or nothing answers at its address."""
    if settings.executor == "slurm" and not is_here(settings):
        for command in ("sbatch", "srun"):
            if shutil.which(command) is None:
                raise UserError(
                    f"executor=slurm: there is no command {command} here; call offbench on a login node of the "
                    "cluster, or try slurm.cluster=local"
                )
    host, _, port = (settings.ray.address or "").removeprefix("ray://").rpartition(":")
    if settings.executor == "ray" and host and port.isdigit():
        # Ray itself gives up after minutes
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise UserError(
                f"ray.address={settings.ray.address}: nothing answers ({error})"
            ) from None


def n_jobs(settings: Settings, stacks: int) -> int:
    """Number of stacks that run at once: `jobs`, or for auto one per core, or per GPU; all on a cluster."""
    if settings.jobs != "auto":
        return min(int(settings.jobs), max(stacks, 1))
    if not is_here(settings):
        return max(stacks, 1)
    there = cores() if (gpus := len(gpus_of(settings))) == 0 else gpus
    return max(1, min(there, stacks))


def n_evaluators(settings: Settings, jobs: int, stacks: int, *, cores: float, on_gpus: bool) -> int:
    """Number of processes that evaluate what `jobs` others have trained: `eval.processes`.

    For auto the cores that are left beside those that feed GPUs, up to EVALUATORS for each; none on a CPU, where
    `jobs=auto` trains on every core. None where no other stack waits to be trained.
    """
    if settings.eval.processes != "auto":
        wanted = int(settings.eval.processes)
    else:
        wanted = max(1, min(int(cores) - jobs, EVALUATORS * jobs)) if on_gpus else 0
    return min(wanted, stacks - 1) if stacks > jobs else 0


def gpus_of(settings: Settings) -> list[str]:
    """The GPUs that stacks are dealt to: the one that is named, else all there are; none on a CPU."""
    device = resolve_device(settings.device)
    if not device.startswith("cuda"):
        return []
    import torch

    return [device] if ":" in device else [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def cores() -> int:
    """Cores this process may use; all of the machine's on systems without CPU affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def blocking_ctrl_c() -> Iterator[None]:
    """Processes that are started in the block never see Ctrl-C; this one does at its end."""
    # not on Windows
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
