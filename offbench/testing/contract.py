"""The contract of a method, as code that an outside package can run.

    from offbench.testing import check_method
    check_method(MyMethod(hidden=(16, 16)))

Every check is a function named for the property it holds, runs alone on fakes made from a Spec (no
environment, no dataset), and raises AssertionError with one sentence that says what the method did
and how to put it right. A check may return a note, which is information and no judgement.

A method is seen through its numbers alone, so this remains for a test against a reference:
a detach that is missing within one field of the state other than in a target or a scale (the shift
inside a soft maximum); a loss that leaks into a field whose own loss reads the other field anyway (see
check_a_loss_trains_one_part); and which fields a loss should read. Gradients are seen where they go
through offbench.nn.optim; other optimisers are not judged by them.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, ReplayData, from_episodes
from offbench.data.views import Chunk, NStep, View, Window
from offbench.errors import UserError
from offbench.nn.optim import Adam, AdamState, AdamW
from offbench.training.engine import Engine
from offbench.training.step import initial_carry, make_step, n_minibatches, stack, unstack
from offbench.types import Batch, Method, Plan, Spec

SPEC = Spec(obs_dim=5, action_dim=2, gamma=0.99, max_episode_steps=100)
# small: a contract is about meaning, not about learning
BATCH = 16
Note = str | None
Check = Callable[..., Note]


# --- fakes


def fake_batch(
    spec: Spec = SPEC,
    *,
    size: int = BATCH,
    minibatches: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    needs: Sequence[str] = (),
) -> Batch:
    """Random elements of the right shapes, discount gamma; a leading axis when `minibatches` > 1.

    With `needs` they are drawn from fake data through the view and the extras that these ask for.
    """
    if needs:
        data = fake_data(environment_spec(spec), seed=seed, dtype=dtype)
        view = view_for(needs, spec)
        pipeline = make_pipeline(data, view=view, batch_size=size, needs=needs)
        batch = pipeline.sample(rng.key(seed), minibatches)
        return batch._replace(discount=torch.full_like(batch.discount, spec.gamma))
    lead = (size,) if minibatches == 1 else (minibatches, size)
    k = rng.split(rng.key(seed), 4)
    return Batch(
        obs=rng.normal(k[0], (*lead, spec.obs_dim), dtype),
        action=_fake_action(k[1], (*lead, spec.action_dim), dtype, spec),
        reward=rng.normal(k[2], lead, dtype),
        discount=torch.full(lead, spec.gamma, dtype=dtype),
        next_obs=rng.normal(k[3], (*lead, spec.obs_dim), dtype),
    )


def _fake_action(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype, spec: Spec) -> Tensor:
    draws = rng.normal(key, shape, dtype)
    if spec.discrete:
        return torch.nn.functional.one_hot(draws.argmax(-1), shape[-1]).to(dtype)
    return draws.tanh()


def environment_spec(spec: Spec) -> Spec:
    """The spec before a chunked view: one step's actions."""
    return spec._replace(action_dim=spec.action_dim // spec.chunk, chunk=1)


def sized(cls: type, hidden: tuple[int, ...]) -> Any:
    """The method with networks of these widths, whatever it calls them, at full rate at once."""
    small = {"hidden": hidden, "width": hidden[0], "layers": len(hidden), "heads": 1, "warmup": 1}
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in small.items() if name in names})


SMALL = {"hidden": (16,), "width": 16, "layers": 1, "heads": 1, "flow_steps": 2, "n_proposals": 2}


def small(method: Any) -> Any:
    """The method with small networks and few repetitions, where its fields have the names that ours have.

    What a contract says does not depend on them, and what it costs does. A method that refuses them
    stays as it is.
    """
    names = {field.name for field in dataclasses.fields(method)}
    try:
        return dataclasses.replace(method, **{k: v for k, v in SMALL.items() if k in names})
    except (UserError, ValueError):
        return method


def spec_for(method: Method, spec: Spec = SPEC) -> Spec:
    """The spec a method meets: discrete, or chunked, where that is what it learns from."""
    if getattr(method, "actions", "continuous") == "discrete":
        spec = spec._replace(discrete=True, action_dim=max(spec.action_dim, 3))
    return view_for(getattr(method, "needs", ()), spec).spec(spec)


def view_for(needs: Sequence[str], spec: Spec = SPEC) -> View | Window:
    """A view that has what the extras in `needs` are made of."""
    if {"valid", "prefixes"} & set(needs):
        return Chunk(3, spec.gamma, pad=True)
    return Window(5, spec.gamma) if "context" in needs else NStep(1, spec.gamma)


