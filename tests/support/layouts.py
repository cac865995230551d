"""The same episodes written in the layouts of D4RL, Minari and OGBench."""

import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from offbench.data.replay import Episode

OBS, ACT = 3, 2


def same(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b))


def make(lengths, seed=0):
    """Episodes that no layout loses anything of: float32, never terminal."""
    rng = np.random.default_rng(seed)
    return [
        Episode(
            rng.standard_normal((n + 1, OBS), np.float32),
            rng.uniform(-1, 1, (n, ACT)).astype(np.float32),
            rng.standard_normal(n, np.float32),
            np.zeros(n, bool),
        )
        for n in lengths
    ]


def steps(episodes):
    column = {
        "observations": np.concatenate([e.obs[:-1] for e in episodes]),
        "next_observations": np.concatenate([e.obs[1:] for e in episodes]),
        "actions": np.concatenate([e.action for e in episodes]),
        "rewards": np.concatenate([e.reward for e in episodes]),
        "terminals": np.concatenate([e.terminal for e in episodes]),
    }
    column["timeouts"] = np.concatenate(
        [np.arange(len(e.action)) == len(e.action) - 1 for e in episodes]
    )
    return column


def write_d4rl(episodes, path, skip=()):
    with h5py.File(path, "w") as file:
        for key, x in steps(episodes).items():
            if key not in skip:
                file[key] = x


def write_ogbench(episodes, path):
    def pad(x):
        return np.concatenate([x, x[-1:]])

    np.savez(
        path,
        observations=np.concatenate([e.obs for e in episodes]),
        actions=np.concatenate([pad(e.action) for e in episodes]),
        rewards=np.concatenate([pad(e.reward) for e in episodes]),
        masks=np.concatenate([1.0 - pad(e.terminal) for e in episodes]),
        terminals=np.concatenate([np.arange(len(e.obs)) == len(e.action) for e in episodes]),
    )


def write_minari(episodes, root, data_format, obs_space=None, action_space=None, **extra):
    """The folder of a set made by minari itself."""
    import gymnasium
    import minari as package
    from minari.data_collector.episode_buffer import EpisodeBuffer

    buffers = []
    for i, e in enumerate(episodes):
        n = len(e.reward)
        truncation = np.zeros(n, bool)
        truncation[-1] = not e.terminal[-1]
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=e.obs,
                actions=e.action,
                rewards=e.reward,
                terminations=e.terminal,
                truncations=truncation,
            )
        )
    box = gymnasium.spaces.Box
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        package.create_dataset_from_buffers(
            f"test/{data_format}-v0",
            buffers,
            observation_space=obs_space or box(-np.inf, np.inf, (OBS,), np.float32),
            action_space=action_space or box(-1, 1, (ACT,), np.float32),
            data_format=data_format,
            **extra,
        )
    return Path(root) / "test" / f"{data_format}-v0"
