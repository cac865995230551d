"""Checkpoints: the training state of a stack, and what its owner says of it, in one safetensors file.

    NAME.safetensors    tensors by their number; "about", JSON as bytes; the checksum of the file in its header

One file is written atomically, so neither half of it can be newer than the other. Nothing in it is ever unpickled:
objects of PyTorch classes (`offbench.training.imperative`) are stored by their attributes
(`offbench.training.object_state`).
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from offbench.errors import UserError, in_one_line
from offbench.io import UNSEALED, checksums, replacing, seal
from offbench.training.object_state import NotPlain, State
from offbench.training.step import Carry


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
    write_sealed(path, tensors, {})


def load(path: Path, like: Carry) -> tuple[Carry, dict[str, Any]]:
    """The training state at `path`, in the structure and on the device of `like`, and its `about`.

    `like` is a new training state of the same run; objects of PyTorch classes in it are written to. Raises
    Damaged for any file that is not whole, or of another run.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        digest, said = checksums(path)
        if said is None:
            raise ValueError("no checksum")
        if digest != said:
            raise Damaged(path, "cut off or changed: its checksum is another")
        found = load_file(path)
        content = json.loads(found.pop("about").numpy().tobytes())
        about, trees = content["about"], content["objects"]
    except Damaged:
        raise
    except (SafetensorError, OSError) as error:
        raise Damaged(path, getattr(error, "strerror", None) or in_one_line(error)) from None
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
        # else it would be a map of the file, and hold its disk
        loaded.append(saved.to(leaf.device, copy=True))
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


def write_sealed(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file with its checksum (`offbench.io.seal`) atomically. OSError where it cannot."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata={**metadata, "sha256": UNSEALED})
        except SafetensorError as error:
            # the error of the system, which safetensors has put into words
            match = re.search(r"os error (\d+)", str(error))
            number = int(match[1]) if match else None
            raise (
                OSError(number, os.strerror(number)) if number else OSError(str(error))
            ) from None
        seal(temporary)
