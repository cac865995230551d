"""The contract holds for every shipped method, and each of its checks catches the mistake it is for."""

import dataclasses
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from support.mutants import OF_THE_CONTRACT, mutated
from torch.func import grad
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.methods.cql import CQL
from offbench.methods.fql import FQL
from offbench.methods.iql import IQL
from offbench.nn import nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.testing.contract import (
    CHECKS,
    check_compiles,
    check_hparams_are_plain,
    check_init_is_a_function_of_the_key,
    check_method,
    check_metrics_are_scalars,
    check_seed_axis,
    check_update_is_pure,
    fake_batch,
    fake_data,
    small,
    spec_for,
)
from offbench.types import Plan, Spec

BY_NAME = {check.__name__: check for check in CHECKS}
CALLS = [0]  # what the broken methods below remember outside their state


# a third of all checks' time, most of it tracing and compiling
COSTLY = ("check_resume", "check_compiles")


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in COSTLY])
def test_every_shipped_method_holds_the_contract(shipped_method, name):
    method = small(shipped_method)
    BY_NAME[name](method, spec_for(method))


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTLY)
def test_every_shipped_method_resumes_and_compiles(shipped_method, name):
    method = small(shipped_method)
    BY_NAME[name](method, spec_for(method))


@pytest.mark.parametrize("name", COSTLY)
def test_a_shipped_method_resumes_and_compiles(name):
    method = small(IQL())
    BY_NAME[name](method, spec_for(method))


@pytest.mark.parametrize(
    "method",
    [FQL(normalize_q=True), pytest.param(CQL(lagrange=True), marks=pytest.mark.slow)],
    ids=lambda method: type(method).__name__,
)
def test_what_is_fixed_is_fixed_with_the_switches_on(method):
    method = small(method)
    for name in ("check_a_loss_trains_one_part", "check_what_a_part_learns_from_is_fixed"):
        BY_NAME[name](method, spec_for(method))


QUICK = {
    "TD3BC: bootstrap subtracted",
    "IQL: V learns from the actor",
    "TD3BC: scale learns",
    "DiscreteCQL: Q learns through its target",
    "IQL: acts on centred observations",
}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in OF_THE_CONTRACT]
)
def test_a_shipped_method_with_one_mistake_fails_the_check_for_it(name):
    check, cls, settings, old, new = OF_THE_CONTRACT[name]
    method = small(mutated(cls, old, new)(**settings))
    with pytest.raises(AssertionError) as found:
        BY_NAME[check](method, spec_for(method))
    assert "\n" not in str(found.value) and len(str(found.value)) < 300


class State(NamedTuple):
    actor: list
    critic: list
    target: list
    count: torch.Tensor
    opt: AdamState


class Linear:
    """A linear actor-critic that keeps the contract; every class below breaks one clause of it."""

    def init(self, key, spec):
        k_actor, k_critic = rng.split(key)
        actor = nets.mlp_init(k_actor, (spec.obs_dim, spec.action_dim))
        critic = nets.mlp_init(k_critic, (spec.obs_dim, 1))
        count = torch.zeros((), dtype=torch.int64)
        return State(actor, critic, critic, count, Adam(self.lr).init((actor, critic)))

    def update(self, state, batch, key):
        grads = grad(self.loss)((state.actor, state.critic), state, batch, key)
        (actor, critic), opt = Adam(self.lr).step(grads, state.opt, (state.actor, state.critic))
        target = polyak(state.target, critic, 0.1)
        metrics = {"q": nets.mlp(critic, batch.obs).mean()}
        return State(actor, critic, target, state.count + 1, opt), metrics

    def loss(self, params, state, batch, key):
        actor, critic = params
        target = batch.reward + self.factor(batch) * nets.mlp(state.target, batch.next_obs).squeeze(
            -1
        )
        td = torch.square(nets.mlp(critic, batch.obs).squeeze(-1) - target).mean()
        noise = 0.1 * rng.normal_like(key, batch.action)
        return td + torch.square(nets.mlp(actor, batch.obs).tanh() + noise - batch.action).mean()

    def factor(self, batch):
        return batch.discount

    def act(self, state, obs, key):
        return nets.mlp(state.actor, obs).tanh()


def hyper(cls):
    """The decorator of a method, with one hyper-parameter."""
    cls.__annotations__ = {"lr": float} | inspect.get_annotations(cls)
    cls.lr = 1e-2
    return dataclass(frozen=True, kw_only=True)(cls)


