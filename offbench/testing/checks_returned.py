"""Check of what init, update and act return, of which kind: the other checks compute with it."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from offbench.testing.fakes import BATCH, SPEC
from offbench.testing.helpers import (
    actions_of,
    describe,
    naming,
    observations,
    problem,
    require,
    update_once,
)
from offbench.types import Method, Spec


def check_what_is_returned(method: Method, spec: Spec = SPEC) -> None:
    """init: tensors. update: a pair of them and a dict of tensors. act: a tensor or a Plan of tensors."""
    inputs = problem(method, spec)
    state, batch, key = inputs
    leaves = tree_leaves(state)
    odd = [describe(x) for x in leaves if not isinstance(x, Tensor)]
    require(
        bool(leaves) and not odd,
        f"init returned {'an ' + odd[0] if odd else 'no tensor'}: hold the state in tensors, in a NamedTuple,"
        " dict, list or tuple of them, and constants in the fields.",
    )
    before = torch.get_rng_state()
    made = update_once(method, state, batch, key)
    require(
        isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], dict),
        f"update returned {_shown(made)}: return (state, metrics), metrics a dict of scalar tensors.",
    )
    for name, value in made[1].items():
        require(
            isinstance(value, Tensor),
            f"metric {name!r} is a {describe(value)}: return a scalar tensor, without .item() or float().",
        )
    odd = [describe(x) for x in tree_leaves(made[0]) if not isinstance(x, Tensor)]
    require(
        not odd,
        f"update returned {'an ' + odd[0] if odd else ''} in the state: hold all of it in tensors.",
    )
    with naming("act"):
        action = actions_of(
            method.act(*tree_map(torch.clone, (state, observations(method, spec, BATCH), key)))
        )
    torch.set_rng_state(before)
    require(
        isinstance(action, Tensor),
        f"act returned a {type(action).__name__}: return a tensor {(BATCH, spec.action_dim)} for {BATCH} observations.",
    )


def _shown(made: object) -> str:
    """What kind a value is, a tuple with the kinds of its members."""
    if type(made) is tuple:
        return f"({', '.join(type(x).__name__ for x in made)})"
    return f"a {type(made).__name__}"
