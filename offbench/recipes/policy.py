"""Behaviour policies as plain arrays: what a snapshot is, how it is stored, how it acts.

A snapshot is a multilayer perceptron in one ``.npz`` file of a few tens of kilobytes:
normalisation of the observation, weights, biases and the spread of the Gaussian. It runs on
numpy alone, so a data set can be collected again without the library that trained the policy.
The forward pass is in float64 and the action is rounded to float32 before it leaves: last-bit
differences between linear algebra libraries then hardly ever reach the simulator, and the
stored action is exactly the executed one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offbench.io import replacing

Array = NDArray[np.float64]

# A zip entry must carry a date; a fixed one keeps the file's bytes a function of its arrays.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_LOG_STD_RANGE = (-20.0, 2.0)


@dataclass(frozen=True)
class Policy:
    """Gaussian policy ``a ~ N(mean(s), std(s))``, clipped to [-1, 1] or squashed by tanh.

    ``log_std`` is the state-independent logarithm of the spread; without it the last layer
    gives the mean and the logarithm side by side.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    obs_mean: Array
    obs_scale: Array
    obs_clip: float
    activation: str
    squash: bool
    log_std: Array | None = None

    @property
    def act_dim(self) -> int:
        width = self.biases[-1].shape[0]
        return width if self.log_std is not None else width // 2

    def distribution(self, obs: NDArray[np.floating]) -> tuple[Array, Array]:
        """Mean and standard deviation before clipping or squashing."""
        x = (np.asarray(obs, np.float64) - self.obs_mean) / self.obs_scale
        x = np.clip(x, -self.obs_clip, self.obs_clip)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if i < last:
                x = np.tanh(x) if self.activation == "tanh" else np.maximum(x, 0.0)
        if self.log_std is not None:
            return x, np.broadcast_to(np.exp(self.log_std), x.shape)
        mean, log_std = np.split(x, 2, axis=-1)
        return mean, np.exp(np.clip(log_std, *_LOG_STD_RANGE))

    def act(
        self, obs: NDArray[np.floating], rng: np.random.Generator | None = None
    ) -> NDArray[np.float32]:
        """Action in [-1, 1]; the mode without ``rng``, a sample with it."""
        mean, std = self.distribution(obs)
        raw = mean if rng is None else mean + std * rng.standard_normal(mean.shape)
        action = np.tanh(raw) if self.squash else np.clip(raw, -1.0, 1.0)
        return action.astype(np.float32)


def save_policy(
    path: Path, arrays: Mapping[str, NDArray], *, activation: str, squash: bool
) -> None:
    """Write a snapshot: ``obs_mean``, ``obs_scale``, ``obs_clip``, ``w0, b0, w1, ...`` and
    perhaps ``log_std``."""
    if activation not in ("tanh", "relu"):
        raise ValueError(f"activation must be 'tanh' or 'relu', not {activation!r}")
    parts = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    parts["relu"] = np.asarray(activation == "relu")
    parts["squash"] = np.asarray(squash)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(parts):
            info = zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w") as entry:
                content = np.asarray(parts[name], order="C")
                np.lib.format.write_array(entry, content, allow_pickle=False)


def load_policy(path: Path) -> Policy:
    """Read a snapshot written by :func:`save_policy`."""
    with np.load(path, allow_pickle=False) as file:
        parts = {name: file[name] for name in file.files}
    depth = sum(name.startswith("w") for name in parts)
    wide = {name: value.astype(np.float64) for name, value in parts.items()}
    return Policy(
        weights=tuple(wide[f"w{i}"] for i in range(depth)),
        biases=tuple(wide[f"b{i}"] for i in range(depth)),
        obs_mean=wide["obs_mean"],
        obs_scale=wide["obs_scale"],
        obs_clip=parts["obs_clip"].item(),
        activation="relu" if parts["relu"].item() else "tanh",
        squash=parts["squash"].item(),
        log_std=wide.get("log_std"),
    )
