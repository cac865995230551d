"""Checks of `act` and `value`: bounded actions, one environment's from its own observation and key."""

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk, NStep
from offbench.testing.fakes import BATCH, SPEC, fake_batch, fake_data, view_for
from offbench.testing.helpers import (
    Note,
    actions_of,
    close,
    describe,
    naming,
    observations,
    problem,
    require,
)
from offbench.training.step import n_minibatches, stack
from offbench.types import Method, Plan, Spec


def check_act(method: Method, spec: Spec = SPEC) -> None:
    """(E, O) -> (E, A) in [-1, 1], for one environment, many and none; each looks at its own alone."""
    state, _, key = problem(method, spec)
    for n in (1, 7, 0):
        # where an unbounded actor shows
        far = lambda x: 100 * x if x.is_floating_point() else x
        obs = tree_map(far, observations(method, spec, n))
        with naming(f"act on {n} observations"):
            made = method.act(state, obs, key)
        action, dtype = (
            actions_of(made),
            next(x.dtype for x in tree_leaves(obs) if x.is_floating_point()),
        )
        require(
            isinstance(action, Tensor)
            and action.shape == (n, spec.action_dim)
            and action.dtype == dtype,
            f"act returned {describe(action)} for {n} observations: return {dtype} {(n, spec.action_dim)}.",
        )
        require(
            not isinstance(made, Plan)
            or (
                made.length.shape == (n,)
                and bool(((made.length >= 1) & (made.length <= spec.chunk)).all())
            ),
            f"act returned a Plan whose length is not (n,) numbers from 1 to spec.chunk = {spec.chunk}.",
        )
        require(
            bool((action.abs() <= 1).all()),
            "act returned actions outside [-1, 1] or not finite: end with tanh or clamp(-1, 1).",
        )
    if hasattr(method, "act_for"):
        _check_lengths(method, state, observations(method, spec, 7), key, spec)
    require(
        _acts_row_by_row(method, state, spec, key),
        "the action for an observation depends on the others of its batch, which are other environments: "
        "look at each row alone, and centre or scale by nothing taken over the batch.",
    )


def _check_lengths(method: Any, state: Any, obs: Any, key: Tensor, spec: Spec) -> None:
    """Asked to execute a number of steps, a method plans as many."""
    for length in range(1, spec.chunk + 1):
        with naming(f"act_for with length {length}"):
            made = method.act_for(state, obs, key, length)
        require(
            isinstance(made, Plan)
            and made.action.shape == (7, spec.action_dim)
            and bool((made.action.abs() <= 1).all())
            and bool((made.length == length).all()),
            f"act_for was asked for {length} steps and returned {describe(made)}: return a Plan whose lengths"
            " are what was asked for, with actions in [-1, 1].",
        )


def _acts_row_by_row(method: Method, state: Any, spec: Spec, key: Tensor) -> bool:
    """Whether the first half of a batch is acted on alike when the second half moves far away."""
    obs, half = observations(method, spec, BATCH), BATCH // 2
    far = lambda x: torch.cat([x[:half], 30 * x[half:] + 30 if x.is_floating_point() else x[half:]])
    made, before = [], torch.get_rng_state()
    for some in (obs, tree_map(far, obs)):
        with naming("act"):
            made.append(tree_map(lambda x: x[:half], method.act(state, some, key)))
        # what torch's global generator does to an action is another check's to find
        torch.set_rng_state(before)
    return close(made[0], made[1], 1e-4)


def check_act_draws_only_from_its_key(method: Method, spec: Spec = SPEC) -> None:
    """One state, observation and key give one action; acting changes nothing; seeds act under vmap."""
    problems = [problem(method, spec, seed=seed) for seed in (0, 10, 20)]
    states, keys = [p[0] for p in problems], [p[2] for p in problems]
    obs = observations(method, spec, BATCH)
    inputs = tree_map(torch.clone, (states[0], obs, keys[0]))
    before = torch.get_rng_state()
    with naming("act"):
        first, second = (actions_of(method.act(*inputs)) for _ in range(2))
    touched = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    require(
        close(first, second) and not touched,
        "act gave two actions for one key or used torch's global generator: draw from the key through offbench.rng.",
    )
    require(
        close(inputs, (states[0], obs, keys[0])),
        "act wrote into its inputs: it must change neither state nor observation.",
    )
    with naming("act under torch.func.vmap, which adds the seed axis,"):
        together = vmap(method.act, in_dims=(0, None, 0))(stack(states), obs, torch.stack(keys))
    together = actions_of(together)
    require(
        torch.allclose(together[0], first, atol=1e-4, equal_nan=True),
        "a seed in a stack of three acts differently from the same seed alone: act must not look beyond its own seed.",
    )


def check_value(method: Method, spec: Spec = SPEC) -> Note:
    """A number per decision for what `act` made of one observation alone, under vmap over both."""
    if not hasattr(method, "value"):
        return "says no values of its decisions"
    problems = [problem(method, spec, seed=seed) for seed in (0, 10, 20)]
    states, key, obs = [p[0] for p in problems], problems[0][2], observations(method, spec, 7)
    with naming("value"):
        alone = []
        for state in states:
            made = method.act(state, obs, key)
            inputs = tree_map(torch.clone, (state, obs, made))
            alone.append(method.value(*inputs))
            require(
                close(inputs, (state, obs, made))
                and alone[-1].shape == (7,)
                and bool(alone[-1].isfinite().all())
                and torch.equal(alone[-1], method.value(*inputs)),
                f"value returned {describe(alone[-1])} for 7 observations, was not finite, differed from one "
                "call to the next or wrote into its inputs: return (7,) numbers, a function of the three.",
            )

    def one(state: Any, obs: Any, made: Any) -> Tensor:
        return method.value(state, *tree_map(lambda x: x[None], (obs, made)))[0]

    with naming("value under torch.func.vmap, over seeds and environments,"):
        plans = stack([method.act(state, obs, key) for state in states])
        together = vmap(vmap(one, in_dims=(None, 0, 0)), in_dims=(0, None, 0))(
            stack(states), obs, plans
        )
    require(
        torch.allclose(together, torch.stack(alone), rtol=1e-4, atol=1e-4),
        "the value of a decision depends on what is beside it: look at each observation and seed alone.",
    )
    return None


def check_works_for_chunks(method: Method, spec: Spec = SPEC) -> Note:
    """A chunked view asks for h times the actions and hands over its own batches; nothing else changes."""
    if spec.discrete:
        return "learns discrete actions, which are not chunked"
    needs, h, k = getattr(method, "needs", ()), 4, n_minibatches(method)
    if type(view_for(needs, spec)) is not NStep:
        return f"learns through {type(view_for(needs, spec)).__name__} alone"
    pipeline = make_pipeline(
        fake_data(spec), view=Chunk(h, spec.gamma), batch_size=BATCH, needs=needs
    )
    wide = pipeline.spec(spec)
    with naming(f"with spec.action_dim = {wide.action_dim}, init, update or act"):
        state = method.init(rng.key(0), wide)
        state, _ = method.update(state, pipeline.sample(rng.key(1), k), rng.key(2))
        action = actions_of(method.act(state, fake_batch(spec, size=3).obs, rng.key(3)))
    require(
        action.shape == (3, wide.action_dim),
        f"act returned {tuple(action.shape)} where spec.action_dim is {wide.action_dim}: take all sizes from the spec.",
    )
    return None