def fake_data(
    spec: Spec = SPEC, *, episodes: int = 40, seed: int = 0, dtype: torch.dtype = torch.float32
) -> ReplayData:
    """Ragged episodes of 1 to 30 steps, every second one ended by a terminal, returns that differ."""

    def episode(i: int) -> Episode:
        k = rng.split(rng.fold(rng.key(seed), i), 4)
        n = 1 if i == 0 else 1 + int(rng.randint(k[0], (), min(30, spec.max_episode_steps)))
        terminal = torch.zeros(n, dtype=torch.bool)
        terminal[-1] = i % 2 == 0
        obs = rng.normal(k[1], (n + 1, spec.obs_dim), torch.float32)
        action = _fake_action(k[2], (n, spec.action_dim), torch.float32, spec)
        reward = rng.normal(k[3], (n,), torch.float32) + i / episodes
        return Episode(obs.numpy(), action.numpy(), reward.numpy(), terminal.numpy())

    data = from_episodes(map(episode, range(episodes)), name="fake data")
    return data._replace(
        obs=data.obs.to(dtype), action=data.action.to(dtype), reward=data.reward.to(dtype)
    )


# --- helpers


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)


@contextmanager
def _doing(what: str):
    """An exception of the method becomes a sentence which says where it was raised."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise AssertionError(f"{what} raised {type(error).__name__}: {line}") from error


def _close(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Same structure and shapes, and values within a relative and absolute tolerance."""
    if tree_structure(a) != tree_structure(b):
        return False
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    if tolerance == 0:
        return all(torch.equal(x, y) for x, y in pairs)
    return all(
        x.shape == y.shape
        and torch.allclose(x.double(), y.double(), rtol=tolerance, atol=tolerance)
        for x, y in pairs
    )


def _problem(method: Method, spec: Spec, *, seed: int = 0) -> tuple[Any, Batch, Tensor]:
    """A state, a batch and a key of the method's own shapes."""
    with _doing("init"):
        state = method.init(rng.key(seed), spec)
    return (
        state,
        _batch(method, spec, seed=seed + 1),
        rng.key(seed + 2),
    )


def _batch(method: Method, spec: Spec, *, seed: int = 0) -> Batch:
    """What one update of the method consumes."""
    needs = getattr(method, "needs", ())
    return fake_batch(spec, minibatches=n_minibatches(method), seed=seed, needs=needs)


def _seen(method: Method, spec: Spec, n: int, *, seed: int = 0) -> Any:
    """Observations (n, ...) as `act` sees them: those of a batch."""
    batch = fake_batch(spec, size=max(n, 1), seed=seed, needs=getattr(method, "needs", ()))
    return tree_map(lambda x: x[:n], batch.obs)


def _planned(made: Any) -> Tensor:
    """The actions of what `act` returned."""
    return made.action if isinstance(made, Plan) else made


def _update(method: Method, state: Any, batch: Batch, key: Tensor) -> tuple[Any, dict]:
    """One update on copies, so that a method that writes into its inputs fails in one check only."""
    with _doing("update"):
        return method.update(*tree_map(torch.clone, (state, batch, key)))


# --- the checks


def check_hparams_are_plain(method: Method, spec: Spec = SPEC) -> Note:
    """Configuration is visible: a frozen keyword-only dataclass of JSON values, and nothing beside it."""
    name = type(method).__name__
    _require(
        dataclasses.is_dataclass(method) and type(method).__dataclass_params__.frozen,
        f"{name} is not a frozen dataclass: decorate it with @dataclass(frozen=True, kw_only=True).",
    )
    for field in dataclasses.fields(method):
        _require(
            field.kw_only,
            f"{name}.{field.name} can be given by position: add kw_only=True to the dataclass.",
        )
        try:
            json.dumps(getattr(method, field.name))
        except TypeError:
            kind = type(getattr(method, field.name)).__name__
            raise AssertionError(
                f"{name}.{field.name} holds a {kind}, which a record cannot store: use numbers, "
                "strings, booleans and tuples of them."
            ) from None
    hidden = set(getattr(method, "__dict__", {})) - {
        field.name for field in dataclasses.fields(method)
    }
    _require(
        not hidden,
        f"{name} keeps {sorted(hidden)} beside its fields: make them fields, or part of the state.",
    )
    _require(
        dataclasses.replace(method) == method,
        f"a copy of {name} with the same fields is not equal to it: the constructor must not change its arguments.",
    )
    k = n_minibatches(method)
    _require(
        isinstance(k, int) and k >= 1,
        f"{name}.minibatches is {k!r}: it must be an integer of at least 1.",
    )


