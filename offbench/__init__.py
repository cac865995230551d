"""offbench: offline reinforcement-learning benchmarks.

    from offbench import load_data, load_task, make_pipeline, train, evaluate, make_policy

Names are loaded when first used: importing offbench imports neither torch nor an environment.
"""

from importlib import import_module

# what type checkers take for true; importing typing for it takes 10 ms
TYPE_CHECKING = False
# the names of _HOME once more, for type checkers and editors
if TYPE_CHECKING:
    from offbench.bench.outside import evaluate_policy as evaluate_policy
    from offbench.bench.policy import load_policy as load_policy
    from offbench.data.pipeline import make_pipeline as make_pipeline
    from offbench.errors import UserError as UserError
    from offbench.nn.nets import from_module as from_module
    from offbench.results.board.leaderboard import leaderboard as leaderboard
    from offbench.results.compare import compare as compare
    from offbench.results.store import Store as Store
    from offbench.rollout import evaluate as evaluate
    from offbench.rollout import make_policy as make_policy
    from offbench.tasks.custom import own_task as own_task
    from offbench.tasks.environments import evaluation_env as evaluation_env
    from offbench.tasks.episodes import env_seeds as env_seeds
    from offbench.tasks.formats.arrays import from_arrays as from_arrays
    from offbench.tasks.formats.arrays import save_data as save_data
    from offbench.tasks.loading import load_data as load_data
    from offbench.tasks.locate import load_task as load_task
    from offbench.tasks.task import Task as Task
    from offbench.training.imperative import Imperative as Imperative
    from offbench.training.loop import train as train

_HOME = {
    "Task": "tasks.task",
    "load_task": "tasks.locate",
    "load_data": "tasks.loading",
    "own_task": "tasks.custom",
    "evaluation_env": "tasks.environments",
    "from_arrays": "tasks.formats.arrays",
    "save_data": "tasks.formats.arrays",
    "make_pipeline": "data.pipeline",
    "train": "training.loop",
    "evaluate": "rollout",
    "make_policy": "rollout",
    "load_policy": "bench.policy",
    "env_seeds": "tasks.episodes",
    "evaluate_policy": "bench.outside",
    "from_module": "nn.nets",
    "Imperative": "training.imperative",
    "Store": "results.store",
    "compare": "results.compare",
    "leaderboard": "results.board.leaderboard",
    "UserError": "errors",
}
__all__ = sorted(_HOME)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(
                f"module 'offbench' has no attribute {name!r}; it has {', '.join(__all__)}"
            )
        value = getattr(import_module(f"offbench.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