@hyper
class Good(Linear):
    pass


@hyper
class Stochastic(Linear):
    def act(self, state, obs, key):
        action = nets.mlp(state.actor, obs)
        return (action + rng.normal_like(key, action)).clamp(-1, 1)


@hyper
class ConfiguredByAFunction(Linear):
    activation: object = torch.tanh


@hyper
class DrawsWeightsFromTheGlobalGenerator(Linear):
    def init(self, key, spec):
        state = super().init(key, spec)
        return state._replace(
            target=[{n: x + torch.randn_like(x) for n, x in p.items()} for p in state.target]
        )


@hyper
class StartsEverySeedAlike(Linear):
    def init(self, key, spec):
        return super().init(rng.key(0), spec)


@hyper
class WritesIntoTheBatch(Linear):
    def update(self, state, batch, key):
        batch.reward.mul_(0.5)
        return super().update(state, batch, key)


@hyper
class ChangesATypeInTheState(Linear):
    def update(self, state, batch, key):
        new, metrics = super().update(state, batch, key)
        return new._replace(count=state.count + 1.0), metrics


@hyper
class LooksForTheStack(Linear):
    def update(self, state, batch, key):
        stacked = torch._C._functorch.is_batchedtensor(key)
        return super().update(
            state, batch._replace(reward=batch.reward + 5) if stacked else batch, key
        )


@hyper
class AddsAnUnmaskedTerm(Linear):
    def factor(self, batch):
        return batch.discount + 0.1


@hyper
class ReadsDiscountAsAFlag(Linear):
    def factor(self, batch):
        return 0.99 * (batch.discount > 0)


@hyper
class HasAGammaOfItsOwn(Linear):
    def factor(self, batch):
        return 0.99


@hyper
class ReportsAVector(Linear):
    def update(self, state, batch, key):
        new, _ = super().update(state, batch, key)
        return new, {"q": nets.mlp(new.critic, batch.obs).squeeze(-1)}


@hyper
class ActsWithoutABound(Linear):
    def act(self, state, obs, key):
        return nets.mlp(state.actor, obs)


@hyper
class ActsByTheGlobalGenerator(Linear):
    def act(self, state, obs, key):
        return (nets.mlp(state.actor, obs) + torch.randn(len(obs), 1)).clamp(-1, 1)


@hyper
class ValuesTheBatchAsAWhole(Linear):
    def value(self, state, obs, made):
        return nets.mlp(state.critic, obs).squeeze(-1) - made.mean()


@hyper
class KnowsTheNumberOfActions(Linear):
    def init(self, key, spec):
        return super().init(key, spec._replace(action_dim=2))


@hyper
class FallsBackToFloat32(Linear):
    def update(self, state, batch, key):
        new, metrics = super().update(state, batch, key)
        return new, {"q": metrics["q"].float()}


@hyper
class WarmsUpByAHiddenCounter(Linear):
    def update(self, state, batch, key):
        CALLS[0] += 1
        return super().update(
            state, batch._replace(reward=batch.reward + 5) if CALLS[0] > 30 else batch, key
        )


@hyper
class Prints(Linear):
    def update(self, state, batch, key):
        print("still training")
        return super().update(state, batch, key)


@hyper
class ReadsAValue(Linear):
    def loss(self, params, state, batch, key):
        return super().loss(params, state, batch, key) * (1 + 0 * batch.reward.mean().item())


@hyper
class BranchesOnAValue(Linear):
    def update(self, state, batch, key):
        return (
            super().update(state, batch, key)
            if batch.reward.mean() > -9
            else (state, {"q": batch.reward.mean()})
        )


@hyper
class DrawsNoiseFromTheGlobalGenerator(Linear):
    def update(self, state, batch, key):
        return super().update(
            state, batch._replace(obs=batch.obs + torch.randn_like(batch.obs)), key
        )


@hyper
class CountsItsCalls(Linear):
    def update(self, state, batch, key):
        CALLS[0] += 1
        return super().update(state, batch._replace(reward=batch.reward * (CALLS[0] % 2)), key)


@hyper
class SubtractsTheBootstrap(Linear):
    def factor(self, batch):
        return -batch.discount