def check_init_is_a_function_of_the_key(method: Method, spec: Spec = SPEC) -> Note:
    """A seed's first state depends on its key and nothing else."""
    before = torch.get_rng_state()
    with _doing("init"):
        a, b, other = (method.init(rng.key(seed), spec) for seed in (0, 0, 1))
    touched = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    leaves = tree_leaves(a)
    _require(
        bool(leaves) and all(isinstance(x, Tensor) for x in leaves),
        "init returned leaves that are not tensors: hold every part of the state in a tensor, constants in the fields.",
    )
    _require(
        _close(a, b) and not touched,
        "init gave different states for one key or used torch's global generator: draw everything "
        "through offbench.rng from the key.",
    )
    _require(
        not _close(a, other),
        "init gave the same state for two keys, so all seeds would start alike: draw the weights from the key.",
    )


def check_update_is_pure(method: Method, spec: Spec = SPEC) -> Note:
    """Inputs stay as they were; the same inputs give the same outputs."""
    inputs = _problem(method, spec)
    copy = tree_map(torch.clone, inputs)
    with _doing("update"):
        first = method.update(*inputs)
        _require(
            _close(inputs, copy),
            "update wrote into its state, batch or key: return new tensors and use no in-place operation on an input.",
        )
        second = method.update(*inputs)
    _require(
        _close(first, second),
        "update gave two results for the same inputs: keep counters and buffers in the state and "
        "draw noise from the key through offbench.rng.",
    )


def check_state_is_a_fixed_point_of_shape(method: Method, spec: Spec = SPEC) -> Note:
    """The state keeps its structure, shapes, types and device, so an update can be captured and repeated."""
    old, batch, key = _problem(method, spec)
    new, _ = _update(method, old, batch, key)
    _require(
        tree_structure(old) == tree_structure(new),
        "update returned a state of another structure than init: return the same NamedTuple with the same leaves.",
    )
    for i, (x, y) in enumerate(zip(tree_leaves(old), tree_leaves(new), strict=True)):
        _require(
            isinstance(y, Tensor) and (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device),
            f"update changed leaf {i} of the state from {_describe(x)} to {_describe(y)}: let init "
            "make it as update returns it.",
        )


def _describe(x: Any) -> str:
    return (
        f"{x.dtype} {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
    )


