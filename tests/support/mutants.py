"""A method or a module with one mistake made in its source, to see which test notices."""

import inspect
import sys
import types
from collections.abc import Callable, Iterable

from offbench.methods.a2pr import A2PR
from offbench.methods.acsac import ACSAC
from offbench.methods.arl import ARL
from offbench.methods.awac import AWAC
from offbench.methods.cgq import CGQ
from offbench.methods.cql import CQL
from offbench.methods.discrete_cql import DiscreteCQL
from offbench.methods.dqc import DQC
from offbench.methods.fql import FQL
from offbench.methods.gciql import GCIQL
from offbench.methods.gcivl import GCIVL
from offbench.methods.hiql import HIQL
from offbench.methods.ifql import IFQL
from offbench.methods.iql import IQL
from offbench.methods.odice import ODICE
from offbench.methods.ota import OTA
from offbench.methods.qc import QC
from offbench.methods.qgf import QGF
from offbench.methods.qrl import QRL
from offbench.methods.rebrac import ReBRAC
from offbench.methods.sac_n import SACN
from offbench.methods.td3_bc import TD3BC
from offbench.methods.xql import XQL


def mutated(cls: type, old: str, new: str) -> type:
    """The class with the functions of its module's source after `old` became `new`."""
    source = inspect.getsource(inspect.getmodule(cls))
    assert source.count(old) == 1, f"{old!r} is no longer in the source once"
    module = types.ModuleType("mutant")
    sys.modules["mutant"] = module  # dataclasses look their module up
    try:
        exec(source.replace(old, new), module.__dict__)
    finally:
        del sys.modules["mutant"]
    functions = {
        k: f
        for k, f in vars(vars(module)[cls.__name__]).items()
        if inspect.isfunction(f) and not k.startswith("__")
    }
    return type(f"Mutated{cls.__name__}", (cls,), functions)


