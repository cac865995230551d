"""offbench: offline reinforcement-learning benchmarks.

    from offbench import load_task, make_pipeline, train, evaluate, make_policy

Names are loaded when first used: importing offbench imports neither torch nor an environment.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Task": "tasks.task",
    "load_task": "tasks.task",
    "own_task": "tasks.task",
    "from_arrays": "tasks.formats.arrays",
    "save_data": "tasks.formats.arrays",
    "make_pipeline": "data.pipeline",
    "train": "training.loop",
    "evaluate": "rollout",
    "make_policy": "rollout",
    "load_policy": "bench.policy",
    "env_seeds": "rollout",
    "evaluate_policy": "bench.outside",
    "from_module": "nn.nets",
    "Imperative": "training.imperative",
    "Store": "results.store",
    "leaderboard": "results.leaderboard",
    "UserError": "errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'offbench' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    value = getattr(import_module(f"offbench.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