_VMAP_ADVICE = (
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


def check_seed_axis(method: Method, spec: Spec = SPEC) -> Note:
    """Three seeds under vmap equal each of them alone."""
    problems = [_problem(method, spec, seed=seed) for seed in (0, 10, 20)]
    alone = [_update(method, *problem) for problem in problems]
    try:
        together = vmap(method.update)(*stack(problems))
    except Exception as error:
        text = str(error)
        for symptom, sentence in _VMAP_ADVICE:
            if symptom in text:
                raise AssertionError(sentence) from error
        line = (text.strip().splitlines() or ["no message"])[0]
        raise AssertionError(
            f"update does not run under torch.func.vmap, which adds the seed axis ({type(error).__name__}: {line})."
        ) from error
    for i, want in enumerate(alone):
        _require(
            _close(unstack(together, i), want, 1e-4),
            "a seed in a stack of three differs from the same seed alone: update must not look beyond its own seed.",
        )


def _partly_terminal(batch: Batch) -> tuple[Batch, Tensor]:
    """The batch with discount 0 in every second element of every minibatch, and which those are."""
    ended = (torch.arange(batch.discount.shape[-1]) % 2 == 0).expand_as(batch.discount)
    return _discounted(batch, torch.where(ended, 0.0, 1.0).to(batch.discount)), ended


def _discounted(batch: Batch, factor: Tensor) -> Batch:
    """Every bootstrap factor of an element times `factor` (..., B), those of its prefixes too."""
    extras = dict(batch.extras or {})
    if "prefix_discount" in extras:
        extras["prefix_discount"] = extras["prefix_discount"] * factor[..., None]
    return batch._replace(discount=batch.discount * factor, extras=extras or batch.extras)


def _moved(batch: Batch, where: Tensor) -> Batch:
    """Every next observation of the elements in `where` (..., B) moved far away."""
    far = 7 * where.to(batch.next_obs.dtype)[..., None]
    extras = dict(batch.extras or {})
    if "prefix_obs" in extras:
        extras["prefix_obs"] = extras["prefix_obs"] + far[..., None]
    return batch._replace(next_obs=batch.next_obs + far, extras=extras or batch.extras)


def check_bootstrap_only_through_discount(method: Method, spec: Spec = SPEC) -> Note:
    """Where discount is 0 the next observation changes nothing: the terminal bug."""
    state, batch, key = _problem(method, spec)
    batch, ended = _partly_terminal(batch)
    moved = _moved(batch, ended)
    a, b = _update(method, state, batch, key)[0], _update(method, state, moved, key)[0]
    _require(
        _close(a, b, 1e-6),
        "next_obs changed the update where discount is 0, after a terminal: multiply every use of "
        "the next observation's value by batch.discount.",
    )


def check_discount_scales_the_bootstrap(method: Method, spec: Spec = SPEC) -> Note:
    """A method that uses next_obs scales it by discount, whatever its size: n steps have gamma ** n."""
    state, batch, key = _problem(method, spec)
    base = _update(method, state, batch, key)[0]
    moved = _update(method, state, _moved(batch, torch.ones_like(batch.discount)), key)[0]
    if _close(base, moved, 1e-6):
        return "does not bootstrap: next_obs has no influence on the update"
    halved = _update(method, state, _discounted(batch, 0.5 * torch.ones_like(batch.discount)), key)[
        0
    ]
    _require(
        not _close(base, halved, 1e-6),
        "the size of discount has no influence on the update: use batch.discount itself as the "
        "bootstrap factor, not a gamma and a done flag.",
    )
    return "bootstraps where discount > 0, time limits included"


# --- what a loss does with the parts of a state


PAY, PAID_UPDATES = 10.0, 40
_last_paid: list[tuple[Method, Spec, tuple[Any, ...]]] = []


def _rewarded(batch: Batch, reward: Tensor) -> Batch:
    """The batch with these rewards (..., B), those of its prefixes too."""
    extras = dict(batch.extras or {})
    if "prefix_reward" in extras:
        extras["prefix_reward"] = reward[..., None].expand_as(extras["prefix_reward"])
    return batch._replace(reward=reward, extras=extras or batch.extras)


def _double(tree: Any) -> Any:
    """Copies in float64, where a difference of two gradients keeps ten digits."""
    return tree_map(lambda x: x.double() if x.is_floating_point() else x.clone(), tree)


def _learned_from_pay(method: Method, spec: Spec) -> tuple[Any, ...]:
    """The states after updates on rewards of 10 without bootstrap, of -10, and of both in turn by row.

    Only the last answer is kept: two checks in a row ask for it.
    """
    if _last_paid and _last_paid[0][0] is method and _last_paid[0][1] == spec:
        return _last_paid[0][2]
    start, batch, key = _problem(method, spec)
    batch = _discounted(batch, torch.zeros_like(batch.discount))
    hasty, ends = _hasty(method), []
    turns = torch.arange(batch.reward.shape[-1]) % 2 * 2 - 1
    for signs in (torch.ones_like(turns), -torch.ones_like(turns), turns):
        pay = (PAY * signs).to(batch.reward).expand_as(batch.reward)
        state, paid = start, _rewarded(batch, pay)
        for i in range(PAID_UPDATES):
            state, _ = _update(hasty, state, paid, rng.fold(key, i))
        ends.append(_double(state))
    _last_paid[:] = [(method, spec, tuple(ends))]
    return tuple(ends)


def _hasty(method: Method) -> Method:
    """The method with larger steps, where its fields have the names that ours have."""
    names = [field.name for field in dataclasses.fields(method)]
    rates = {
        name: 10 * getattr(method, name) for name in names if name == "lr" or name[-3:] == "_lr"
    }
    return dataclasses.replace(
        method, **rates, **({"polyak_rate": 0.2} if "polyak_rate" in names else {})
    )


def _numbers(state: Any) -> Tensor:
    """Every real number of a state in one vector."""
    return torch.cat([x.flatten() for x in tree_leaves(state) if x.is_floating_point()])


def check_bootstrap_is_added(method: Method, spec: Spec = SPEC) -> Note:
    """Who learned from large rewards bootstraps from larger values than who learned from small ones.

    The value is read off the update: how far the discount moves it, in units of what a reward of 1
    moves it. A bootstrap that is subtracted shows the smaller value for the larger rewards. Rates of 1e-2 and
    more may not learn in 40 updates which rewards are larger: judge ordinary settings.
    """
    start, batch, key = _double(_problem(method, spec))
    none = _discounted(batch, torch.zeros_like(batch.discount))
    learned = lambda state, batch: _numbers(_update(method, state, batch, key)[0])
    if _close(learned(start, batch), learned(start, none), 1e-9):
        return "does not bootstrap: discount has no influence on the update"

    def bootstrapped(state: Any) -> float:
        base = learned(state, none)
        by_reward = learned(state, _rewarded(none, none.reward + 1)) - base
        return float((learned(state, batch) - base) @ by_reward / (by_reward @ by_reward))

    rich, poor = (bootstrapped(state) for state in _learned_from_pay(method, spec)[:2])
    _require(
        rich > poor,
        f"the update adds {rich:.2g} for next_obs after learning from large rewards and {poor:.2g} after "
        "small ones: the target must be reward + discount * next value, look for a turned sign.",
    )
    return None


@contextmanager
def _steps_of_adam():
    """Collects (parameters, gradients) of every step of offbench.nn.optim, in order."""
    seen: list[tuple[list[Tensor], list[Tensor]]] = []
    honest = {optimiser: optimiser.step for optimiser in (Adam, AdamW)}

    def watched(step: Callable) -> Callable:
        def watch(self: Any, grads: Any, state: Any, params: Any) -> Any:
            seen.append((tree_leaves(params), tree_leaves(grads)))
            return step(self, grads, state, params)

        return watch

    try:
        for optimiser, step in honest.items():
            optimiser.step = watched(step)
        yield seen
    finally:
        for optimiser, step in honest.items():
            optimiser.step = step


def _parts(state: Any) -> dict[str, Any]:
    """The fields of a state that may hold parameters: all but optimisers and counters."""
    return {
        name: part
        for name, part in (state._asdict() if hasattr(state, "_asdict") else {}).items()
        if not isinstance(part, AdamState)
        and tree_leaves(part)
        and all(x.is_floating_point() for x in tree_leaves(part))
    }


def _gradients(method: Method, state: Any, batch: Batch, key: Tensor) -> dict[str, Tensor]:
    """Each trained field of the state -> the first gradient an update takes of it, as one vector."""
    # a target may be the very tensors of what it follows
    state = tree_map(torch.clone, state)
    with _steps_of_adam() as seen, _doing("update"):
        method.update(state, batch, key)
    first: dict[int, Tensor] = {}
    for params, grads in seen:
        for x, g in zip(params, grads, strict=True):
            first.setdefault(id(x), g)
    found = {}
    for name, part in _parts(state).items():
        pieces = [first[id(x)].flatten() for x in tree_leaves(part) if id(x) in first]
        if pieces:
            found[name] = torch.cat(pieces)
    return found


NOT_SEEN = "not judged: no gradient of a field of the state went through offbench.nn.optim"


def check_targets_are_constants(method: Method, spec: Spec = SPEC) -> Note:
    """What a reward teaches does not depend on next_obs, wherever a gradient is linear in the reward."""
    state, batch, key = _double(_problem(method, spec))
    # no error so large that a Huber loss is linear
    batch = _rewarded(batch, 0.1 * batch.reward)

    def lesson(batch: Batch, step: float) -> dict[str, Tensor]:
        more = _gradients(method, state, _rewarded(batch, batch.reward + step), key)
        less = _gradients(method, state, batch, key)
        return {name: (more[name] - less[name]) / step for name in less}

    once, twice = lesson(batch, 0.01), lesson(batch, 0.02)
    # a little, for the same reason
    moved = lesson(_moved(batch, torch.full_like(batch.discount, 0.02)), 0.01)
    same = lambda a, b: bool((a - b).norm() <= 1e-5 * (a.norm() + b.norm()) + 1e-9)
    linear = [name for name in once if same(once[name], twice[name])]
    for name in linear:
        _require(
            same(once[name], moved[name]),
            f"what a reward teaches `{name}` depends on next_obs, so a gradient flows through the next "
            "value: detach the target, and give a target network no gradient.",
        )
    others = ", ".join(name for name in once if name not in linear)
    if not once:
        return NOT_SEEN
    return f"not judged, not linear in the reward: {others}" if others else None


PROBES, NUDGE = 2, 1e-6


class Influence(NamedTuple):
    """How the gradients of fields answer as a field moves along random directions."""

    gradient: dict[str, Tensor]
    way: dict[tuple[str, int], Tensor]  # (moved field, probe) -> direction
    answer: dict[tuple[str, str, int], Tensor]  # (field, moved field, probe) -> derivative

    def strength(self, field: str, moved: str) -> float:
        answers = [self.answer[field, moved, p].norm() for p in range(PROBES)]
        return float(max(answers) / (self.gradient[field].norm() + 1e-12))


def _influence(method: Method, state: Any, batch: Batch, key: Tensor) -> Influence | None:
    """None where the gradients are no function of the inputs, so differences say nothing."""
    base, way, answer = _gradients(method, state, batch, key), {}, {}
    for i, (moved, part) in enumerate(_parts(state).items()):
        leaves = tree_leaves(part)
        for p in range(PROBES):
            keys = rng.split(rng.fold(rng.key(i), p), len(leaves))
            steps = [rng.normal(k, tuple(x.shape), x.dtype) for k, x in zip(keys, leaves)]
            way[moved, p] = torch.cat([x.flatten() for x in steps])
            ends = []
            for size in (NUDGE, -NUDGE):
                there = [x + size * step for x, step in zip(leaves, steps)]
                nudged = state._replace(**{moved: tree_unflatten(there, tree_structure(part))})
                ends.append(_gradients(method, nudged, batch, key))
            for field in base:
                answer[field, moved, p] = (ends[0][field] - ends[1][field]) / (2 * NUDGE)
    again = _gradients(method, state, batch, key)
    return Influence(base, way, answer) if _close(base, again) else None


def check_a_loss_trains_one_part(method: Method, spec: Spec = SPEC) -> Note:
    """No loss has gradients in two fields of the state, unless `trained_together` names them.

    The second derivatives of one loss by two fields are equal whichever comes first. Two losses that
    merely read each other's fields have no such symmetry, so its appearance is a missing detach.
    Judged with a bootstrap and without one, which takes the targets' own dependence away. A field whose
    own loss, bootstrap aside, reads the other field as well hides a leak: CQL's penalty samples the
    actor, so a Q of the actor's loss that trained its critic would pass here.
    """
    state, batch, key = _double(_problem(method, spec))
    together = [set(group) for group in getattr(method, "trained_together", ())]
    for discounted in (batch, _discounted(batch, torch.zeros_like(batch.discount))):
        found = _influence(method, state, discounted, key)
        if found is None or not found.gradient:
            return NOT_SEEN
        for a, b in combinations(found.gradient, 2):
            here = torch.stack([found.way[b, p] @ found.answer[b, a, p] for p in range(PROBES)])
            there = torch.stack([found.way[a, p] @ found.answer[a, b, p] for p in range(PROBES)])
            size = torch.maximum(here.abs(), there.abs())
            _require(
                not bool(((here - there).abs() <= 0.02 * size).all() and (size > 1e-6).all())
                or any({a, b} <= group for group in together),
                f"one loss trains both `{a}` and `{b}`: detach what it reads of the other, or if both are meant "
                f"to learn from it say trained_together: ClassVar = (({a!r}, {b!r}),).",
            )
    return None


def _twins(batch: Batch, row: int) -> Batch:
    """A batch of one element, twice."""
    axis = batch.reward.ndim - 1
    return tree_map(lambda x: x.index_select(axis, torch.tensor([row, row])), batch)


def check_what_a_part_learns_from_is_fixed(method: Method, spec: Spec = SPEC) -> Note:
    """A field's gradient reads the same other fields at any state and in any batch.

    A scale that is not detached cancels what it scales where all values have one sign, as in a batch of
    one element: Q / mean |Q| is then the sign. A temperature that is not detached cancels at its first value, 1.
    Settings by which a clip is flat in every element alone look the same: judge ordinary ones.
    """
    start, batch, key = _double(_problem(method, spec))
    if len(_parts(start)) < 2:
        return None
    *_, mixed = _learned_from_pay(method, spec)
    # see check_targets_are_constants
    batch = _rewarded(batch, 0.1 * batch.reward)
    cases = [(start, batch), (mixed, batch), *((mixed, _twins(batch, row)) for row in range(3))]
    found = [_influence(method, state, some, key) for state, some in cases]
    if None in found or not found[0].gradient:
        return NOT_SEEN
    for field in found[0].gradient:
        for other in _parts(start):
            first, second, *single = (case.strength(field, other) for case in found)
            # one element alone may sit where a clip or a Huber loss is flat, three do not
            seen = (first, second, max(single))
            _require(
                other == field or min(seen) > 1e-7 or max(seen) < 1e-3,
                f"`{field}` learns from `{other}` in some states or batches and not at all in others: look for "
                "a scale or factor that is not detached and cancels what it multiplies.",
            )
    return None


def check_metrics_are_scalars(method: Method, spec: Spec = SPEC) -> Note:
    """Metrics are finite scalar tensors on the device, the same keys at every update."""
    state, batch, key = _problem(method, spec)
    state, first = _update(method, state, batch, key)
    _, second = _update(method, state, _batch(method, spec, seed=9), key)
    _require(
        isinstance(first, dict),
        f"update returned metrics as a {type(first).__name__}: return a dict of scalar tensors.",
    )
    _require(
        list(first) == list(second),
        f"metrics changed from {list(first)} to {list(second)}: return the same keys at every update.",
    )
    for name, value in first.items():
        _require(
            isinstance(name, str) and isinstance(value, Tensor) and value.shape == (),
            f"metric {name!r} is {_describe(value)}: return a scalar tensor, for instance its mean.",
        )
        _require(
            bool(value.isfinite()),
            f"metric {name!r} is {float(value)} on ordinary data: the loss must be finite.",
        )


def check_act(method: Method, spec: Spec = SPEC) -> Note:
    """(E, O) -> (E, A) in [-1, 1], for one environment, many and none; each looks at its own alone."""
    state, _, key = _problem(method, spec)
    for n in (1, 7, 0):
        # where an unbounded actor shows
        far = lambda x: 100 * x if x.is_floating_point() else x
        obs = tree_map(far, _seen(method, spec, n))
        with _doing(f"act on {n} observations"):
            made = method.act(state, obs, key)
        action, dtype = (
            _planned(made),
            next(x.dtype for x in tree_leaves(obs) if x.is_floating_point()),
        )
        _require(
            isinstance(action, Tensor)
            and action.shape == (n, spec.action_dim)
            and action.dtype == dtype,
            f"act returned {_describe(action)} for {n} observations: return {dtype} {(n, spec.action_dim)}.",
        )
        _require(
            not isinstance(made, Plan)
            or (
                made.length.shape == (n,)
                and bool(((made.length >= 1) & (made.length <= spec.chunk)).all())
            ),
            f"act returned a Plan whose length is not (n,) numbers from 1 to spec.chunk = {spec.chunk}.",
        )
        _require(
            bool((action.abs() <= 1).all()),
            "act returned actions outside [-1, 1] or not finite: end with tanh or clamp(-1, 1).",
        )
    _require(
        _acts_row_by_row(method, state, spec, key),
        "the action for an observation depends on the others of its batch, which are other environments: "
        "look at each row alone, and centre or scale by nothing taken over the batch.",
    )


def _acts_row_by_row(method: Method, state: Any, spec: Spec, key: Tensor) -> bool:
    """Whether the first half of a batch is acted on alike when the second half moves far away."""
    obs, half = _seen(method, spec, BATCH), BATCH // 2
    far = lambda x: torch.cat([x[:half], 30 * x[half:] + 30 if x.is_floating_point() else x[half:]])
    made, before = [], torch.get_rng_state()
    for some in (obs, tree_map(far, obs)):
        with _doing("act"):
            made.append(tree_map(lambda x: x[:half], method.act(state, some, key)))
        # what torch's global generator does to an action is another check's to find
        torch.set_rng_state(before)
    return _close(*made, 1e-4)


def check_act_draws_only_from_its_key(method: Method, spec: Spec = SPEC) -> Note:
    """One state, observation and key give one action; acting changes nothing; seeds act under vmap."""
    problems = [_problem(method, spec, seed=seed) for seed in (0, 10, 20)]
    states, keys = [p[0] for p in problems], [p[2] for p in problems]
    obs = _seen(method, spec, BATCH)
    inputs = tree_map(torch.clone, (states[0], obs, keys[0]))
    before = torch.get_rng_state()
    with _doing("act"):
        first, second = (_planned(method.act(*inputs)) for _ in range(2))
    touched = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    _require(
        torch.equal(first, second) and not touched,
        "act gave two actions for one key or used torch's global generator: draw from the key through offbench.rng.",
    )
    _require(
        _close(inputs, (states[0], obs, keys[0])),
        "act wrote into its inputs: it must change neither state nor observation.",
    )
    with _doing("act under torch.func.vmap, which adds the seed axis,"):
        together = vmap(method.act, in_dims=(0, None, 0))(stack(states), obs, torch.stack(keys))
    together = _planned(together)
    _require(
        torch.allclose(together[0], first, atol=1e-4),
        "a seed in a stack of three acts differently from the same seed alone: act must not look beyond its own seed.",
    )


def check_value(method: Method, spec: Spec = SPEC) -> Note:
    """A number per decision for what `act` made of one observation alone, under vmap over both."""
    if not hasattr(method, "value"):
        return "says no values of its decisions"
    problems = [_problem(method, spec, seed=seed) for seed in (0, 10, 20)]
    states, key, obs = [p[0] for p in problems], problems[0][2], _seen(method, spec, 7)
    with _doing("value"):
        alone = []
        for state in states:
            made = method.act(state, obs, key)
            inputs = tree_map(torch.clone, (state, obs, made))
            alone.append(method.value(*inputs))
            _require(
                _close(inputs, (state, obs, made))
                and alone[-1].shape == (7,)
                and bool(alone[-1].isfinite().all())
                and torch.equal(alone[-1], method.value(*inputs)),
                f"value returned {_describe(alone[-1])} for 7 observations, was not finite, differed from one "
                "call to the next or wrote into its inputs: return (7,) numbers, a function of the three.",
            )

    def one(state: Any, obs: Any, made: Any) -> Tensor:
        return method.value(state, *tree_map(lambda x: x[None], (obs, made)))[0]

    with _doing("value under torch.func.vmap, over seeds and environments,"):
        plans = stack([method.act(state, obs, key) for state in states])
        together = vmap(vmap(one, in_dims=(None, 0, 0)), in_dims=(0, None, 0))(
            stack(states), obs, plans
        )
    _require(
        torch.allclose(together, torch.stack(alone), rtol=1e-4, atol=1e-4),
        "the value of a decision depends on what is beside it: look at each observation and seed alone.",
    )


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
    with _doing(f"with spec.action_dim = {wide.action_dim}, init, update or act"):
        state = method.init(rng.key(0), wide)
        state, _ = method.update(state, pipeline.sample(rng.key(1), k), rng.key(2))
        action = _planned(method.act(state, fake_batch(spec, size=3).obs, rng.key(3)))
    _require(
        action.shape == (3, wide.action_dim),
        f"act returned {tuple(action.shape)} where spec.action_dim is {wide.action_dim}: take all sizes from the spec.",
    )


def check_float64_works(method: Method, spec: Spec = SPEC) -> Note:
    """With a float64 state and batch everything stays float64: how losses are tested against references."""

    def double(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    state, batch, key = tree_map(double, _problem(method, spec))
    with _doing("with float64 inputs, update or act"):
        new, metrics = method.update(state, batch, key)
        obs = tree_map(double, _seen(method, spec, BATCH))
        action = _planned(method.act(state, obs, key))
    stayed = all(
        y.dtype == x.dtype
        for x, y in zip(tree_leaves(state), tree_leaves(new), strict=True)
        if x.is_floating_point()
    )
    _require(
        stayed
        and action.dtype == torch.float64
        and all(m.dtype == torch.float64 for m in tree_leaves(metrics)),
        "with float64 inputs the state, the metrics or the action came back in another type: make "
        "new tensors with the dtype of an input, and call neither float() nor .float().",
    )


def check_resume(method: Method, spec: Spec = SPEC) -> Note:
    """15 updates, a restart and 15 more equal 30 bit for bit, and the traced program follows them."""
    needs, data = getattr(method, "needs", ()), fake_data(environment_spec(spec))
    view = view_for(needs, spec)
    pipeline = make_pipeline(data, view=view, batch_size=BATCH, needs=needs)
    step = make_step(method, pipeline)
    with _doing("in the engine (see check_seed_axis), init or update"):
        carry = initial_carry(method, spec, (0, 1))
        # "vmap" calls the method's Python at every update
        straight = Engine(step, carry, backend="vmap")
        straight.run(15)
        half = tree_map(torch.clone, straight.carry)
        straight.run(15)
        rest = Engine(step, half, backend="vmap")
        rest.run(15)
        traced = Engine(step, carry, backend="eager")
        traced.run(30)
    _require(
        _close(rest.carry, straight.carry),
        "15 updates, a restart and 15 updates differ from 30: something is remembered outside the "
        "state (a counter, a cache, a module).",
    )
    _require(
        _close(traced.carry, straight.carry, 1e-2),
        "the traced program differs from calling update 30 times: update must not depend on Python "
        "values that change between calls.",
    )


def check_compiles(method: Method, spec: Spec = SPEC, *, backend: str = "aot_eager") -> Note:
    """torch.compile takes update whole. `backend="inductor"` also generates the kernels (minutes)."""
    problem = _problem(method, spec)
    want = _update(method, *problem)
    torch._dynamo.reset()
    try:
        got = torch.compile(method.update, fullgraph=True, backend=backend)(
            *tree_map(torch.clone, problem)
        )
    except Exception as error:
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise AssertionError(
            f"torch.compile(update, fullgraph=True) broke the graph ({line}): use only tensor "
            "operations in update, no printing, files or clocks."
        ) from error
    finally:
        torch._dynamo.reset()
    _require(
        _close(got, want, 1e-4),
        "the compiled update gives another result than the plain one: it must depend on its arguments alone.",
    )


CHECKS: list[Check] = [
    check_hparams_are_plain,
    check_init_is_a_function_of_the_key,
    check_update_is_pure,
    check_state_is_a_fixed_point_of_shape,
    check_seed_axis,
    check_bootstrap_only_through_discount,
    check_discount_scales_the_bootstrap,
    check_bootstrap_is_added,
    check_targets_are_constants,
    check_a_loss_trains_one_part,
    check_what_a_part_learns_from_is_fixed,
    check_metrics_are_scalars,
    check_act,
    check_act_draws_only_from_its_key,
    check_value,
    check_works_for_chunks,
    check_float64_works,
    check_resume,
    check_compiles,
]


def check_method(
    method: Method, *, spec: Spec = SPEC, report: Callable[[str], None] | None = print
) -> None:
    """Runs every check, reports a line for each, and raises AssertionError naming those that failed.

    `spec` is an environment's; the checks run on what the method's `actions` and `needs` make of it,
    and on small networks (`small`).
    """
    failures = []
    shrunk = small(method) if dataclasses.is_dataclass(method) else method
    spec = spec_for(shrunk, spec)
    for check in CHECKS:
        try:
            note = check(method if check is check_hparams_are_plain else shrunk, spec)
            line = f"ok      {check.__name__}" + (f": {note}" if note else "")
        except AssertionError as error:
            line = f"FAILED  {check.__name__}: {error}"
            failures.append(f"{check.__name__}: {error}")
        if report is not None:
            report(line)
    if failures:
        raise AssertionError(
            f"{type(method).__name__} fails {len(failures)} of {len(CHECKS)} checks:\n"
            + "\n".join(failures)
        )
