"""Checkpoints: the training state of a stack as one safetensors file, written atomically.

Objects of PyTorch classes (`offbench.training.imperative`) are pickled in it. Loading a pickle runs code: do not
load checkpoints from others.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from offbench.errors import UserError
from offbench.io import replacing
from offbench.training.step import Carry


def save(carry: Carry, path: Path) -> None:
    """Writes a checkpoint atomically: `path` holds the old file or the new one."""
    from safetensors.torch import save_file

    leaves, _ = tree_flatten(carry)
    tensors = {f"{i:04d}": _tensor(x) for i, x in enumerate(leaves)}
    with replacing(path) as temporary:
        save_file(tensors, temporary)


def load(path: Path, like: Carry) -> Carry:
    """The training state saved at `path`, in the structure and on the device of `like`.

    Raises UserError naming the file when it is damaged or of another method or shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    leaves, tree = tree_flatten(like)
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({error}); delete it to start again"
        ) from None
    loaded: list[Any] = [found.get(f"{i:04d}") for i in range(len(leaves))]
    if len(found) != len(leaves) or not all(map(_alike, loaded, leaves)):
        raise UserError(f"checkpoint {path} is of another run; delete it to start again")
    return tree_unflatten([_leaf(x, y) for x, y in zip(loaded, leaves, strict=True)], tree)


def _tensor(leaf: Any) -> torch.Tensor:
    if isinstance(leaf, np.ndarray):
        return torch.frombuffer(bytearray(pickle.dumps(leaf)), dtype=torch.uint8)
    return leaf.detach().cpu().contiguous().clone()


def _leaf(saved: torch.Tensor, like: Any) -> Any:
    if isinstance(like, np.ndarray):
        return pickle.loads(saved.numpy().tobytes())
    return saved.to(like.device)


def _alike(a: torch.Tensor | None, b: Any) -> bool:
    if a is not None and isinstance(b, np.ndarray):
        return a.dtype == torch.uint8
    return a is not None and a.shape == b.shape and a.dtype == b.dtype
