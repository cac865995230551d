"""Checks of `init` and `update`: plain settings, pure functions, a state that seeds can be stacked in."""

import dataclasses
import json
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.testing.fakes import BATCH, SPEC, environment_spec, fake_data, view_for
from offbench.testing.helpers import (
    Note,
    actions_of,
    batch_for,
    close,
    describe,
    double,
    naming,
    observations,
    problem,
    require,
    update_once,
)
from offbench.testing.repeatable import unrepeatable
from offbench.training.engine import Engine
from offbench.training.step import initial_carry, make_step, n_minibatches, stack, unstack
from offbench.types import Method, Spec


def check_hparams_are_plain(method: Any, spec: Spec = SPEC) -> None:
    """Configuration is visible: a frozen keyword-only dataclass of JSON values, and nothing beside it."""
    kind: Any = type(method)
    name = kind.__name__
    require(
        dataclasses.is_dataclass(method) and kind.__dataclass_params__.frozen,
        f"{name} is not a frozen dataclass: decorate it with @dataclass(frozen=True, kw_only=True).",
    )
    for field in dataclasses.fields(method):
        require(
            field.kw_only is True,
            f"{name}.{field.name} can be given by position: add kw_only=True to the dataclass.",
        )
        try:
            json.dumps(getattr(method, field.name))
        except TypeError:
            value = type(getattr(method, field.name)).__name__
            raise AssertionError(
                f"{name}.{field.name} holds a {value}, which a record cannot store: use numbers, "
                "strings, booleans and tuples of them."
            ) from None
    hidden = set(getattr(method, "__dict__", {})) - {
        field.name for field in dataclasses.fields(method)
    }
    require(
        not hidden,
        f"{name} keeps {sorted(hidden)} beside its fields: make them fields, or part of the state.",
    )
    require(
        dataclasses.replace(method) == method,
        f"a copy of {name} with the same fields is not equal to it: the constructor must not change its arguments.",
    )
    k = n_minibatches(method)
    require(
        isinstance(k, int) and k >= 1,
        f"{name}.minibatches is {k!r}: it must be an integer of at least 1.",
    )
    kind = getattr(method, "actions", "continuous")
    require(
        kind in ("continuous", "discrete"),
        f'{name}.actions is {kind!r}: it must be "continuous" or "discrete".',
    )


def check_init_is_a_function_of_the_key(method: Method, spec: Spec = SPEC) -> None:
    """A seed's first state depends on its key and nothing else."""
    before = torch.get_rng_state()
    with naming("init"):
        a, b, other = (method.init(rng.key(seed), spec) for seed in (0, 0, 1))
    touched = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    leaves = tree_leaves(a)
    require(
        bool(leaves) and all(isinstance(x, Tensor) for x in leaves),
        "init returned leaves that are not tensors: hold every part of the state in a tensor, constants in the fields.",
    )
    require(
        close(a, b) and not touched,
        "init gave different states for one key or used torch's global generator: draw everything "
        "through offbench.rng from the key.",
    )
    require(
        not close(a, other),
        "init gave the same state for two keys, so all seeds would start alike: draw the weights from the key.",
    )


def check_update_is_pure(method: Method, spec: Spec = SPEC) -> None:
    """Inputs stay as they were; the same inputs give the same outputs."""
    inputs = problem(method, spec)
    copy = tree_map(torch.clone, inputs)
    with naming("update"):
        first = method.update(*inputs)
        require(
            close(inputs, copy),
            "update wrote into its state, batch or key: return new tensors and use no in-place operation on an input.",
        )
        second = method.update(*inputs)
    require(
        close(first, second),
        "update gave two results for the same inputs: keep counters and buffers in the state and "
        "draw noise from the key through offbench.rng.",
    )


def check_state_is_a_fixed_point_of_shape(method: Method, spec: Spec = SPEC) -> None:
    """The state keeps its structure, shapes, types and device, so an update can be captured and repeated."""
    old, batch, key = problem(method, spec)
    new, _ = update_once(method, old, batch, key)
    require(
        tree_structure(old) == tree_structure(new),
        "update returned a state of another structure than init: return the same NamedTuple with the same leaves.",
    )
    for i, (x, y) in enumerate(zip(tree_leaves(old), tree_leaves(new), strict=True)):
        require(
            isinstance(y, Tensor) and (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device),
            f"update changed leaf {i} of the state from {describe(x)} to {describe(y)}: let init "
            "make it as update returns it.",
        )
        require(
            not bool(y.isnan().any()),
            f"update put nan into leaf {i} of the state, {describe(y)}, on ordinary data: look for a division"
            " by zero, or a root or logarithm of one.",
        )


# (part of what vmap says, what to do about it)
VMAP_ADVICE = (
    (
        "must only return Tensors",
        "update returned something that is no tensor: return the state and the metrics as tensors.",
    ),
    (
        ".item()",
        "update read a tensor's value with .item(), float() or int(): keep the value a tensor and "
        "return it as a metric.",
    ),
    (
        "control flow",
        "update used a tensor in an if, while or assert: use torch.where, clamp or a hyper-parameter.",
    ),
    (
        "random operation",
        "update drew from torch's global generator: draw from the key through offbench.rng.",
    ),
    (
        "in-place arithmetic",
        "update wrote one seed's values into a tensor all seeds share: make a new tensor.",
    ),
)


