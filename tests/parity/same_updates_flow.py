"""The same question as same_updates.py, asked of methods of flows and chunks and their authors' JAX code.

    python tests/parity/same_updates_flow.py fql    FOLDER/TASK.npz --code FQL    (also ifql)
    python tests/parity/same_updates_flow.py qc     FOLDER/TASK.npz --code QC     (also qc_fql)
    python tests/parity/same_updates_flow.py qgf    FOLDER/TASK.npz --code QGF

FQL is a checkout of seohongpark/fql, QC one of ColinQiyangLi/qc, QGF one of zhouzypaul/qgf. Needs jax,
flax and optax beside torch. Their update runs as it is, without compilation so that the noise can be
dealt out, but for three things: what they import for other ends is left out, float32 in their text is
float64, and after each update their target critic follows the critic of after the step, as ours does
(theirs: of before). The part `action` is what both do at the end, from the same observations and noise.
"""

import argparse
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
CODE = {
    "fql": "seohongpark/fql 719d044", "ifql": "seohongpark/fql 719d044", "qc": "ColinQiyangLi/qc 48283b4",
    "qc_fql": "ColinQiyangLi/qc 48283b4", "qgf": "zhouzypaul/qgf bc44a67",
}  # fmt: skip


def load(code: Path, name: str):
    sys.path.insert(0, str(code))
    sys.modules["ml_collections"] = MagicMock()
    distrax = types.ModuleType("distrax")
    distrax.Transformed = object  # a base class of an actor that is not used
    sys.modules["distrax"] = distrax
    for part in (
        "utils.networks",
        f"agents.{name}",
    ):  # without what else is imported beside the agent
        module = types.ModuleType(part)
        text = (
            (code / f"{part.replace('.', '/')}.py")
            .read_text()
            .replace("jnp.float32", "jnp.float64")
        )
        exec(compile(text, f"{part}.py", "exec"), module.__dict__)
        sys.modules[part] = module
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


def batches(data: Data, h: int, cut: float):
    """Spans of h rows of the file and both sides' view of them, a share of them cut short."""
    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    obs, action, reward, next_obs, terminal = (data.columns[k] for k in names)
    powers = 0.99 ** np.arange(h)
    while True:
        row = data.rng.integers(len(reward) - h, size=SIZE)[:, None] + np.arange(h)
        length = np.where(data.rng.random(SIZE) < cut, data.rng.integers(1, h + 1, SIZE), h)
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
    from offbench.methods.qgf import QGF

    hidden = {"hidden": (HIDDEN,) * 2, "flow_steps": STEPS}
    return {
        "fql": FQL(**hidden, distill_weight=10.0, normalize_q=True),
        "ifql": IFQL(**hidden, n_proposals=N),
        "qc_fql": FQL(**hidden, distill_weight=100.0),
        "qc": QC(**hidden, n_proposals=N),
        "qgf": QGF(**hidden, n_proposals=N, guidance_weight=0.5),
    }[name]