def mutated_module(module: types.ModuleType, old: str, new: str) -> types.ModuleType:
    """The module made of its source after `old` became `new`."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{old!r} is no longer in the source once"
    mutant = types.ModuleType(f"{module.__name__}_mutant")
    exec(source.replace(old, new), mutant.__dict__)
    return mutant


def finds(mutant: types.ModuleType, checks: Iterable[Callable[[types.ModuleType], None]]) -> bool:
    """Whether one of the checks fails for a mutant, be it by an error of its own."""
    for check in checks:
        try:
            check(mutant)
        except Exception:
            return True
    return False


ADDED, CONSTANT = "check_bootstrap_is_added", "check_targets_are_constants"
ONE_PART, FIXED = "check_a_loss_trains_one_part", "check_what_a_part_learns_from_is_fixed"
SIGNED = (A2PR, AWAC, CQL, DiscreteCQL, DQC, FQL, IFQL, IQL, QC, QGF, ReBRAC, SACN, TD3BC, XQL)
CENTRED = ("nets.mlp(state.actor, obs).tanh()", "nets.mlp(state.actor, obs - obs.mean(0)).tanh()")

# name -> (the check of the contract which finds it, method, settings, source before, and after)
OF_THE_CONTRACT = {
    **{
        f"{cls.__name__}: bootstrap subtracted": (
            ADDED,
            cls,
            {},
            "batch.reward + batch.discount",
            "batch.reward - batch.discount",
        )
        for cls in SIGNED
    },
    "CGQ: bootstrap subtracted": (
        ADDED,
        CGQ,
        {},
        "part.reward + part.discount",
        "part.reward - part.discount",
    ),
    "ACSAC: bootstrap subtracted": (
        ADDED,
        ACSAC,
        {},
        'extras["prefix_reward"] + ',
        'extras["prefix_reward"] - ',
    ),
    "GCIVL: bootstrap subtracted": (
        ADDED,
        GCIVL,
        {},
        "error = batch.reward + batch.discount",
        "error = batch.reward - batch.discount",
    ),
    "GCIQL: bootstrap subtracted": (
        ADDED,
        GCIQL,
        {},
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
    ),
    "GCIVL: V learns through its target": (
        CONSTANT,
        GCIVL,
        {},
        "goal_nets.value(target_value, batch.next_obs)",
        "goal_nets.value(value, batch.next_obs)",
    ),
    "GCIQL: V learns through Q's target": (
        CONSTANT,
        GCIQL,
        {},
        "goal_nets.value(before.value, batch.next",
        "goal_nets.value(value, batch.next",
    ),
    "QRL: the metric learns from the actor": (
        ONE_PART,
        QRL,
        {},
        "self._actor_loss(actor, before, batch)",
        "self._actor_loss(actor, before._replace(metric=metric), batch)",
    ),
    "IQL: V learns through Q's target": (
        CONSTANT,
        IQL,
        {},
        "next_obs).squeeze(-1).detach()",
        "next_obs).squeeze(-1)",
    ),
    "IFQL: V learns through Q's target": (
        CONSTANT,
        IFQL,
        {},
        "q_values(before.value",
        "q_values(value",
    ),
    "QGF: V learns through Q's target": (
        CONSTANT,
        QGF,
        {},
        "_values(before.value",
        "_values(value",
    ),
    "ODICE: bootstrap subtracted": (
        ADDED,
        ODICE,
        {},
        "batch.reward + batch.discount * bootstrap",
        "batch.reward - batch.discount * bootstrap",
    ),
    "ODICE: the semi-gradient goes through the next value": (
        CONSTANT,
        ODICE,
        {"gradient": "semi"},
        "else old_next_v",
        "else next_v",
    ),
    "TD3BC: Q learns through its target": (
        CONSTANT,
        TD3BC,
        {},
        "mlp(state.target_critic, torch",
        "mlp(critic, torch",
    ),
    "ReBRAC: Q learns through its target": (
        CONSTANT,
        ReBRAC,
        {},
        "_q(state.target_critic, batch.next",
        "_q(critic, batch.next",
    ),
    "AWAC: Q learns through its target": (
        CONSTANT,
        AWAC,
        {},
        "_q(state.target_critic, batch.next",
        "_q(critic, batch.next",
    ),
    "SACN: Q learns through its target": (
        CONSTANT,
        SACN,
        {},
        "_q(target_critic, batch.next",
        "_q(critic, batch.next",
    ),
    "SACN: temperature learns through the target": (
        CONSTANT,
        SACN,
        {},
        "log_temperature.exp().detach()",
        "log_temperature.exp()",
    ),
    "SACN: actor learns through the target": (
        CONSTANT,
        SACN,
        {},
        "_sample(fixed_actor, batch.next",
        "_sample(actor, batch.next",
    ),
    "CQL: Q learns through its target": (
        CONSTANT,
        CQL,
        {},
        "_q(target_critic, next_obs, after",
        "_q(critic, next_obs, after",
    ),
    "CQL: actor learns through the target": (
        CONSTANT,
        CQL,
        {},
        "_sample(_fixed(actor), next_obs",
        "_sample(actor, next_obs",
    ),
    "DiscreteCQL: Q learns through its target": (
        CONSTANT,
        DiscreteCQL,
        {},
        "mlp(target_critic, batch.next",
        "mlp(critic, batch.next",
    ),
    "IQL: V learns from the actor": (ONE_PART, IQL, {}, "advantage.detach()", "advantage"),
    "SACN: Q learns from the actor": (
        ONE_PART,
        SACN,
        {},
        "_q(fixed_critic, batch.obs, action)",
        "_q(critic, batch.obs, action)",
    ),
    "FQL: Q learns from the actor": (
        ONE_PART,
        FQL,
        {},
        "flow.q_values(fixed_critic",
        "flow.q_values(critic",
    ),
    "DQC: chunks' Q is distilled too": (ONE_PART, DQC, {}, "chunk_q.detach()", "chunk_q"),
    "CGQ: chunks' Q is anchored too": (ONE_PART, CGQ, {}, "values[0].detach()", "values[0]"),
    "TD3BC: scale learns": (FIXED, TD3BC, {}, "q.abs().mean().detach()", "q.abs().mean()"),
    "ReBRAC: scale learns": (FIXED, ReBRAC, {}, "q.abs().mean().detach()", "q.abs().mean()"),
    "A2PR: scale learns": (FIXED, A2PR, {}, "q.abs().mean().detach()", "q.abs().mean()"),
    "FQL: scale learns": (
        FIXED,
        FQL,
        {"normalize_q": True},
        "actor_q.abs().mean().detach()",
        "actor_q.abs().mean()",
    ),
    "CQL: temperature learns from the actor's loss": (
        FIXED,
        CQL,
        {},
        "log_temperature.exp().detach()",
        "log_temperature.exp()",
    ),
    "SACN: actor learns from the temperature's loss": (
        FIXED,
        SACN,
        {},
        "(entropy - target_entropy).detach()",
        "(entropy - target_entropy)",
    ),
    "CQL: actor learns from the temperature's loss": (
        FIXED,
        CQL,
        {},
        "(entropy - target_entropy).detach()",
        "(entropy - target_entropy)",
    ),
    "ARL: bootstrap subtracted": (
        ADDED,
        ARL,
        {},
        'extras["low_reward"] + ',
        'extras["low_reward"] - ',
    ),
    "ARL: V learns through Q's target": (
        CONSTANT,
        ARL,
        {},
        'value(before.low_value, extras["low_next',
        'value(params["low_value"], extras["low_next',
    ),
    "ARL: options learn from the high level": (
        ONE_PART,
        ARL,
        {},
        "_option(before.option_rep",
        '_option(params["option_rep"]',
    ),
    "HIQL: V learns from the policies": (
        ONE_PART,
        HIQL,
        {},
        "(before.value, before.value)",
        "(value, value)",
    ),
    "OTA: representations learn from the policies": (
        ONE_PART,
        OTA,
        {},
        "before.goal_rep,\n            batch",
        "goal_rep,\n            batch",
    ),
    "TD3BC: acts on centred observations": ("check_act", TD3BC, {}, *CENTRED),
    "ReBRAC: acts on centred observations": ("check_act", ReBRAC, {}, *CENTRED),
    "IQL: acts on centred observations": (
        "check_act",
        IQL,
        {},
        'state.actor["mean"], obs)',
        'state.actor["mean"], obs - obs.mean(0))',
    ),
    "DiscreteCQL: acts on centred observations": (
        "check_act",
        DiscreteCQL,
        {},
        "greedy(nets.mlp(state.critic, obs))",
        "greedy(nets.mlp(state.critic, obs - obs.mean(0)))",
    ),
    "FQL: acts on centred observations": (
        "check_act",
        FQL,
        {},
        "one_step(state.actor, obs, noise)",
        "one_step(state.actor, obs - obs.mean(0), noise)",
    ),
}