@hyper
class ExecutesOneStepMoreThanItIsAskedFor(Linear):
    def act_for(self, state, obs, key, length):
        return Plan(self.act(state, obs, key), torch.full((len(obs),), length + 1))


@hyper
class ActsOnCentredObservations(Linear):
    def act(self, state, obs, key):
        return nets.mlp(state.actor, obs - obs.mean(0)).tanh()


@hyper
class LearnsThroughItsTarget(Linear):
    def loss(self, params, state, batch, key):
        return super().loss(params, state._replace(target=params[1]), batch, key)


@hyper
class WeighsTheActorByALearningCritic(Linear):
    def loss(self, params, state, batch, key):
        actor, critic = params
        error = torch.square(nets.mlp(actor, batch.obs).tanh() - batch.action).sum(-1)
        weight = nets.mlp(critic, batch.obs).squeeze(-1).exp()
        return super().loss(params, state, batch, key) + (weight * error).mean()


@hyper
class DividesByAScaleThatLearns(Linear):
    def loss(self, params, state, batch, key):
        actor, critic = params
        critic = tree_map(torch.Tensor.detach, critic)
        action = nets.mlp(actor, batch.obs).tanh().sum(-1)
        gain = nets.mlp(critic, batch.obs).squeeze(-1) * action
        return super().loss(params, state, batch, key) - gain.mean() / gain.abs().mean()


@hyper
class PredictsTheNextObservation(Linear):
    """Reads neither reward nor discount: no bootstrap."""

    def loss(self, params, state, batch, key):
        actor, critic = params
        change = (batch.next_obs - batch.obs).sum(-1, keepdim=True)
        error = torch.square(nets.mlp(critic, batch.obs) - change).mean()
        return error + torch.square(nets.mlp(actor, batch.obs).tanh() - batch.action).mean()


@hyper
class ActsInNumpy(Linear):
    def act(self, state, obs, key):
        return super().act(state, obs, key).numpy()


BROKEN = {
    ConfiguredByAFunction: "check_hparams_are_plain",
    ActsInNumpy: "check_what_is_returned",
    DrawsWeightsFromTheGlobalGenerator: "check_init_is_a_function_of_the_key",
    StartsEverySeedAlike: "check_init_is_a_function_of_the_key",
    WritesIntoTheBatch: "check_update_is_pure",
    ChangesATypeInTheState: "check_state_is_a_fixed_point_of_shape",
    LooksForTheStack: "check_seed_axis",
    AddsAnUnmaskedTerm: "check_bootstrap_only_through_discount",
    ReadsDiscountAsAFlag: "check_discount_scales_the_bootstrap",
    SubtractsTheBootstrap: "check_bootstrap_is_added",
    LearnsThroughItsTarget: "check_targets_are_constants",
    WeighsTheActorByALearningCritic: "check_a_loss_trains_one_part",
    DividesByAScaleThatLearns: "check_what_a_part_learns_from_is_fixed",
    ReportsAVector: "check_metrics_are_scalars",
    ActsWithoutABound: "check_act",
    ActsOnCentredObservations: "check_act",
    ExecutesOneStepMoreThanItIsAskedFor: "check_act",
    ActsByTheGlobalGenerator: "check_act_draws_only_from_its_key",
    ValuesTheBatchAsAWhole: "check_value",
    KnowsTheNumberOfActions: "check_works_for_chunks",
    FallsBackToFloat32: "check_float64_works",
    WarmsUpByAHiddenCounter: "check_resume",
    Prints: "check_compiles",
}


def failed(method, checks=CHECKS) -> dict[str, str]:
    """check -> sentence, for the checks that the method fails."""
    found = {}
    for check in checks:
        name, CALLS[0] = check.__name__, 0
        try:
            check(method)
        except AssertionError as error:
            found[name] = str(error)
            # the others compute with what is returned, and `check_method` leaves them out
            if check is BY_NAME["check_what_is_returned"]:
                break
    return found


def test_a_sound_method_passes_every_check_and_each_is_reported():
    lines = []
    check_method(Good(), report=lines.append)
    assert [line.split()[:2] for line in lines] == [
        ["ok", f"{name}:" if line.endswith(("included", "decisions")) else name]
        for name, line in zip(BY_NAME, lines, strict=True)
    ]
    assert any("bootstraps where discount > 0, time limits included" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN, ids=lambda c: c.__name__)
