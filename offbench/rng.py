"""Counter-based random numbers: a key is an int64 tensor, a draw is a pure function of it.

One key per seed makes a run independent of how many seeds share the device, and a draw has no
hidden state, so it can be vmapped, traced, compiled and captured. SplitMix64 (Steele, Lea and
Flood, 2014) in plain tensor arithmetic; 63-bit logical shifts are emulated with a mask.
"""

import math

import torch
from torch import Tensor

_GAMMA, _C1, _C2 = -7046029254386353131, -4658895280553007687, -7723592293110705685
# separates the keys made by `split` from the numbers drawn by `bits`
_CHILD = 0x5851F42D4C957F2D


def _mix(z: Tensor) -> Tensor:
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _C1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _C2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def key(seed: int, device: torch.device | str = "cpu") -> Tensor:
    """The key of an integer seed, shape ()."""
    return _mix(torch.tensor(seed, dtype=torch.int64, device=device) * _GAMMA + 1)


def fold(key: Tensor, number: int | Tensor) -> Tensor:
    """A new key from a key and an integer (an episode, a time step), same shape as `key`."""
    return _mix(((key ^ _C2) + number) * _GAMMA)


def split(key: Tensor, n: int = 2) -> Tensor:
    """`n` independent keys, shape (n, *key.shape). Use a key once: to split it or to draw."""
    i = torch.arange(1, n + 1, device=key.device).view(n, *[1] * key.ndim)
    return _mix(((key ^ _CHILD) + i) * _GAMMA)


def bits(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """64 random bits per element as int64, shape `shape`."""
    # The counter is added to the key before the multiplication: inductor folds
    # `arange * constant` into an index expression, which overflows.
    i = torch.arange(1, math.prod(shape) + 1, device=key.device).view(shape)
    return _mix((key + i) * _GAMMA)


def uniform(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Draws from the open interval (0, 1)."""
    dtype = dtype or torch.get_default_dtype()
    n = 52 if dtype == torch.float64 else 23
    return (((bits(key, shape) >> (64 - n)) & ((1 << n) - 1)).to(dtype) + 0.5) * 2.0**-n


def normal(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Standard normal draws by inversion; |z| <= 5.3 in float32, 8.2 in float64."""
    dtype = dtype or torch.get_default_dtype()
    draw = _normal if key.device.type == "cpu" else normal_formula
    return draw(key, list(shape), dtype)


def normal_formula(key: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """Draws for each of the keys: (*key.shape, *shape)."""
    keys = key.view([*key.shape, *[1] * len(shape)])
    return math.sqrt(2) * torch.erfinv(2 * uniform(keys, tuple(shape), dtype) - 1)


@torch.library.custom_op("offbench::normal", mutates_args=())
def _normal(key: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """One operation to a compiler, whose CPU code for 64-bit products is slower than torch's own and
    which repeats them wherever a draw is used."""
    return normal_formula(key, shape, dtype)


@_normal.register_fake
def _(key, shape, dtype):
    return key.new_empty((*key.shape, *shape), dtype=dtype)


@_normal.register_vmap
def _(info, in_dims, key, shape, dtype):
    return _normal(key.movedim(in_dims[0], 0), shape, dtype), 0


def normal_like(key: Tensor, x: Tensor) -> Tensor:
    """Standard normal draws in the shape and dtype of `x`."""
    return normal(key, tuple(x.shape), x.dtype)


def randint(key: Tensor, shape: tuple[int, ...], high: int | Tensor) -> Tensor:
    """Integers in [0, high), int64; a tensor `high` is () int64."""
    return (uniform(key, shape, torch.float64) * high).long().clamp(max=high - 1)
