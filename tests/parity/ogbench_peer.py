"""Trains OGBench's own agents on the arrays offbench trains on, and plays offbench's test episodes.

    python tests/parity/ogbench_peer.py export TASK FOLDER --episodes 100     (offbench's environment)
    python tests/parity/ogbench_peer.py run gcivl FOLDER/TASK.npz --ogbench OGBENCH/impls --out rows.csv \
        --seeds 0 1 2 3 --updates 6000 --hidden 64 64 --set batch_size=256 lr=1e-3 tau=0.05   (the peer's)

OGBENCH is a checkout of seohongpark/ogbench; none of it is held here. Needs jax, flax, distrax, optax,
ml_collections and ogbench. Agents, their configurations and the dataset classes with their sampler of goals are
used as they are; the loop is that of its main.py: a batch of the sampler, an update, and so on. `--set` gives
fields of the agent's configuration, `--hidden` the widths of every network. After the last update the greedy
policy plays the episodes whose goals, reset seeds and start states are those of offbench's stream `test`.
"""

import argparse
import csv
import importlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HEADER = [
    "algorithm",
    "task",
    "seed",
    "episode",
    "task_id",
    "env_seed",
    "score",
    "length",
    "updates",
    "train_seconds",
    "settings",
    "versions",
]
# environments that step together
ENVS = 25


