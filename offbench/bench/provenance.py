"""Provenance of a result: commit, package versions, machine."""

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from offbench import io
from offbench.results.spec import utc_now

PACKAGES = (
    "offbench",
    "torch",
    "numpy",
    "gymnasium",
    "gymnasium-robotics",
    "mujoco",
    "dm-control",
    "minari",
    "ogbench",
)


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    return io.versions(PACKAGES)


@cache
def commit() -> tuple[str, bool]:
    """(commit, dirty) of the checkout offbench runs from; ("unknown", False) outside one.

    Changes under results/ do not make it dirty: running a benchmark is not editing the code.
    """
    here = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(here)]
    try:
        top = _read([*git, "rev-parse", "--show-toplevel"])
        # installed inside another repository
        if Path(top) != here.parent:
            return "unknown", False
        head = _read([*git, "rev-parse", "HEAD"])
        changes = _read(["git", "-C", top, "status", "--porcelain", "--", ".", ":!results"])
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False
    return head, bool(changes)


def _read(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def device_name(device: str) -> str:
    """The GPU's name, or "cpu" with the architecture; a name that was found on another machine stays."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()})" if device.startswith("cpu") else device


def made_here(device: str) -> dict[str, Any]:
    """What a record says of the code, packages, machine and time that made it, as fields of a `Provenance`."""
    head, dirty = commit()
    about = {"commit": head, "dirty": dirty, "versions": versions(), "host": host()}
    return about | {"device": device_name(device), "created": utc_now()}


def host() -> dict[str, int | str]:
    """What rounding depends on, apart from versions: the processor's model and how many there are, the operating
    system, and the threads that torch computes with."""
    about: dict[str, int | str] = {
        "cpus": os.cpu_count() or 1,
        "processor": _processor(),
        "system": platform.system(),
    }
    if torch := sys.modules.get("torch"):
        about["threads"] = torch.get_num_threads()
    return about


@cache
def _processor() -> str:
    """The processor's model, or its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, "") or platform.processor() or platform.machine()