def test_a_broken_method_fails_exactly_the_check_for_its_mistake(broken):
    compiles = (
        broken is not Prints
    )  # compiling the others is a second each, and left to the slow test
    found = failed(
        broken(), [check for check in CHECKS if not (compiles and check is check_compiles)]
    )
    # the engine reads again what this one writes into
    also = ["check_resume"] if broken is WritesIntoTheBatch else []
    assert list(found) == [BROKEN[broken], *also]
    sentence = found[BROKEN[broken]]
    assert "\n" not in sentence and len(sentence) < 300


@pytest.mark.slow
@pytest.mark.parametrize("broken", [c for c in BROKEN if c is not Prints], ids=lambda c: c.__name__)
def test_a_method_broken_elsewhere_still_compiles(broken):
    CALLS[0] = 0
    check_compiles(broken())


def test_parts_that_are_meant_to_learn_together_say_so():
    class Meant(WeighsTheActorByALearningCritic):
        trained_together = (("actor", "critic"),)

    BY_NAME["check_a_loss_trains_one_part"](Meant())


def test_every_check_has_a_method_that_fails_it():
    assert set(BROKEN.values()) == set(BY_NAME)


def test_a_constant_gamma_fails_both_checks_of_the_bootstrap():
    names = {"check_bootstrap_only_through_discount", "check_discount_scales_the_bootstrap"}
    assert {name for name in names if _fails(BY_NAME[name], HasAGammaOfItsOwn())} == names


def test_what_learns_no_return_may_read_next_obs_at_the_end_unless_it_has_a_value():
    class SaysAReturn(PredictsTheNextObservation):
        def value(self, state, obs, made):
            return nets.mlp(state.critic, obs).squeeze(-1)

    class LooksAtRewards(PredictsTheNextObservation):
        def loss(self, params, state, batch, key):
            return super().loss(params, state, batch, key) * (1 + batch.reward.square().mean())

    for name in ("check_bootstrap_only_through_discount", "check_discount_scales_the_bootstrap"):
        assert "learns no return" in BY_NAME[name](PredictsTheNextObservation())
        assert _fails(BY_NAME[name], SaysAReturn()) and _fails(BY_NAME[name], LooksAtRewards())