def compare(name: str, data: Data, code: Path):
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    h = H if name.startswith("q") else 1
    cut = 0.0 if name == "qgf" else 0.2  # its code clones what follows an end, ours does not
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
        # those of QGF
        "bc_lr": 3e-4, "critic_lr": 3e-4, "value_lr": 3e-4, "use_layer_norm": 1, "activation": "gelu",
        "value_network_class": "MLP", "q_aggregation": "min", "denoise_steps": STEPS,
        "value_network_kwargs": {"hidden_dims": (HIDDEN,) * 2, "layer_norm": True},
        "denoised_action_approx": "one_euler_step_approx", "apply_jacobian": False,
    }  # fmt: skip
    example = (jnp.zeros((1, n_obs)), jnp.zeros((1, n_act)))
    if name in ("qc", "qc_fql"):
        example = tuple(x[0] for x in example)
    agent = agent_class.create(0, *example, config)
    tree = jax.tree_util.tree_map
    states = ("policy", "critic", "target_critic", "value") if name == "qgf" else ("network",)
    for which in states:
        old = getattr(agent, which)
        double = tree(lambda x: x.astype(jnp.float64), old.params)
        if which == "target_critic":
            double = agent.critic.params  # theirs start apart from the critics'
        agent = agent.replace(**{which: type(old).create(old.model_def, double, tx=old.tx)})

    def parts() -> dict:
        if name == "qgf":
            # their trunk is a module of its own, and its last layer beside it has the first one's name
            trunk = layers(agent.policy.params["MLP_0"])
            head = agent.policy.params["Dense_0"]
            head = {k: torch.tensor(np.asarray(v)) for k, v in head.items()}
            flow = {"trunk": trunk, "head": [{"w": head["kernel"], "b": head["bias"][None]}]}
            return {
                "critic": layers(agent.critic.params),
                "target_critic": layers(agent.target_critic.params),
                "value": one(agent.value.params),
                "flow": flow,
            }
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
    follow = lambda new, old: tree(lambda p, q: 0.005 * p + 0.995 * q, new, old)
    noise, drawn = Noise(), []
    noise.serve()
    rng.randint = lambda key, shape, n: noise.take(shape)
    jax.random.randint = lambda key, shape, low, high: jnp.asarray(
        drawn.pop(0).numpy().reshape(shape)
    )
    jax.random.normal = lambda key, shape: jnp.asarray(drawn.pop(0).numpy().reshape(shape))
    jax.random.uniform = jax.random.normal
    flat = (SIZE, n_act * h)
    for theirs, mine in batches(data, h, cut):
        x, spare, u = noise.normal(*flat), noise.normal(*flat), noise.uniform(SIZE, 1)
        proposals = noise.normal(SIZE * N, n_act * h)
        after, here = noise.normal(*flat), noise.normal(*flat)
        grid = torch.tensor(noise.rng.integers(STEPS + 1, size=(SIZE, 1)))
        drawn[:] = {
            "fql": [after, x, u, here, spare], "qc_fql": [after, x, u, here],
            "ifql": [x, u], "qc": [proposals, x, u], "qgf": [x, grid],
        }[name]  # fmt: skip
        before = agent
        with jax.disable_jit():
            agent, _ = agent.update({k: jnp.asarray(v) for k, v in theirs.items()})
        if name == "qgf":
            target = follow(agent.critic.params, before.target_critic.params)
            agent = agent.replace(target_critic=agent.target_critic.replace(params=target))
        else:
            p, old = agent.network.params, before.network.params["modules_target_critic"]
            p["modules_target_critic"] = follow(p["modules_critic"], old)
        assert not drawn
        noise.queue = {
            "fql": [here, after, x, u], "qc_fql": [here, after, x, u],
            "ifql": [x, u], "qc": [proposals, x, u], "qgf": [x, grid],
        }[name]  # fmt: skip
        state, _ = ours.update(state, mine, KEY)
        assert not noise.queue
        pairs = {k: (getattr(state, k), v) for k, v in parts().items()}

        def act(obs: np.ndarray, agent=agent, state=state) -> tuple[torch.Tensor, torch.Tensor]:
            z = noise.normal(1 if name.endswith("fql") and name != "ifql" else N, n_act * h)
            drawn[:], noise.queue = [z], [z]
            key = {"rng" if name in ("qc", "qc_fql") else "seed": jax.random.PRNGKey(0)}
            extra = {"guidance_weight": 0.5, "rejection_sampling": N} if name == "qgf" else {}
            with jax.disable_jit():
                a = agent.sample_actions(jnp.asarray(obs), **key, **extra)
            return ours.act(state, torch.tensor(obs)[None], KEY)[0], torch.tensor(np.asarray(a))

        seen = theirs["observations"][:8]
        yield pairs, lambda seen=seen, act=act: tuple(zip(*map(act, seen), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("algorithm", choices=CODE)
    parser.add_argument("data", type=Path)
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=50)
    given = parser.parse_args()
    data, first = Data(given.data, given.updates), None
    for i, (pairs, actions) in enumerate(compare(given.algorithm, data, given.code)):
        first = first or {name: clone(theirs) for name, (_, theirs) in pairs.items()}
        if i + 1 == given.updates:
            pairs["action"] = actions()
            first["action"] = clone(pairs["action"][1])  # not a weight: it has not changed
            break
    print("algorithm,reference,task,updates,part,largest_difference,largest_change")
    about = f"{given.algorithm},{CODE[given.algorithm]},{data.task},{given.updates}"
    for name, (mine, theirs) in pairs.items():
        gap, moved = far(mine, theirs), far(theirs, first[name])
        print(f"{about},{name},{gap:.1e},{moved:.1e}")
