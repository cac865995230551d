"""The same question as same_updates.py, asked of hierarchies over goals and their authors' JAX code.

    python tests/parity/same_updates_hierarchies.py hiql FOLDER/TASK.npz --code OGBENCH/impls
    python tests/parity/same_updates_hierarchies.py ota  FOLDER/TASK.npz --code ACTION_SUFFICIENT
    python tests/parity/same_updates_hierarchies.py arl  FOLDER/TASK.npz --code ARL    (also arl_ddpg_bc, arl_relative)

OGBENCH is a checkout of seohongpark/ogbench, ACTION_SUFFICIENT one of action-sufficient/action-sufficient, which has
a port of OTA, ARL one of CWibault/arl. Needs jax, flax, distrax, optax and ml_collections beside torch.

Their update runs as it is, in float64, on batches that their own dataset class samples, with its random
numbers, from the file's episodes; ours gets the same batches. Two things differ on their side: after each update
targets follow the networks of after the step, as ours do (theirs: of before), and the port of OTA does not
normalise the layers of its policies, as the authors of OTA do not. ARL's sampler is given an environment without
a rule of success, so a goal is reached in its own row alone. There is no noise in these updates. The part
`action` is what both do at the end, greedily.
"""

import argparse
import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from same_updates import HIDDEN, KEY, clone, far
from same_updates_flow import layers

import offbench.rng as rng
from offbench.types import Batch, Spec

SIZE, K, N, REP = 256, 25, 5, 10
CODE = {
    "hiql": "seohongpark/ogbench 1d41409", "ota": "action-sufficient cb70862", "arl": "CWibault/arl d2472f4",
    "arl_ddpg_bc": "CWibault/arl d2472f4", "arl_relative": "CWibault/arl d2472f4",
}  # fmt: skip


