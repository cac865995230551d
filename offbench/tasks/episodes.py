"""Which episodes an evaluation plays: their start states, and what may be asked for."""

import hashlib
from collections.abc import Sequence, Sized
from typing import Any

from torch.utils._pytree import tree_leaves

from offbench.errors import UserError, expect, expect_whole


def env_seeds(task_id: str, stream: str, n: int) -> list[int]:
    """Reset seeds of the first n episodes of a stream: the same for every method and seed."""
    expect_whole("n", n, 0)
    return [number_of(f"{task_id}/{stream}/{i}") % 2**31 for i in range(n)]


def number_of(text: str) -> int:
    """56 bits of a text's hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def check_asked(state: Any, seeds: Sequence[int], episodes: int, n_envs: int) -> None:
    """Raises UserError for an evaluation of no episodes, in no environments, or of other seeds than a state has."""
    # numpy's arrays, too
    expect("seeds", seeds, Sized, "a list of whole numbers")
    for seed in seeds:
        expect_whole("seed", seed, 0)
    for name, number in (("episodes", episodes), ("n_envs", n_envs), ("len(seeds)", len(seeds))):
        expect_whole(name, number, 1)
    if getattr(next(iter(tree_leaves(state)), None), "shape", ())[:1] != (len(seeds),):
        raise UserError(f"state is not that of {len(seeds)} trained seeds, as train yields it")
