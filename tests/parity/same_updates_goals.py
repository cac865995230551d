"""The same question as same_updates.py, asked of goal-conditioned methods and OGBench's JAX code.

    python tests/parity/same_updates_goals.py gcbc FOLDER/TASK.npz --code OGBENCH/impls
    (also gcivl, gciql, gciql_awr, qrl, crl, crl_awr)

OGBENCH is a checkout of seohongpark/ogbench. Needs jax, flax, distrax and optax beside torch. Its update runs as it
is, but for one thing: after each update its target networks follow those of after the step, as ours do (theirs:
of before). Goals are rows of the file, a fifth of the values' goals the row itself. The part `action` is what
both do at the end, from the same observations and goals.

Another method is a line in METHODS: its agent's file, settings of both sides, and its networks as fields of our state.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from same_updates import HIDDEN, KEY, Data, clone, far
from same_updates_flow import layers

import offbench.rng as rng
from offbench.methods.crl import CRL, Bilinear
from offbench.methods.gcbc import GCBC
from offbench.methods.gciql import GCIQL
from offbench.methods.gcivl import GCIVL
from offbench.methods.qrl import QRL, Quasimetric
from offbench.types import Batch, Spec

CODE = "seohongpark/ogbench 1d41409"
SIZE, LATENT, GAMMA, RATE = 256, 64, 0.99, 0.005
SIZES: dict[str, Any] = {"hidden": (HIDDEN,) * 2}


def number(x) -> torch.Tensor:
    return torch.tensor(np.asarray(x))


def actor(params) -> list[dict]:
    """Its last layer is a module beside the others there."""
    last = {k: number(v) for k, v in params["mean_net"].items()}
    return [*layers(params["actor_net"]), {"w": last["kernel"], "b": last["bias"][None]}]


def bilinear(params) -> Bilinear:
    return Bilinear(layers(params["phi"]), layers(params["psi"]))


def quasimetric(params) -> Quasimetric:
    return Quasimetric(layers(params["phi"]), number(params["alpha"]["value"]))


@dataclass
class Pair:
    """A method on both sides."""

    ours: Any
    # of their agent, beside what all have
    config: dict[str, Any] = field(default_factory=dict)
    # field of our state -> (their module, their weights as ours)
    parts: dict[str, tuple[str, Callable]] = field(default_factory=dict)
    # their targets -> what they follow
    targets: dict[str, str] = field(default_factory=dict)


LATENTS = {**SIZES, "latent_dim": LATENT}
IVL = {"value": ("value", layers), "target_value": ("target_value", layers)}
IQL = {
    "value": ("value", layers),
    "critic": ("critic", layers),
    "target_critic": ("target_critic", layers),
}
METRIC = {
    "metric": ("value", quasimetric),
    "dynamics": ("dynamics", layers),
    "log_multiplier": ("lam", lambda p: number(p["log_value"])),
}
CRITIC = {"critic": ("critic", bilinear)}
METHODS = {
    "gcbc": Pair(GCBC(**SIZES)),
    "gcivl": Pair(GCIVL(**SIZES), {"alpha": 10.0}, IVL, {"target_value": "value"}),
    "gciql": Pair(GCIQL(**SIZES), {"alpha": 0.3}, IQL, {"target_critic": "critic"}),
    "gciql_awr": Pair(
        GCIQL(**SIZES, actor_loss="awr"),
        {"alpha": 3.0, "actor_loss": "awr"},
        IQL,
        {"target_critic": "critic"},
    ),
    "qrl": Pair(QRL(**LATENTS), {"alpha": 0.003}, METRIC),
    "crl": Pair(CRL(**LATENTS), {"alpha": 0.1}, CRITIC),
    "crl_awr": Pair(
        CRL(**LATENTS, actor_loss="awr"),
        {"alpha": 3.0, "actor_loss": "awr"},
        CRITIC | {"value": ("value", bilinear)},
    ),
}


def load(code: Path, name: str):
    """The class of their agent."""
    sys.path.insert(0, str(code))
    sys.modules["ml_collections"] = MagicMock()
    module = importlib.import_module(f"agents.{name.removesuffix('_awr')}")
    return next(
        v
        for k, v in vars(module).items()
        if k.endswith("Agent") and v.__module__ == module.__name__
    )


def config(pair: Pair) -> dict[str, Any]:
    return {
        "lr": 3e-4, "batch_size": SIZE, "actor_hidden_dims": (HIDDEN,) * 2, "value_hidden_dims": (HIDDEN,) * 2,
        "layer_norm": True, "discount": GAMMA, "tau": RATE, "expectile": 0.9, "actor_loss": "ddpgbc", "const_std": True,
        "discrete": False, "encoder": None, "latent_dim": LATENT, "quasimetric_type": "iqe", "eps": 0.05,
    } | pair.config  # fmt: skip


def batches(data: Data):
    """Transitions of the file with goals among its rows, as both sides have them."""
    names = ("observations", "actions", "next_observations")
    obs, action, next_obs = (data.columns[k] for k in names)
    while True:
        row, goal, other = data.rng.integers(len(obs), size=(3, SIZE))
        goal = np.where(data.rng.random(SIZE) < 0.2, row, goal)
        reached = (row == goal).astype(np.float64)
        theirs = {
            "observations": obs[row], "actions": action[row], "next_observations": next_obs[row],
            "value_goals": obs[goal], "actor_goals": obs[other], "rewards": reached - 1, "masks": 1 - reached,
        }  # fmt: skip
        towards = lambda x, at: torch.tensor(np.concatenate([x, obs[at]], 1))
        extras = {
            "actor_obs": towards(obs[row], other),
            "actor_next_obs": towards(next_obs[row], other),
        }
        ours = Batch(
            towards(obs[row], goal), torch.tensor(action[row]), torch.tensor(reached - 1),
            torch.tensor(GAMMA * (1 - reached)), towards(next_obs[row], goal), extras,
        )  # fmt: skip
        yield theirs, ours


def compare(pair: Pair, data: Data, agent_class):
    """After every update: field -> (ours, theirs), and a function that acts on both sides."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    tree = jax.tree_util.tree_map
    n_obs, n_act = (data.columns[k].shape[1] for k in ("observations", "actions"))
    agent = agent_class.create(0, jnp.zeros((1, n_obs)), jnp.zeros((1, n_act)), config(pair))
    old = agent.network
    double = tree(lambda x: x.astype(jnp.float64), old.params)
    for target, online in pair.targets.items():
        double[f"modules_{target}"] = double[f"modules_{online}"]
    agent = agent.replace(network=type(old).create(old.model_def, double, tx=old.tx))

    def parts() -> dict:
        known = agent.network.params
        named = pair.parts | {"actor": ("actor", actor)}
        return {k: read(known[f"modules_{module}"]) for k, (module, read) in named.items()}

    ours = pair.ours
    spec = Spec(2 * n_obs, n_act, GAMMA, 100, goal_dim=n_obs)
    state = ours.init(rng.key(0), spec)._replace(**parts())
    follow = lambda new, old: tree(lambda p, q: RATE * p + (1 - RATE) * q, new, old)
    for theirs, mine in batches(data):
        before = agent.network.params
        agent, _ = agent.update({k: jnp.asarray(v) for k, v in theirs.items()})
        after = agent.network.params
        for target, online in pair.targets.items():
            name = f"modules_{target}"
            after[name] = follow(after[f"modules_{online}"], before[name])
        state, _ = ours.update(state, mine, KEY)
        pairs = {k: (getattr(state, k), v) for k, v in parts().items()}

        def act(agent=agent, state=state, theirs=theirs, mine=mine):
            seen = (theirs["observations"], theirs["actor_goals"])
            a = agent.sample_actions(*seen, seed=jax.random.PRNGKey(0), temperature=0.0)
            return ours.act(state, mine.extras["actor_obs"], KEY), number(a)

        yield pairs, act


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("algorithm", choices=METHODS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=100)
    given = parser.parse_args()
    data, first = Data(given.data, given.updates), None
    pair = METHODS[given.algorithm]
    for i, (pairs, act) in enumerate(compare(pair, data, load(given.code, given.algorithm))):
        first = first or {name: clone(theirs) for name, (_, theirs) in pairs.items()}
        if i + 1 == given.updates:
            pairs["action"] = act()
            first["action"] = clone(pairs["action"][1])  # not a weight: it has not changed
            break
    print("algorithm,reference,task,updates,part,largest_difference,largest_change")
    about = f"{given.algorithm},{CODE},{data.task},{given.updates}"
    for name, (mine, theirs) in pairs.items():
        gap, moved = far(mine, theirs), far(theirs, first[name])
        print(f"{about},{name},{gap:.1e},{moved:.1e}")
