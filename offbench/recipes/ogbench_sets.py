"""OGBench's own state sets, collected anew in the published layout: `<name>.npz` and
`<name>-val.npz`, which ``ogbench.load_dataset`` reads.

They are not the published files: those were made without a seed and cannot be made again. What is
written here is a function of the seed and of the versions, says so in `<name>.regenerated.yaml`,
and its scores belong beside no published number.

    row            0    1   ...  T-1   T     0    1  ...     T + 1 rows for T transitions
    observations   s0   s1       sT-1  sT    s0   s1
    actions        a0   a1       aT-1  aT    a0   a1         aT leads out of the record
    terminals      0    0        0     1     0    0          marks the last row, no more
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offbench.errors import UserError
from offbench.io import atomic_write, sha256_of
from offbench.recipes import Progress, ogbench_oracles, shards, unwatched
from offbench.recipes.locomotion import seeds
from offbench.recipes.store import versions

if TYPE_CHECKING:
    import gymnasium as gym


COLUMNS = ("observations", "actions", "terminals", "qpos", "qvel", "button_states")
# one validation trajectory for so many
_VALIDATION = 10
# versions that decide the arrays
_DECIDE = ("numpy", "gymnasium", "mujoco", "ogbench")


@dataclass(frozen=True)
class Options:
    """What a set is collected in, and by which oracle."""

    env: str
    # navigate, stitch, play or noisy
    kind: str
    # transitions of a trajectory
    length: int
    # share of uniform actions (noisy)
    random_actions: float = 0.0


def make(
    dataset_id: str,
    folder: Path,
    options: Options,
    *,
    steps: int,
    seed: int,
    workers: int = 1,
    progress: Progress = unwatched,
) -> Path:
    """Collect a set into ``folder`` and return its training file.

    ``steps`` transitions, rounded up to whole trajectories, and a tenth as many
    trajectories for validation. An interrupted call goes on where it stopped; a larger set begins
    with the trajectories of a smaller one. ``progress`` counts trajectories.
    """
    env, kind, length = options.env, options.kind, options.length
    if steps < 1 or length < 1:
        raise UserError(f"{dataset_id}: steps={steps} is not a positive number")
    name = dataset_id.rsplit("/", 1)[-1]
    n_train = -(-steps // length)
    n_val = max(1, n_train // _VALIDATION)
    found = versions()
    plan = {
        "id": dataset_id,
        "env": env,
        "kind": kind,
        "length": length,
        "seed": seed,
        "random_actions": options.random_actions,
        "versions": {k: found[k] for k in _DECIDE},
    }
    jobs = {
        f"{part}-{i:06d}": (env, kind, length, options.random_actions, number)
        for part, n, stream in (("train", n_train, seeds(seed)), ("val", n_val, seeds((seed, 1))))
        for i, number in zip(range(n), stream)
    }
    folder.mkdir(parents=True, exist_ok=True)
    pieces = folder / f"{name}.pieces"
    paths = shards.collect(pieces, plan, jobs, trajectory, workers=workers, progress=progress)
    train, val = folder / f"{name}.npz", folder / f"{name}-val.npz"
    label = folder / f"{name}.regenerated.yaml"
    # never the label of another file
    label.unlink(missing_ok=True)
    for path, part in ((train, paths[:n_train]), (val, paths[n_train:])):
        present = [c for c in COLUMNS if c in _names(part[0])]
        shards.write_npz(path, {c: functools.partial(shards.column, part, c) for c in present})
    _label(label, plan, train, val, n_train, n_val)
    shutil.rmtree(pieces)
    return train


def trajectory(
    env_id: str, kind: str, length: int, random_actions: float, seed: int
) -> Mapping[str, NDArray[Any]]:
    """The columns of one trajectory; in a scene, of the first attempt that keeps the cube in view."""
    env = _environment(env_id, length)
    begin = {
        "navigate": ogbench_oracles.begin_navigate,
        "stitch": ogbench_oracles.begin_stitch,
        "play": ogbench_oracles.begin_arm(),
        "noisy": ogbench_oracles.begin_arm(noisy=True, random_actions=random_actions),
    }[kind]
    made = ogbench_oracles.roll(env, begin, length, seed)
    attempt = 0
    while env_id.startswith("scene") and not _in_view(made.qpos):
        attempt += 1
        again = np.random.SeedSequence((seed, attempt)).generate_state(1)[0] >> 1
        made = ogbench_oracles.roll(env, begin, length, int(again))
    ends = np.zeros(length + 1, np.bool_)
    ends[-1] = True
    columns = {
        "observations": made.observations,
        "actions": made.actions,
        "terminals": ends,
        "qpos": made.qpos,
        "qvel": made.qvel,
    }
    if made.button_states is not None:
        columns["button_states"] = made.button_states
    return columns


@functools.cache
def _environment(env_id: str, length: int) -> gym.Env:
    return ogbench_oracles.make_env(env_id, length)


def _in_view(qpos: NDArray[np.float32]) -> bool:
    """Whether the cube of a scene is always where a goal picture would show it, or in the drawer:
    OGBench keeps no other trajectory."""
    y, z = qpos[:, 15], qpos[:, 16]
    left = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not ((y >= 0.29) | left).any()


def _names(piece: Path) -> list[str]:
    with np.load(piece, allow_pickle=False) as file:
        return file.files


def _label(
    path: Path, plan: Mapping[str, Any], train: Path, val: Path, n_train: int, n_val: int
) -> None:
    import yaml

    length, published = plan["length"], plan["id"]
    content = {
        "id": f"regenerated/{published}",
        "regenerated": True,
        "instead_of": published,
        "summary": (
            f"{published} collected again with the oracles of the ogbench package; not the "
            "published file, and not comparable with published scores."
        ),
        "format": "ogbench",
        "files": {
            part: {
                "name": file.name,
                "bytes": file.stat().st_size,
                "sha256": sha256_of(file),
                "rows": n * length,
                "episodes": n,
            }
            for part, file, n in (("train", train, n_train), ("val", val, n_val))
        },
        "recipe": {k: plan[k] for k in ("env", "kind", "length", "seed", "random_actions")}
        | {
            "seeds": "31-bit words of SeedSequence(seed), in order; validation: of (seed, 1)",
            "differs": [
                "seeded (the published sets are not)",
                "the executed action is the stored one, in float32",
            ],
        },
        "versions": versions(),
    }
    atomic_write(path, yaml.safe_dump(content, sort_keys=False, width=100).encode())
