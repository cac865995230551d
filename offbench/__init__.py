"""offbench: offline reinforcement-learning benchmarks.

    from offbench import load_task, make_pipeline, train, evaluate, make_policy

Names are loaded when first used: importing offbench imports neither torch nor an environment.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Task": "tasks",
    "load_task": "tasks",
    "own_task": "tasks",
    "from_arrays": "sources.arrays",
    "save_data": "sources.arrays",
    "make_pipeline": "pipeline",
    "train": "training",
    "evaluate": "evaluation",
    "make_policy": "evaluation",
    "env_seeds": "evaluation",
    "Store": "records",
    "leaderboard": "board",
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