def _fails(check, method) -> bool:
    CALLS[0] = 0
    try:
        check(method)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(
    "broken, words",
    [
        (ReadsAValue, r"\.item\(\)"),
        (BranchesOnAValue, "torch.where"),
        (DrawsNoiseFromTheGlobalGenerator, "from the key"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_vmap_refuses_is_told_in_words_of_the_method(broken, words):
    with pytest.raises(AssertionError, match=words):
        check_seed_axis(broken())


def test_a_counter_outside_the_state_is_impure():
    CALLS[0] = 0
    with pytest.raises(AssertionError, match="two results for the same inputs"):
        check_update_is_pure(CountsItsCalls())


def test_hyper_parameters_must_be_frozen_keyword_only_and_complete():
    @dataclass(kw_only=True)
    class Thawed(Linear):
        lr: float = 1e-2

    @dataclass(frozen=True)
    class Positional(Linear):
        lr: float = 1e-2

    @dataclass(frozen=True, kw_only=True)
    class Rescaling(Linear):
        lr: float = 1e-2

        def __post_init__(self):
            object.__setattr__(self, "lr", self.lr / 2)

    @dataclass(frozen=True, kw_only=True)
    class Hiding(Linear):
        lr: float = 1e-2

        def __post_init__(self):
            object.__setattr__(self, "scale", 2.0)

    @hyper
    class Misspelt(Linear):
        actions = "discreet"

    cases = [
        (Thawed, "frozen"),
        (Positional, "by position"),
        (Rescaling, "not equal"),
        (Hiding, "scale"),
        (Linear, "frozen"),
        (Misspelt, "actions is 'discreet'"),
    ]
    for broken, words in cases:
        with pytest.raises(AssertionError, match=words):
            check_hparams_are_plain(broken())


def test_metrics_must_be_finite_and_keep_their_names():
    class Diverging(Linear):
        lr = 1e-2

        def update(self, state, batch, key):
            return super().update(state, batch, key)[0], {
                "q": batch.reward.mean().log() - float("inf")
            }

    class Renaming(Linear):
        lr = 1e-2

        def update(self, state, batch, key):
            CALLS[0] += 1
            return super().update(state, batch, key)[0], {f"q{CALLS[0]}": batch.reward.mean()}

    for broken, words in [(Diverging, "ordinary data"), (Renaming, "same keys")]:
        with pytest.raises(AssertionError, match=words):
            check_metrics_are_scalars(broken())


def test_an_error_inside_the_method_is_told_as_the_methods():
    class Crashing(Linear):
        lr = 1e-2

        def init(self, key, spec):
            raise KeyError("hidden")

    with pytest.raises(AssertionError, match="init raised KeyError: 'hidden'"):
        check_init_is_a_function_of_the_key(Crashing())


def test_check_method_reports_a_line_per_check_and_names_all_failures(monkeypatch):
    lines, few = [], CHECKS[4:8]
    monkeypatch.setattr("offbench.testing.contract.CHECKS", few)
    with pytest.raises(
        AssertionError, match=r"(?s)2 of 4 .*check_bootstrap_only.*check_discount_scales"
    ):
        check_method(HasAGammaOfItsOwn(), report=lines.append)
    assert len(lines) == len(few) and sum(line.startswith("FAILED") for line in lines) == 2


class Changed(Linear):
    """Sound but for what a test puts in the place of one of its functions."""

    lr = 1e-2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"act": lambda *_: None}, "act returned a NoneType: return a tensor"),
        ({"act": lambda *_: (torch.zeros(16, 2), 1)}, "act returned a tuple: return a tensor"),
        ({"update": lambda _, state, *__: state}, "update returned a State: return"),
        ({"update": lambda _, state, *__: (state, {"q": 1.0})}, "metric 'q' is a float"),
        ({"update": lambda _, state, *__: ((state, 1), {})}, "returned an int in the state"),
        ({"init": lambda *_: object()}, "init returned an object: hold"),
        (
            {"act": lambda *_: [][1]},
            rf"IndexError: list .*\(line [0-9]+ of {Path(__file__).name}\)",
        ),
    ],
)
def test_what_all_checks_compute_with_is_looked_at_first_and_told_once(changes, sentence):
    method, lines = hyper(type("Mine", (Changed,), changes))(), []
    with pytest.raises(AssertionError, match=r"(?s)1 of .*were not run") as error:
        check_method(method, report=lines.append)
    assert re.search(sentence, str(error.value)) and len(lines) == 2


def test_nan_is_told_as_nan_and_not_as_an_update_of_two_results():
    def poisoned(self, state, batch, key):
        state, metrics = Linear.update(self, state, batch, key)
        return state._replace(critic=tree_map(lambda x: x * float("nan"), state.critic)), metrics

    def not_a_number(self, state, batch, key):
        state, metrics = Linear.update(self, state, batch, key)
        return state, {"q": metrics["q"] * float("nan")}

    few = [check for check in CHECKS if check is not check_compiles]
    for update, name in (
        (poisoned, "check_state_is_a_fixed_point_of_shape"),
        (not_a_number, "check_metrics_are_scalars"),
    ):
        found = failed(hyper(type("Mine", (Changed,), {"update": update}))(), few)
        assert "nan" in found[name] and "check_update_is_pure" not in found


def test_check_method_is_silent_when_asked_and_takes_any_spec(capsys):
    check_method(
        Stochastic(),
        spec=Spec(obs_dim=3, action_dim=1, gamma=0.9, max_episode_steps=7),
        report=None,
    )
    assert capsys.readouterr().out == ""


def test_fakes_follow_the_spec():
    spec = Spec(3, 2, 0.9, 5)
    batch = fake_batch(spec, size=4, minibatches=2, dtype=torch.float64)
    assert (
        batch.obs.shape == (2, 4, 3)
        and batch.reward.shape == (2, 4)
        and batch.obs.dtype == torch.float64
    )
    data = fake_data(spec, episodes=30)
    length = torch.bincount(data.episode) - 1
    assert (
        data.obs.shape[1] == 3 and data.n_episodes == 30 and length.min() == 1 and length.max() <= 6
    )
    assert data.terminal.any() and (data.terminal.sum() < data.n_episodes)
    assert torch.equal(fake_data(spec).obs, fake_data(spec).obs)
    assert not torch.equal(fake_data(spec).obs, fake_data(spec, seed=1).obs)
    assert dataclasses.is_dataclass(IQL)
