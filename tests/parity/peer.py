"""Trains CORL's own files on the arrays offbench trains on. Needs a checkout of CORL; holds none of it.

    python tests/parity/peer.py export TASK FOLDER [--own data=FILE env=ID score=success]
                                                                         (offbench's environment)
    python tests/parity/peer.py run ALGORITHM FOLDER/TASK.npz --corl CORL/algorithms/offline \
        --out rows.csv --seeds 0 1 2 3 4 --updates 50000 --hidden 64 [--set NAME=VALUE ...]     (the peer's)

`run` executes an unchanged `train(config)`. What it imports is replaced: `gym` and `d4rl` give the
exported arrays and a Gymnasium environment that deals out offbench's test episodes, `wandb` keeps
the last metrics, `pyrallis` calls. One thing in the text is replaced: the width 256 of the networks,
which CORL has no setting for. `--set` gives fields of its config.
"""

import argparse
import csv
import json
import re
import sys
import time
import types
from pathlib import Path

import numpy as np

from offbench.tasks.loading import load_data

HEADER = [
    "algorithm",
    "task",
    "seed",
    "episode",
    "env_seed",
    "return",
    "score",
    "length",
    "success",
    "updates",
    "train_seconds",
    "settings",
]


def export(task_id: str, folder: Path, episodes: int, own: list[str]) -> Path:
    """Every transition, the last of a timed-out episode included: it has a true next observation.

    ReBRAC, which reads the next action, leaves that one out, as offbench does for it. `own` are the
    settings of your own data: data=FILE env=ID score=success.
    """
    from dataclasses import asdict

    from offbench.tasks.custom import own_task
    from offbench.tasks.episodes import env_seeds
    from offbench.tasks.locate import load_task

    settings = dict(s.split("=", 1) for s in own)
    task = own_task(id=task_id, **settings) if own else load_task(task_id)
    data, _ = load_data(task)
    row = np.flatnonzero(data.valid.numpy())
    nxt = np.minimum(row + 1, len(data.obs) - 1)
    followed = data.valid.numpy()[nxt]  # an action was recorded at the next observation
    about = {
        k: v
        for k, v in asdict(task).items()
        if k in ("id", "env", "env_kwargs", "score", "ref_min", "ref_max")
    }
    about["env_seeds"] = env_seeds(task_id, "test", episodes)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (task_id.replace("/", "--") + ".npz")
    np.savez(
        path,
        about=json.dumps(about),
        observations=data.obs[row].numpy(),
        actions=data.action[row].numpy(),
        rewards=data.reward[row].numpy(),
        terminals=data.terminal[row].numpy(),
        next_observations=data.obs[row + 1].numpy(),
        next_actions=data.action[nxt].numpy(),
        has_next=followed | data.terminal[row].numpy(),
    )
    return path


class Env:
    """Gym's old interface over a Gymnasium environment. `seed` starts the list of episodes anew."""

    def __init__(self, path: str):
        import gymnasium

        file = np.load(path)
        self.about = json.loads(str(file["about"]))
        self.dataset = {k: file[k] for k in file.files if k != "about"}
        if self.about["env"] not in gymnasium.registry:
            import ogbench  # noqa: F401  registers its environments
        self.env = gymnasium.make(
            self.about["env"], disable_env_checker=True, **self.about["env_kwargs"]
        )
        self.observation_space, self.action_space = (
            self.env.observation_space,
            self.env.action_space,
        )
        self.rows: list[dict] = []
        self.began = time.perf_counter()  # of training; wandb.init sets it again
        self.trained = self.played = 0.0  # seconds

    def seed(self, seed: int) -> None:
        self.trained = time.perf_counter() - self.began - self.played
        self.rows.clear()

    def reset(self) -> np.ndarray:
        seed = self.about["env_seeds"][len(self.rows)]
        np.random.seed(seed)  # noqa: NPY002  OGBench's mazes draw from it
        self.total, self.length, self.start = 0.0, 0, time.perf_counter()
        return self.env.reset(seed=seed)[0].astype(np.float32)

    def step(self, action: np.ndarray):
        obs, reward, stop, cut, info = self.env.step(np.clip(action, -1, 1))
        self.total, self.length = self.total + float(reward), self.length + 1
        if stop or cut:
            self.played += time.perf_counter() - self.start
            success = bool(info.get("success", False))
            low, high = self.about["ref_min"], self.about["ref_max"]
            score = (
                100.0 * success
                if self.about["score"] == "success"
                else 100 * (self.total - low) / (high - low)
            )
            self.rows.append(
                {
                    "episode": len(self.rows),
                    "env_seed": self.about["env_seeds"][len(self.rows)],
                    "return": self.total,
                    "score": score,
                    "length": self.length,
                    "success": success,
                }
            )
        return obs.astype(np.float32), reward, stop or cut, info

    def get_normalized_score(self, x):
        return x

    def get_dataset(self):
        return self.dataset


