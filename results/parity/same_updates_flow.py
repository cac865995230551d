"""The same question as same_updates.py, asked of methods of flows and chunks and their authors' JAX code.

    python results/parity/same_updates_flow.py fql    FOLDER/TASK.npz --code FQL    (also ifql)
    python results/parity/same_updates_flow.py qc     FOLDER/TASK.npz --code QC     (also qc_fql)

FQL is a checkout of seohongpark/fql, QC one of ColinQiyangLi/qc. Needs jax, flax and optax beside torch.
Their update runs as it is, without compilation so that the noise can be dealt out, but for two things:
what they import for other ends is left out, and after each update their target critic follows the
critic of after the step, as ours does (theirs: of before).
"""

import argparse
import importlib.util
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from same_updates import HIDDEN, KEY, Data, Noise, _spec, clone, far

import offbench.rng as rng
from offbench.types import Batch

SIZE, H, N, STEPS = 64, 5, 8, 4


def load(code: Path, name: str):
    sys.path.insert(0, str(code))
    sys.modules["ml_collections"] = MagicMock()
    distrax = types.ModuleType("distrax")
    distrax.Transformed = object  # a base class of an actor that is not used
    sys.modules["distrax"] = distrax
    spec = importlib.util.spec_from_file_location(name, code / "agents" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layers(params) -> list[dict]:
    """Flax's layers as ours, in order: Dense_0, LayerNorm_0, Dense_1, ..."""
    found: dict[str, dict] = {}

    def walk(node) -> None:
        for name, child in node.items():
            if "kernel" in child or "scale" in child:
                found[name] = {k: torch.tensor(np.asarray(v)) for k, v in child.items()}
            else:
                walk(child)

    walk(params)
    made = []
    for i in range(sum("kernel" in x for x in found.values())):
        dense, norm = found[f"Dense_{i}"], found.get(f"LayerNorm_{i}")
        made.append({"w": dense["kernel"], "b": dense["bias"][..., None, :]})
        if norm:
            made[-1] |= {"scale": norm["scale"][..., None, :], "shift": norm["bias"][..., None, :]}
    return made


def one(params) -> list[dict]:
    """A single network as our ensemble of one."""
    return [{k: v[None] for k, v in layer.items()} for layer in layers(params)]


def batches(data: Data, h: int):
    """Spans of h rows of the file and both sides' view of them. One span in five is cut short."""
    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    obs, action, reward, next_obs, terminal = (data.columns[k] for k in names)
    powers = 0.99 ** np.arange(h)
    while True:
        row = data.rng.integers(len(reward) - h, size=SIZE)[:, None] + np.arange(h)
        length = np.where(data.rng.random(SIZE) < 0.2, data.rng.integers(1, h + 1, SIZE), h)
        valid = (np.arange(h) < length[:, None]).astype(np.float64)
        earned = (reward[row] * powers).cumsum(1)
        masks = 1.0 - terminal[row].astype(np.float64)
        theirs = {"observations": obs[row[:, 0]], "actions": action[row], "rewards": earned,
                  "masks": masks, "next_observations": next_obs[row], "valid": valid}  # fmt: skip
        if h == 1:  # FQL's code has no axis of time
            theirs = {k: v[:, 0] if k != "observations" else v for k, v in theirs.items()}
        t = torch.tensor
        ours = Batch(
            t(obs[row[:, 0]]), t(action[row]).flatten(1), t(earned[:, -1]),
            t(0.99**h * masks[:, -1]), t(next_obs[row[:, -1]]), {"valid": t(valid)},
        )  # fmt: skip
        yield theirs, ours


def method(name: str):
    from offbench.methods.fql import FQL
    from offbench.methods.ifql import IFQL
    from offbench.methods.qc import QC

    hidden = {"hidden": (HIDDEN,) * 2, "flow_steps": STEPS}
    return {
        "fql": FQL(**hidden, distill_weight=10.0, normalize_q=True),
        "ifql": IFQL(**hidden),
        "qc_fql": FQL(**hidden, distill_weight=100.0),
        "qc": QC(**hidden, n_proposals=N),
    }[name]


def compare(name: str, data: Data, code: Path):
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    h = H if name.startswith("qc") else 1
    module = load(code, {"qc": "acfql", "qc_fql": "acfql"}.get(name, name))
    agent_class = next(v for k, v in vars(module).items() if k.endswith("Agent"))
    n_obs, n_act = (data.columns[k].shape[1] for k in ("observations", "actions"))
    config = {
        "lr": 3e-4, "batch_size": SIZE, "actor_hidden_dims": (HIDDEN,) * 2, "value_hidden_dims": (HIDDEN,) * 2,
        "layer_norm": True, "actor_layer_norm": False, "discount": 0.99, "tau": 0.005, "q_agg": "mean",
        "alpha": method(name).distill_weight if hasattr(method(name), "distill_weight") else 0.0,
        "flow_steps": STEPS, "normalize_q_loss": name == "fql", "encoder": None, "expectile": 0.9, "num_samples": N,
        "horizon_length": h, "action_chunking": True, "num_qs": 2, "use_fourier_features": False,
        "fourier_feature_dim": 64, "weight_decay": 0.0, "actor_num_samples": N,
        "actor_type": "best-of-n" if name == "qc" else "distill-ddpg",
    }  # fmt: skip
    example = (jnp.zeros((1, n_obs)), jnp.zeros((1, n_act)))
    if h > 1:
        example = tuple(x[0] for x in example)
    agent = agent_class.create(0, *example, config)
    tree = jax.tree_util.tree_map
    double = tree(lambda x: x.astype(jnp.float64), agent.network.params)
    state_class = type(agent.network)
    agent = agent.replace(
        network=state_class.create(agent.network.model_def, double, tx=agent.network.tx)
    )

    def parts() -> dict:
        p = agent.network.params
        made = {
            "critic": layers(p["modules_critic"]),
            "target_critic": layers(p["modules_target_critic"]),
            "flow": layers(p["modules_actor_flow" if name == "ifql" else "modules_actor_bc_flow"]),
        }
        if name.endswith("fql") and name != "ifql":
            made["actor"] = layers(p["modules_actor_onestep_flow"])
        if name == "ifql":
            made["value"] = one(p["modules_value"])
        return made

    ours = method(name)
    state = ours.init(rng.key(0), _spec(n_obs, n_act * h))._replace(**parts())
    noise, drawn = Noise(), []
    noise.serve()
    jax.random.normal = lambda key, shape: jnp.asarray(drawn.pop(0).numpy().reshape(shape))
    jax.random.uniform = jax.random.normal
    flat = (SIZE, n_act * h)
    for theirs, mine in batches(data, h):
        x, spare, u = noise.normal(*flat), noise.normal(*flat), noise.uniform(SIZE, 1)
        proposals = noise.normal(SIZE * N, n_act * h)
        after, here = noise.normal(*flat), noise.normal(*flat)
        drawn[:] = {
            "fql": [after, x, u, here, spare], "qc_fql": [after, x, u, here],
            "ifql": [x, u], "qc": [proposals, x, u],
        }[name]  # fmt: skip
        before = agent.network.params["modules_target_critic"]
        with jax.disable_jit():
            agent, _ = agent.update({k: jnp.asarray(v) for k, v in theirs.items()})
        p = agent.network.params
        p["modules_target_critic"] = tree(
            lambda new, old: 0.005 * new + 0.995 * old, p["modules_critic"], before
        )
        assert not drawn
        noise.queue = {
            "fql": [here, after, x, u], "qc_fql": [here, after, x, u],
            "ifql": [x, u], "qc": [proposals, x, u],
        }[name]  # fmt: skip
        state, _ = ours.update(state, mine, KEY)
        assert not noise.queue
        yield {k: (getattr(state, k), v) for k, v in parts().items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("algorithm", choices=["fql", "ifql", "qc", "qc_fql"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=50)
    given = parser.parse_args()
    data, first = Data(given.data, given.updates), None
    for i, pairs in enumerate(compare(given.algorithm, data, given.code)):
        first = first or {name: clone(theirs) for name, (_, theirs) in pairs.items()}
        if i + 1 == given.updates:
            break
    print("algorithm,task,updates,part,largest_difference,largest_change")
    for name, (mine, theirs) in pairs.items():
        gap, moved = far(mine, theirs), far(theirs, first[name])
        print(f"{given.algorithm},{data.task},{given.updates},{name},{gap:.1e},{moved:.1e}")
