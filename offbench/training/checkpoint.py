"""Checkpoints: the training state of a stack, and what its owner says of it, in one safetensors file.

    NAME.safetensors    tensors by their number; "about", JSON as bytes; the checksum of the file in its header

One file is written atomically, so neither half of it can be newer than the other. Nothing in it is ever unpickled:
objects of PyTorch classes (`offbench.training.imperative`) are stored by their attributes
(`offbench.training.object_state`).
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from offbench.errors import UserError
from offbench.io import replacing
from offbench.training.object_state import NotPlain, State
from offbench.training.step import Carry

_UNKNOWN = "0" * 64
_CHECKSUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_LONGEST_HEADER = 100_000_000


class Damaged(UserError):
    """A file that is no whole checkpoint of this run; `what` says why in a few words."""

    def __init__(self, path: Path, what: str):
        super().__init__(f"checkpoint {path.name} is damaged ({what})")
        self.what = what


def save(carry: Carry, path: Path, about: Mapping[str, Any] | None = None) -> None:
    """Writes a checkpoint atomically: `path` holds the old file or the new one.

    `about` are JSON values to be read back with it. Raises OSError where the file cannot be written, and
    NotPlain where an object has an attribute that is not stored.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    trees = {}
    for i, leaf in enumerate(tree_flatten(carry)[0]):
        if not isinstance(leaf, np.ndarray):
            tensors[f"{i:04d}"] = leaf.detach().cpu().contiguous().clone()
            continue
        for j, member in enumerate(leaf):
            state = member.read()
            trees[f"{i:04d}.{j:04d}"] = state.tree
            names = (f"{i:04d}.{j:04d}.{k:06d}" for k in range(len(state.tensors)))
            tensors |= dict(zip(names, state.tensors))
    text = json.dumps({"about": dict(about or {}), "objects": trees})
    tensors["about"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"sha256": _UNKNOWN})
        except SafetensorError as error:
            _raise_of_system(error)
        _seal(temporary)


def load(path: Path, like: Carry) -> tuple[Carry, dict[str, Any]]:
    """The training state at `path`, in the structure and on the device of `like`, and its `about`.

    `like` is a new training state of the same run; objects of PyTorch classes in it are written to. Raises
    Damaged for any file that is not whole, or of another run.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        digest, said = _digests(path)
        if digest != said:
            raise Damaged(path, "its checksum is another")
        found = load_file(path)
        content = json.loads(found.pop("about").numpy().tobytes())
        about, trees = content["about"], content["objects"]
    except (SafetensorError, OSError) as error:
        raise Damaged(path, _words(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(path, "cut off, or of another version") from None
    leaves, tree = tree_flatten(like)
    loaded: list[Any] = []
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, np.ndarray):
            for j, member in enumerate(leaf):
                _restore(member, f"{i:04d}.{j:04d}", trees, found, path)
            loaded.append(leaf)
            continue
        saved = found.pop(f"{i:04d}", None)
        if saved is None or (saved.shape, saved.dtype) != (leaf.shape, leaf.dtype):
            raise Damaged(path, "it is of another run")
        loaded.append(saved.to(leaf.device))
    carry = tree_unflatten(loaded, tree)
    # the key of a run never changes
    if found or trees or not torch.equal(carry.key, like.key):
        raise Damaged(path, "it is of another run")
    return carry, about


def set_aside(path: Path) -> None:
    """Renames a damaged checkpoint NAME.damaged, in the place of an earlier one."""
    with contextlib.suppress(OSError):
        os.replace(path, path.with_suffix(".damaged"))


def _restore(member: Any, name: str, trees: Any, found: dict[str, Tensor], path: Path) -> None:
    own = sorted(k for k in found if k.startswith(f"{name}."))
    if name not in trees:
        raise Damaged(path, "it is of another run")
    try:
        member.write(State(trees.pop(name), [found.pop(k) for k in own]))
    except NotPlain as error:
        raise Damaged(path, str(error)) from None


# --- the checksum ---------------------------------------------------------------------------


def _header(path: Path) -> tuple[int, int]:
    """Where the checksum of a file lies, as (first byte, end). Raises ValueError for another file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _LONGEST_HEADER:
            raise ValueError("no header")
        match = _CHECKSUM.search(file.read(length))
    if match is None:
        raise ValueError("no checksum")
    return 8 + match.start(1), 8 + match.end(1)


def _digests(path: Path) -> tuple[str, str]:
    """The sha256 of a file with zeros for its own checksum, and that checksum."""
    first, end = _header(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(first))
        said = file.read(end - first).decode()
        digest.update(_UNKNOWN.encode())
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest(), said


def _seal(path: Path) -> None:
    digest, _ = _digests(path)
    with path.open("r+b") as file:
        file.seek(_header(path)[0])
        file.write(digest.encode())


def _raise_of_system(error: Exception) -> NoReturn:
    """The error of the system that safetensors has put into words."""
    if match := re.search(r"os error (\d+)", str(error)):
        number = int(match[1])
        raise OSError(number, os.strerror(number)) from None
    raise OSError(str(error)) from None


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
