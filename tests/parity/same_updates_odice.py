"""The same question as same_updates.py, asked of ODICE and its authors' code.

    python tests/parity/same_updates_odice.py odice FOLDER/TASK.npz --code ODICE-Pytorch    (also odice_semi, odice_true)

Needs torch alone. Their update runs as it is, on their networks in float64, with twins and layer norm as on
locomotion. One thing differs on their side: `Tensor.float`, which they call on terminals, gives float64, as
(1 - terminal) * discount would be rounded to float32. There is no noise in these updates. The part `action`
is what both policies do at the end, on the last minibatch.
"""

import argparse
import sys
from pathlib import Path
from unittest.mock import MagicMock

import torch
from same_updates import HIDDEN, KEY, Data, _spec, clone, far, layers, our_batch

import offbench.rng as rng
from offbench.methods.odice import ODICE

torch.set_default_dtype(torch.float64)
CODE = "maoliyuan/ODICE-Pytorch 1692507"
UPDATE = {
    "odice": ("orthogonal", "orthogonal_true_g_update"),
    "odice_semi": ("semi", "semi_g_update"),
    "odice_true": ("true", "true_g_update"),
}
COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminals")
DUAL, ETA, LR, DECAY = 0.6, 0.8, 2e-4, 1e-4


def values(*modules) -> list[dict]:
    """Their values as ours: linear layers with the norms that follow them."""
    made = layers(*modules)
    norms = [[m for m in net.modules() if isinstance(m, torch.nn.LayerNorm)] for net in modules]
    for layer, members in zip(made, zip(*norms, strict=True), strict=False):
        layer["scale"] = torch.stack([x.weight.detach()[None].clone() for x in members])
        layer["shift"] = torch.stack([x.bias.detach()[None].clone() for x in members])
    return made


def compare(name: str, data: Data, code: Path):
    """After each update the parts of both sides."""
    sys.modules["wandb"] = MagicMock()
    sys.path.insert(0, str(code))
    from odice import ODICE as Theirs
    from policy import GaussianPolicy
    from value_functions import TwinV

    torch.Tensor.float = torch.Tensor.double
    gradient, update = UPDATE[name]
    n_obs, n_act = (data.columns[k].shape[1] for k in ("observations", "actions"))
    policy = GaussianPolicy(n_obs, n_act, hidden_dim=HIDDEN, n_hidden=2, use_tanh=False).double()
    twins = TwinV(n_obs, layer_norm=True, hidden_dim=HIDDEN, n_hidden=2).double()
    theirs = Theirs(
        twins, policy, data.updates, Lambda=DUAL, eta=ETA, use_twin_v=True, value_lr=LR, policy_lr=LR,
        weight_decay=DECAY,
    )  # fmt: skip
    method = ODICE(
        gradient=gradient, dual_weight=DUAL, backward_weight=ETA, lr=LR, weight_decay=DECAY,
        hidden=(HIDDEN,) * 2, actor_hidden=(HIDDEN,) * 2,
    )  # fmt: skip
    value = values(twins.v1, twins.v2)
    actor = {"mean": layers(policy.net), "log_std": policy.log_std.detach().clone()}
    state = method.init(rng.key(0), _spec(n_obs, n_act))
    state = state._replace(actor=actor, value=value, target_value=value)
    while True:
        b = data.batch()
        getattr(theirs, update)(**{k: torch.tensor(b[k]) for k in COLUMNS})
        state, _ = method.update(state, our_batch(b), KEY)
        obs = torch.tensor(b["observations"])
        target = theirs.vf_target
        yield {
            "actor": (state.actor["mean"], layers(policy.net)),
            "log_std": (state.actor["log_std"], policy.log_std.detach().clone()),
            "value": (state.value, values(twins.v1, twins.v2)),
            "target_value": (state.target_value, values(target.v1, target.v2)),
            "action": (method.act(state, obs, KEY), policy.act(obs, deterministic=True)),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("algorithm", choices=UPDATE)
    parser.add_argument("data", type=Path)
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=500)
    given = parser.parse_args()
    torch.manual_seed(0)
    data, first = Data(given.data, given.updates), None
    for i, pairs in enumerate(compare(given.algorithm, data, given.code)):
        first = first or {name: clone(theirs) for name, (_, theirs) in pairs.items()}
        if i + 1 == given.updates:
            # not a weight: it has not changed
            first["action"] = clone(pairs["action"][1])
            break
    print("algorithm,reference,task,updates,part,largest_difference,largest_change")
    for name, (mine, theirs) in pairs.items():
        gap, moved = far(mine, theirs), far(theirs, first[name])
        print(f"{given.algorithm},{CODE},{data.task},{given.updates},{name},{gap:.1e},{moved:.1e}")