class Transformed:
    def __init__(self, env, function):
        self.env, self.function = env, function

    def reset(self):
        return self.function(self.env.reset())

    def step(self, action):
        obs, *rest = self.env.step(action)
        return self.function(obs), *rest

    def __getattr__(self, name):
        return getattr(self.env, name)


def load(algorithm: str, folder: Path, hidden: int, log: dict) -> types.ModuleType:
    """CORL's file as a module, its imports of gym, d4rl, wandb and pyrallis replaced."""
    made: list[Env] = []

    def make(path: str) -> Env:
        made.append(Env(path))
        return made[-1]

    def module(name: str, **content) -> types.ModuleType:
        m = types.ModuleType(name)
        m.__dict__.update(content)
        sys.modules[name] = m
        return m

    wrappers = module("gym.wrappers", TransformObservation=Transformed)
    module("gym", Env=Env, make=make, wrappers=wrappers)
    module("d4rl", qlearning_dataset=lambda env: {k: v.copy() for k, v in env.dataset.items()})
    run = types.SimpleNamespace(save=lambda: None)

    def begin(*args, **kwargs) -> None:  # ReBRAC calls it before there is an environment
        for env in made:
            env.began = time.perf_counter()

    module(
        "wandb",
        init=begin,
        run=run,
        mark_preempting=lambda: None,
        log=lambda d, step=None: log.update(d),
    )
    module("pyrallis", wrap=lambda: lambda f: f, dump=None)
    if algorithm == "rebrac":
        import jax

        jax.tree_map = (
            getattr(jax, "tree_map", None) or jax.tree_util.tree_map
        )  # gone since jax 0.4.26
    text = (folder / f"{algorithm}.py").read_text()
    text = re.sub(r"nn\.Linear\([^)]*\)", lambda m: m[0].replace("256", str(hidden)), text)
    text = re.sub(r"(hidden_dim: int = )256", rf"\g<1>{hidden}", text)
    loaded = module(f"corl_{algorithm}")
    exec(compile(text, f"{algorithm}.py", "exec"), loaded.__dict__)
    if algorithm == "rebrac":
        loaded.qlearning_dataset = lambda env: {
            k: v[env.dataset["has_next"]] for k, v in env.dataset.items()
        }
    loaded.made = made
    return loaded


def run(
    algorithm: str,
    data: Path,
    corl: Path,
    out: Path,
    seeds: list[int],
    updates: int,
    hidden: int,
    episodes: int,
    settings: list[str],
) -> None:
    options = {k: json.loads(v) for k, v in (s.split("=", 1) for s in settings)}
    log: dict = {}

    for seed in seeds:
        peer = load(algorithm, corl, hidden, log)
        if algorithm == "rebrac":
            config = peer.Config(
                dataset_name=str(data),
                train_seed=seed,
                num_epochs=1,
                num_updates_on_epoch=updates,
                eval_episodes=episodes,
                hidden_dim=hidden,
                **({"batch_size": 256} | options),
            )
        else:
            import torch

            torch.set_num_threads(1)
            rows = len(np.load(data)["rewards"])
            config = peer.TrainConfig(
                env=str(data),
                seed=seed,
                max_timesteps=updates,
                eval_freq=updates,
                n_episodes=episodes,
                device="cpu",
                buffer_size=rows,
                **options,
            )
        peer.train(config)
        env = peer.made[-1]
        new = not out.exists()
        with out.open("a", newline="") as file:
            writer = csv.DictWriter(file, HEADER)
            if new:
                writer.writeheader()
            for row in env.rows:
                writer.writerow(
                    row
                    | {
                        "algorithm": algorithm,
                        "task": env.about["id"],
                        "seed": seed,
                        "updates": updates,
                        "train_seconds": round(env.trained, 2),
                        "settings": " ".join([f"hidden={hidden}", *settings]),
                    }
                )
        last = {k: round(float(np.mean(v)), 4) for k, v in log.items() if not isinstance(v, str)}
        scores = [r["score"] for r in env.rows]
        print(
            f"{algorithm} {env.about['id']} seed {seed}: {np.mean(scores):.2f}, {env.trained:.1f} s for {updates} updates; {last}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("export")
    one.add_argument("task")
    one.add_argument("folder", type=Path)
    one.add_argument("--episodes", type=int, default=10)
    one.add_argument("--own", nargs="*", default=[], metavar="NAME=VALUE")
    two = commands.add_parser("run")
    two.add_argument("algorithm", choices=["any_percent_bc", "td3_bc", "iql", "cql", "rebrac"])
    two.add_argument("data", type=Path)
    two.add_argument("--corl", type=Path, required=True)
    two.add_argument("--out", type=Path, required=True)
    two.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    two.add_argument("--updates", type=int, default=50_000)
    two.add_argument("--hidden", type=int, default=64)
    two.add_argument("--episodes", type=int, default=10)
    two.add_argument("--set", dest="settings", nargs="*", default=[], metavar="NAME=VALUE")
    given = vars(parser.parse_args())
    command = given.pop("command")
    if command == "export":
        print(export(given["task"], given["folder"], given["episodes"], given["own"]))
    else:
        run(**given)
