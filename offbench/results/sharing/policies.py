"""The checksum of a kept policy: one of the whole safetensors file, in its own header.

The file is hashed with zeros in the place of the checksum, so that whatever changes is found, the header too.
Neither torch nor the tensors are needed.
"""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

from offbench.results.spec import RunSpec

UNSEALED = "0" * 64
"""What stands for the checksum, under the name "sha256" of the metadata, until it is known."""

_CHECKSUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')

# a header has names and shapes: kilobytes
_LARGEST_HEADER = 100_000_000


def sealed(content: bytes) -> bytes:
    """A safetensors file, whose metadata have `"sha256": UNSEALED`, with its checksum there."""
    place = _CHECKSUM.search(content)
    assert place is not None and place[1] == UNSEALED.encode()
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[: place.start(1)] + digest + content[place.end(1) :]


def policy_fault(path: Path, run: RunSpec | None = None) -> str | None:
    """What is wrong with a kept policy: its header, its length, its checksum, the run that it names.

    Files of before there was a checksum have none to compare. Raises OSError where it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _LARGEST_HEADER):
            return "is truncated, or its header was edited"
        header = file.read(length)
        try:
            about, has_checksum, end = _read(header)
            own = RunSpec(**about["run"])
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return "is not a kept policy, or its header was edited"
        if 8 + length + end != size:
            return "is truncated, or something was added to it"
        place = _CHECKSUM.search(header)
        if place is None and has_checksum:
            return "was edited"
        if place is not None:
            digest = hashlib.sha256(start + header[: place.start(1)] + UNSEALED.encode())
            digest.update(header[place.end(1) :])
            while block := file.read(1 << 20):
                digest.update(block)
            if digest.hexdigest().encode() != place[1]:
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
