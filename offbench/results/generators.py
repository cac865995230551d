"""Random numbers of resampling, which depend on what is resampled alone."""

import hashlib

import numpy as np


class Generators:
    """Random numbers that depend on what they are for, not on what else is on the board."""

    def __init__(self, random_seed: int = 0) -> None:
        self._seed = random_seed
        self._shares: dict[tuple[bytes, int], np.ndarray] = {}

    def __call__(self, name: str, x: np.ndarray) -> np.random.Generator:
        """A generator for a name and the numbers that it is to depend on."""
        content = f"{self._seed} {name} {x.shape}".encode() + x.tobytes()
        return np.random.default_rng(int.from_bytes(hashlib.sha256(content).digest()[:16], "big"))

    def shares(self, start_states: tuple[int, ...], reps: int) -> np.ndarray:
        """(reps, n) how often each start state is in a resample, as a share; drawn once for all that met them."""
        states = np.array(start_states)
        key = states.tobytes(), reps
        if key not in self._shares:
            n = len(states)
            again = self("", states).integers(n, size=(reps, n))
            counts = np.bincount((again + n * np.arange(reps)[:, None]).ravel(), minlength=reps * n)
            self._shares[key] = counts.reshape(reps, n) / n
        return self._shares[key]