def episodes(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The name of the task, and its episodes as OGBench has them: with their last observations, which are not valid."""
    file = np.load(path)
    obs, nxt = (file[k].astype(np.float64) for k in ("observations", "next_observations"))
    ends = np.flatnonzero(np.append((nxt[:-1] != obs[1:]).any(-1), True))
    rows: dict[str, list] = {"observations": [], "actions": [], "terminals": [], "valids": []}
    start = 0
    for end in ends:
        n = end + 1 - start
        action = file["actions"][start : end + 1].astype(np.float64)
        rows["observations"] += [obs[start : end + 1], nxt[end : end + 1]]
        rows["actions"] += [action, action[-1:]]
        # as of OGBench's compact datasets: the last row and the one before it
        rows["terminals"] += [np.arange(n + 1) >= n - 1]
        rows["valids"] += [np.arange(n + 1) < n]
        start = end + 1
    joined = {k: np.concatenate(v) for k, v in rows.items()}
    flags = {k: joined[k].astype(np.float64) for k in ("terminals", "valids")}
    return json.loads(str(file["about"]))["id"], joined | flags


def modules(name: str, code: Path):
    """Their module of the agent and that of datasets."""
    sys.path.insert(0, str(code))
    package = "ogb_impls." if name.startswith("arl") else ""
    # without the agents beside it, some of which need a later Python
    beside = types.ModuleType(f"{package}agents")
    beside.__path__ = [str(code / f"{package}agents".replace(".", "/"))]
    sys.modules[beside.__name__] = beside
    agent = importlib.import_module(f"{package}agents.{name.split('_')[0]}")
    if name == "ota":
        actor = agent.GCActor
        agent.GCActor = lambda layer_norm, **settings: actor(layer_norm=False, **settings)
    return agent, importlib.import_module(f"{package}utils.datasets")


def method(name: str):
    from offbench.methods.arl import ARL
    from offbench.methods.hiql import HIQL
    from offbench.methods.ota import OTA

    hidden = (HIDDEN,) * 2
    arl = {"hidden": hidden, "rep_hidden": hidden}
    return {
        "hiql": HIQL(hidden=hidden),
        "ota": OTA(hidden=hidden),
        "arl": ARL(**arl),
        "arl_ddpg_bc": ARL(**arl, high_actor="ddpg_bc"),
        "arl_relative": ARL(**arl, relative_options=True),
    }[name]


def settings(name: str, config):
    """Their configuration, with small networks and goals of all kinds."""
    hidden = (HIDDEN,) * 2
    config.update(actor_hidden_dims=hidden, value_hidden_dims=hidden, rep_dim=REP, subgoal_steps=K)
    config.update(discount=0.99, actor_p_trajgoal=0.7, actor_p_randomgoal=0.3)
    if name == "ota":
        config.update(abstraction_factor=N)
    if name.startswith("arl"):
        config.update(rep_hidden_dims=hidden, option_diff=name == "arl_relative")
        config.high_actor_loss = "ddpgbc" if name == "arl_ddpg_bc" else "awr"
    return config


def parts(params: dict) -> dict[str, list]:
    """Their parameters as fields of our state."""
    made = {}
    for name, tree in params.items():
        field = name.removeprefix("modules_")
        if "mean_net" in tree:
            last = len(tree["actor_net"])
            tree = tree["actor_net"] | {f"Dense_{last}": tree["mean_net"]}
        made[field] = layers(tree)
    return made


def our_batch(name: str, b: dict, low_gamma: float) -> Batch:
    """A batch of their sampler as one of the goal view."""
    t = {k: torch.tensor(np.asarray(v, np.float64)) for k, v in b.items()}
    s, s2 = t["observations"], t["next_observations"]
    cat = lambda *x: torch.cat(x, -1)
    prefix = "high_value_" if name.startswith("arl") else ""
    goal = t["high_value_goals" if prefix else "value_goals"]
    high, low = t["high_actor_goals"], t["low_actor_goals"]
    target = t["high_actor_actions" if prefix else "high_actor_targets"]
    extras = {
        "actor_obs": cat(s, high), "actor_next_obs": cat(s2, high), "low_actor_obs": cat(s, low),
        "low_actor_next_obs": cat(s2, low), "target_obs": cat(s, target), "reached_obs": cat(target, high),
    }  # fmt: skip
    if name == "ota":
        far_goal, end = t["high_value_goals"], t["high_value_option_observations"]
        extras |= {"option_obs": cat(s, far_goal), "option_next_obs": cat(end, far_goal)}
        extras |= {"option_reward": t["high_value_rewards"], "option_discount": 0.99 * t["high_value_masks"]}  # fmt: skip
    if prefix:
        near = t["low_value_goals"]
        extras |= {"low_obs": cat(s, near), "low_next_obs": cat(s2, near), "low_reward": t["low_value_rewards"]}  # fmt: skip
        extras["low_discount"] = low_gamma * t["low_value_masks"]
    reward, mask = t[prefix + "rewards"], t[prefix + "masks"]
    return Batch(cat(s, goal), t["actions"], reward, 0.99 * mask, cat(s2, goal), extras)


def compare(name: str, path: Path, code: Path):
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    tree = jax.tree_util.tree_map
    task, columns = episodes(path)
    module, datasets = modules(name, code)
    config = settings(name, module.get_config())
    data_class = getattr(datasets, "HGCDataset_ota" if name == "ota" else "HGCDataset")
    about = ("", None) if name.startswith("arl") else ()
    np.random.seed(0)  # noqa: NPY002  what their sampler draws from
    data = data_class(datasets.Dataset.create(**columns), config, *about)
    example = data.sample(1)
    agent_class = next(v for k, v in vars(module).items() if k.endswith("Agent"))
    example = [example] if name != "hiql" else [example["observations"], example["actions"]]
    agent = agent_class.create(0, *example, config)
    double = tree(lambda x: x.astype(jnp.float64), agent.network.params)
    old = agent.network
    agent = agent.replace(network=type(old).create(old.model_def, double, tx=old.tx))

    n_obs, n_act = (columns[k].shape[1] for k in ("observations", "actions"))
    ours = method(name)
    spec = Spec(2 * n_obs, n_act, 0.99, 1000, goal_dim=n_obs)
    state = ours.init(rng.key(0), spec)._replace(**parts(agent.network.params))
    targets = [k for k in agent.network.params if k.startswith("modules_target_")]
    low_gamma = 1 - 1 / K
    while True:
        b = data.sample(SIZE)
        before = agent.network.params
        agent, _ = agent.update(b)
        params = dict(agent.network.params)
        for target in targets:
            followed = params[target.replace("target_", "")]
            params[target] = tree(lambda p, q: 0.005 * p + 0.995 * q, followed, before[target])
        agent = agent.replace(network=agent.network.replace(params=params))
        state, _ = ours.update(state, our_batch(name, b, low_gamma), KEY)
        pairs = {k: (getattr(state, k), v) for k, v in parts(params).items()}

        def act(b=b, agent=agent, state=state) -> tuple[torch.Tensor, torch.Tensor]:
            s, g = b["observations"], b["high_actor_goals"]
            theirs = agent.sample_actions(s, g, seed=jax.random.PRNGKey(0), temperature=0.0)
            obs = torch.tensor(np.concatenate([s, g], -1))
            return ours.act(state, obs, KEY), torch.tensor(np.asarray(theirs))

        yield task, pairs, act


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("algorithm", choices=CODE)
    parser.add_argument("data", type=Path)
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=200)
    given = parser.parse_args()
    first = None
    for i, after in enumerate(compare(given.algorithm, given.data, given.code)):
        task, pairs, act = after
        first = first or {name: clone(theirs) for name, (_, theirs) in pairs.items()}
        if i + 1 == given.updates:
            pairs["action"] = act()
            # not a weight: it has not changed
            first["action"] = clone(pairs["action"][1])
            break
    print("algorithm,reference,task,updates,part,largest_difference,largest_change")
    for name, (mine, theirs) in pairs.items():
        gap, moved = far(mine, theirs), far(theirs, first[name])
        about = f"{given.algorithm},{CODE[given.algorithm]},{task},{given.updates}"
        print(f"{about},{name},{gap:.1e},{moved:.1e}")