def check_seed_axis(method: Method, spec: Spec = SPEC) -> None:
    """Three seeds under vmap equal each of them alone."""
    problems = [problem(method, spec, seed=seed) for seed in (0, 10, 20)]
    alone = [update_once(method, *problem) for problem in problems]
    try:
        together = vmap(method.update)(*stack(problems))
    except Exception as error:
        text = str(error)
        for symptom, sentence in VMAP_ADVICE:
            if symptom in text:
                raise AssertionError(sentence) from error
        line = (text.strip().splitlines() or ["no message"])[0]
        raise AssertionError(
            f"update does not run under torch.func.vmap, which adds the seed axis ({type(error).__name__}: {line})."
        ) from error
    for i, want in enumerate(alone):
        require(
            close(unstack(together, i), want, 1e-4),
            "a seed in a stack of three differs from the same seed alone: update must not look beyond its own seed.",
        )


def check_metrics_are_scalars(method: Method, spec: Spec = SPEC) -> None:
    """Metrics are finite scalar tensors on the device, the same keys at every update."""
    state, batch, key = problem(method, spec)
    state, first = update_once(method, state, batch, key)
    _, second = update_once(method, state, batch_for(method, spec, seed=9), key)
    require(
        isinstance(first, dict),
        f"update returned metrics as a {type(first).__name__}: return a dict of scalar tensors.",
    )
    require(
        list(first) == list(second),
        f"metrics changed from {list(first)} to {list(second)}: return the same keys at every update.",
    )
    for name, value in first.items():
        require(
            isinstance(name, str) and isinstance(value, Tensor) and value.shape == (),
            f"metric {name!r} is {describe(value)}: return a scalar tensor, for instance its mean.",
        )
        require(
            bool(value.isfinite()),
            f"metric {name!r} is {float(value)} on ordinary data: the loss must be finite.",
        )


def check_float64_works(method: Method, spec: Spec = SPEC) -> None:
    """With a float64 state and batch everything stays float64: how losses are tested against references."""
    state, batch, key = double(problem(method, spec))
    with naming("with float64 inputs, update or act"):
        new, metrics = method.update(state, batch, key)
        obs = double(observations(method, spec, BATCH))
        action = actions_of(method.act(state, obs, key))
    stayed = all(
        y.dtype == x.dtype
        for x, y in zip(tree_leaves(state), tree_leaves(new), strict=True)
        if x.is_floating_point()
    )
    require(
        stayed
        and action.dtype == torch.float64
        and all(m.dtype == torch.float64 for m in tree_leaves(metrics)),
        "with float64 inputs the state, the metrics or the action came back in another type: make "
        "new tensors with the dtype of an input, and call neither float() nor .float().",
    )


def check_resume(method: Method, spec: Spec = SPEC) -> Note:
    """15 updates, a restart and 15 more equal 30 bit for bit, and the traced program follows them.

    The note names operations whose bits may differ from run to run on a GPU.
    """
    needs, data = getattr(method, "needs", ()), fake_data(environment_spec(spec))
    view = view_for(needs, spec)
    pipeline = make_pipeline(data, view=view, batch_size=BATCH, needs=needs)
    step = make_step(method, pipeline)
    with naming("in the engine (see check_seed_axis), init or update"):
        carry = initial_carry(method, spec, (0, 1))
        # "vmap" calls the method's Python at every update
        straight = Engine(step, carry, backend="vmap")
        unordered = unrepeatable(straight.run, 1)
        straight.run(14)
        half = tree_map(torch.clone, straight.carry)
        straight.run(15)
        rest = Engine(step, half, backend="vmap")
        rest.run(15)
        traced = Engine(step, carry, backend="eager")
        traced.run(30)
    require(
        close(rest.carry, straight.carry),
        "15 updates, a restart and 15 updates differ from 30: something is remembered outside the "
        "state (a counter, a cache, a module).",
    )
    require(
        close(traced.carry, straight.carry, 1e-2),
        "the traced program differs from calling update 30 times: update must not depend on Python "
        "values that change between calls.",
    )
    if not unordered:
        return None
    return f"on a GPU the last bits may differ from run to run, for {', '.join(unordered)}"


def check_compiles(method: Method, spec: Spec = SPEC, *, backend: str = "aot_eager") -> None:
    """torch.compile takes update whole. `backend="inductor"` also generates the kernels (minutes)."""
    inputs = problem(method, spec)
    want = update_once(method, *inputs)
    torch._dynamo.reset()
    try:
        got = torch.compile(method.update, fullgraph=True, backend=backend)(
            *tree_map(torch.clone, inputs)
        )
    except Exception as error:
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise AssertionError(
            f"torch.compile(update, fullgraph=True) broke the graph ({line}): use only tensor "
            "operations in update, no printing, files or clocks."
        ) from error
    finally:
        torch._dynamo.reset()
    require(
        close(got, want, 1e-4),
        "the compiled update gives another result than the plain one: it must depend on its arguments alone.",
    )
