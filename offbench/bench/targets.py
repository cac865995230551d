"""Resolves `_target_` paths and names of views, samplers, weights and data sources; reads their parameters."""

import importlib.util
import inspect
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from offbench.bench.signatures import SET_BY_ENGINE, read_parameters
from offbench.errors import UserError, calling, unknown


def locate(target: str) -> Any:
    """The class or function at a dotted path. Raises UserError naming the part that is not there."""
    module_name, _, name = str(target).rpartition(".")
    if not module_name:
        raise UserError(f"_target_={target}: a dotted path is needed, such as package.module.Class")
    try:
        with calling(f"_target_={target}: import {module_name}"):
            module = importlib.import_module(module_name)
    except UserError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            absent = error.__cause__.name
            raise UserError(
                f"_target_={target}: no module named {absent!r} (is the package on the path?)"
            ) from None
        raise
    if hasattr(module, "__path__") and importlib.util.find_spec(target):
        raise UserError(f"_target_={target} is a module, not a class or function")
    if not hasattr(module, name):
        names = [n for n in dir(module) if not n.startswith("_")]
        raise unknown(f"object in _target_={target}:", name, names)
    found = getattr(module, name)
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        kind = type(found).__name__
        raise UserError(
            f"_target_={target} is {'an' if kind[0] in 'aeiou' else 'a'} {kind}, not a class or function"
        )
    return found


BUILT_IN: Mapping[str, Mapping[str, str | None]] = types.MappingProxyType(
    {
        "view": {
            "nstep": "offbench.data.views.NStep",
            "chunk": "offbench.data.views.Chunk",
            "window": "offbench.data.views.Window",
            "goal": "offbench.data.goals.Goal",
        },
        "sampler": {
            "uniform": None,
            "aw": "offbench.data.sampling.advantage_weights",
            "rw": "offbench.data.sampling.return_weights",
            "top": "offbench.data.sampling.top_fraction",
        },
        "weight": {"dw": "offbench.training.reweighting.DensityWeights"},
        "synthetic": {
            "pgd": "offbench.synthetic.sources.PolicyGuidedDiffusion",
            "world_model": "offbench.synthetic.sources.WorldModel",
        },
        "transform": {
            name: f"offbench.data.transforms.{name}"
            for name in ("obs_norm", "reward_affine", "reward_range", "reward_standard")
        },
    }
)
"""Group -> name in a run's specification -> dotted path. Outside classes are named by their path."""


def name_of(group: str, target: str | None) -> str:
    """The name of a target in a run's specification: its built-in name, else its path."""
    return next((name for name, known in BUILT_IN[group].items() if known == target), str(target))


def option_of(group: str, name: str) -> Any:
    """The class or function of a name in a run's specification; None for uniform sampling."""
    target = BUILT_IN[group].get(name, name)
    return None if target is None else locate(target)


def is_torch_class(obj: Any) -> bool:
    """Whether a target is a PyTorch class with `train_step` (offbench/training/imperative.py)."""
    return inspect.isclass(obj) and hasattr(obj, "train_step")


@cache
def is_written(target: str) -> bool:
    """Whether the class at a path is a PyTorch class that runs as it is written; see `is_torch_class`."""
    return read_parameters(target) is None and is_torch_class(locate(target))


def check_method(target: str) -> None:
    """Raises UserError for a class that is neither a functional method nor a PyTorch class."""
    target = str(target)
    # offbench's own hold the contract (tests)
    if target.startswith("offbench.methods.") and read_parameters(target) is not None:
        return
    obj = locate(target)
    needs = "a PyTorch class needs train_step(batch) and act(obs), a functional method init, update and act"
    if not inspect.isclass(obj):
        raise UserError(f"method._target_={target} is a function, not a class: {needs}")
    kinds = [("init", "update", "act"), ("train_step", "act")][hasattr(obj, "train_step") :]
    absent = [[name for name in kind if not hasattr(obj, name)] for kind in kinds]
    if lacks := min(absent, key=len):
        raise UserError(f"{obj.__name__} has no {' and no '.join(lacks)}: {needs}")
    if inspect.isabstract(obj) or getattr(obj, "_is_protocol", False):
        raise UserError(f"{obj.__name__} is an abstract class: name one that defines all it needs")


def parameters(target: Any) -> dict[str, tuple[Any, Any]]:
    """Settable parameters of a class, function or dotted path: name -> (type, default).

    Without `data`, `gamma` and a wrapped `method`, and a PyTorch class's sizes and device: the engine sets
    those.
    """
    if isinstance(target, str):
        if (known := read_parameters(target)) is not None:
            return dict(known)
        target = locate(target)
    return dict(_parameters(target))


@cache
def _parameters(obj: Any) -> dict[str, tuple[Any, Any]]:
    given, described = SET_BY_ENGINE, obj
    if is_torch_class(obj):
        given, described = given | {"obs_dim", "action_dim", "device"}, obj.__init__
    try:
        hints = get_type_hints(described)
    # a type imported under TYPE_CHECKING
    except NameError:
        hints = {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        n: (hints.get(n, float if type(p.default) is float else Any), p.default)
        for n, p in inspect.signature(obj).parameters.items()
        if n not in given and p.kind in named
    }
