"""What is wrong with a kept policy, of which others may have made the file: neither torch nor tensors are read."""

import json
from pathlib import Path
from typing import Any

from offbench.io import checksums, safetensors_header
from offbench.results.spec import RunSpec


def policy_fault(path: Path, run: RunSpec | None = None) -> str | None:
    """What is wrong with a kept policy: its header, its length, its checksum, the run that it names.

    Files of before there was a checksum have none to compare. Raises OSError where it cannot be read.
    """
    try:
        header = safetensors_header(path)
    except ValueError:
        return "is truncated, or its header was edited"
    try:
        about, has_checksum, end = _read(header)
        own = RunSpec(**about["run"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return "is not a kept policy, or its header was edited"
    if 8 + len(header) + end != path.stat().st_size:
        return "is truncated, or something was added to it"
    digest, said = checksums(path)
    if said != digest and (said is not None or has_checksum):
        return "was edited"
    return f"is the policy of run {own.run_id}" if run is not None and own != run else None


def _read(header: bytes) -> tuple[dict[str, Any], bool, int]:
    """What offbench wrote about the policy, whether it has a checksum, and the number of bytes of its tensors."""
    tensors = json.loads(header)
    metadata = tensors.pop("__metadata__")
    about = json.loads(metadata["offbench"])
    # or one changed bit in the name of the checksum would do without it
    if not isinstance(about, dict) or not metadata.keys() <= {"offbench", "sha256"}:
        raise ValueError("not ours")
    end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
    return about, "sha256" in metadata, end
