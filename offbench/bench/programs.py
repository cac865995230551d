"""The programs that the stacks of a plan compile."""

from collections.abc import Sequence

from offbench.bench.preflight import build_method, build_view, resolve_device
from offbench.bench.settings import Settings
from offbench.bench.stacks import Pack
from offbench.tasks.loading import load_data


def compiled_programs(packs: Sequence[Pack], settings: Settings) -> int:
    """How many different programs the engine compiles for these stacks: one for each method with its numbers,
    dimensions of a problem, size of a stack and of a batch. Datasets do not count."""
    from offbench.training.engine import candidates
    from offbench.training.imperative import Imperative
    from offbench.training.step import n_minibatches

    device, found = resolve_device(settings.device), set()
    for part in packs:
        cell, method = part.cells[0], build_method(part.cells[0])
        if isinstance(method, Imperative):
            continue
        n_steps = cell.n_updates // n_minibatches(method)
        if candidates(settings.engine, device, n_steps)[0] not in ("compile", "cudagraph"):
            continue
        gamma = cell.pipeline["gamma"]
        seen = build_view(cell).spec(load_data(cell.task, gamma=gamma, defects="ignore")[1])
        # only a method of windows has a table of all steps of an episode
        seen = seen if seen.context else seen._replace(max_episode_steps=0)
        stacked = tuple((part.values or [{}])[0])
        numbers = {k: v for k, v in cell.hparams.items() if k not in stacked}
        around = [cell.pipeline.get(group) for group in ("weight", "synthetic", "batch_size")]
        found.add(repr((cell.target, numbers, stacked, around, seen, part.size)))
    return len(found)