def export(task_id: str, folder: Path, episodes: int) -> Path:
    """The data as OGBench's compact sets: last observations kept, marked not valid, and an end on the row before too."""
    from offbench.rollout import env_seeds
    from offbench.tasks.loading import load_data
    from offbench.tasks.locate import load_task

    task = load_task(task_id)
    data, _ = load_data(task)
    valid = data.valid.numpy()
    about = {
        "id": task.id,
        "env": task.env,
        "env_kwargs": task.env_kwargs,
        "env_seeds": env_seeds(task.id, "test", episodes),
        "task_ids": [task.task_ids[i % len(task.task_ids)] for i in range(episodes)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (task_id.replace("/", "--") + ".npz")
    np.savez(
        path,
        about=json.dumps(about),
        observations=data.obs.numpy(),
        actions=data.action.numpy(),
        terminals=ends(valid).astype(np.float32),
        valids=valid.astype(np.float32),
    )
    return path


def ends(valid: np.ndarray) -> np.ndarray:
    """Last observations and the rows before them: OGBench's sampler ends an episode at the first of these."""
    return ~(valid & np.append(valid[1:], False))


class Peer:
    """An agent of OGBench, and the sampler that it learns from."""

    def __init__(
        self, algorithm: str, path: Path, impls: Path, hidden: list[int], settings: dict[str, Any]
    ):
        if str(impls) not in sys.path:
            sys.path.insert(0, str(impls))
        datasets = importlib.import_module("utils.datasets")
        module = importlib.import_module(f"agents.{algorithm}")
        self.agent_class = importlib.import_module("agents").agents[algorithm]
        self.config = module.get_config()
        widths = {k: tuple(hidden) for k in self.config if k.endswith("_hidden_dims")}
        unknown = set(settings) - set(self.config)
        if unknown:
            raise SystemExit(f"{algorithm} has no setting {', '.join(sorted(unknown))}")
        self.config.update(widths | settings)
        file = np.load(path)
        self.about = json.loads(str(file["about"]))
        rows = {k: file[k] for k in file.files if k != "about"}
        kind = getattr(datasets, self.config["dataset_class"])
        self.dataset = kind(datasets.Dataset.create(**rows), self.config)

    def begin(self, seed: int) -> None:
        """A new agent; numpy's global generator draws the batches and the goals."""
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        example = self.dataset.sample(1)
        self.agent = self.agent_class.create(
            seed, example["observations"], example["actions"], self.config
        )

    def train(self, updates: int) -> None:
        """Returns when the updates are done."""
        import jax

        for _ in range(updates):
            batch = self.dataset.sample(self.config["batch_size"])
            self.agent, _ = self.agent.update(batch)
        jax.block_until_ready(self.agent.network.params)

    def play(self) -> list[dict[str, Any]]:
        """One row per test episode of the greedy policy."""
        import jax

        key = jax.random.PRNGKey(0)

        def act(obs: np.ndarray, goals: np.ndarray) -> np.ndarray:
            # at temperature 0 the key decides nothing
            return np.asarray(
                self.agent.sample_actions(observations=obs, goals=goals, seed=key, temperature=0.0)
            )

        rows = []
        numbers = range(len(self.about["env_seeds"]))
        for first in range(0, len(numbers), ENVS):
            rows += play_together(self.about, list(numbers[first : first + ENVS]), act)
        return rows


def play_together(about: dict[str, Any], numbers: list[int], act: Any) -> list[dict[str, Any]]:
    """Episodes by number, one environment each, until all have ended."""
    import gymnasium
    import ogbench  # noqa: F401  registers its environments

    envs, seen, goals = [], [], []
    for i in numbers:
        env = gymnasium.make(about["env"], disable_env_checker=True, **about["env_kwargs"])
        # OGBench's mazes draw the start from numpy's global generator
        np.random.seed(about["env_seeds"][i])  # noqa: NPY002
        options = {"task_id": about["task_ids"][i]}
        obs, info = env.reset(seed=about["env_seeds"][i], options=options)
        envs.append(env)
        seen.append(obs)
        goals.append(info["goal"])
    obs, goal = np.asarray(seen, np.float32), np.asarray(goals, np.float32)
    active, length, rows = set(range(len(numbers))), 0, []
    while active:
        actions, length = act(obs, goal), length + 1
        for slot in sorted(active):
            now, _, stop, cut, info = envs[slot].step(np.clip(actions[slot], -1, 1))
            obs[slot] = now
            if stop or cut:
                active.remove(slot)
                i = numbers[slot]
                rows.append(
                    {
                        "episode": i,
                        "task_id": about["task_ids"][i],
                        "env_seed": about["env_seeds"][i],
                        "score": 100.0 * bool(info["success"]),
                        "length": length,
                    }
                )
    for env in envs:
        env.close()
    return sorted(rows, key=lambda r: r["episode"])


def versions() -> str:
    from importlib.metadata import version

    return " ".join(
        f"{name} {version(name)}" for name in ("jax", "flax", "optax", "ogbench", "mujoco")
    )


def run(
    algorithm: str,
    data: Path,
    ogbench: Path,
    out: Path,
    seeds: list[int],
    updates: int,
    hidden: list[int],
    settings: list[str],
) -> None:
    options = {k: json.loads(v) for k, v in (s.split("=", 1) for s in settings)}
    peer = Peer(algorithm, data, ogbench, hidden, options)
    said = json.dumps({"hidden": hidden} | options, sort_keys=True)
    for seed in seeds:
        peer.begin(seed)
        began = time.perf_counter()
        peer.train(updates)
        seconds = round(time.perf_counter() - began, 2)
        rows = peer.play()
        about = {"algorithm": algorithm, "task": peer.about["id"], "seed": seed, "updates": updates}
        about |= {"train_seconds": seconds, "settings": said, "versions": versions()}
        new = not out.exists()
        with out.open("a", newline="") as file:
            writer = csv.DictWriter(file, HEADER)
            if new:
                writer.writeheader()
            writer.writerows(row | about for row in rows)
        score = np.mean([r["score"] for r in rows])
        print(f"{algorithm} seed {seed}: {score:.1f} % of {len(rows)}, {seconds} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("export")
    one.add_argument("task")
    one.add_argument("folder", type=Path)
    one.add_argument("--episodes", type=int, default=100)
    two = commands.add_parser("run")
    two.add_argument("algorithm", choices=["gcbc", "gcivl", "gciql", "qrl", "crl", "hiql"])
    two.add_argument("data", type=Path)
    two.add_argument("--ogbench", type=Path, required=True)
    two.add_argument("--out", type=Path, required=True)
    two.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    two.add_argument("--updates", type=int, default=6000)
    two.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
    two.add_argument("--set", dest="settings", nargs="*", default=[], metavar="NAME=VALUE")
    given = vars(parser.parse_args())
    command = given.pop("command")
    if command == "export":
        print(export(**{"task_id": given.pop("task")} | given))
    else:
        run(**given)
