"""`offbench diagnose`: chunk lengths, values against returns, and kept policies played again."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from offbench.cli.console import make_console
from offbench.cli.recorded import board_folder, board_name, read_recorded
from offbench.errors import UserError
from offbench.results.words import plural

if TYPE_CHECKING:
    from rich.console import Console

    from offbench.cli.recorded import Recorded
    from offbench.results.store import Record


def draw_diagnostics(
    args: Sequence[str],
    *,
    play: int | None = None,
    consistency: bool = False,
    churn: bool = False,
) -> int:
    """`offbench diagnose`: writes chunk lengths and values against returns as numbers and pictures.

    With `consistency` instead how far the kept policies of seeds are apart, with `churn` how far they moved over
    their last updates (`offbench.cli.consistency`).
    With `play`, kept policies first play so many episodes again, and what they decided is drawn, too;
    of goal-conditioned tasks values along the way, success by distance, and paths through a maze. `diagnose
    ope` compares offline estimates with what policies earn, `diagnose synthetic` synthetic data with the
    simulator and the policy.
    """
    if args[:1] == ["ope"]:
        from offbench.cli.evaluate import diagnose_ope

        return diagnose_ope(args[1:], play=play)
    if args[:1] == ["synthetic"]:
        from offbench.cli.synthetic import diagnose_synthetic

        return diagnose_synthetic(args[1:])
    from offbench.results.decisions import read_decisions
    from offbench.results.decisions_figure import write_decisions_figures
    from offbench.results.diagnostics import write
    from offbench.results.goals_figure import write_goal_figures

    if consistency or churn:
        from offbench.cli.consistency import show_churn, show_consistency

        return (show_consistency(args) if consistency else 0) or (show_churn(args) if churn else 0)
    if play is not None and play < 1:
        raise UserError(f"--play {play}: the number of episodes is at least 1")
    found, console = read_recorded(args), make_console()
    records = found.store.read_all(run_id=found.ids)
    marks = {run: record.path for run, record in records.items()}
    if play is not None:
        _play(found, records, play, console)
    folder = board_folder(found.plan) / f"{board_name(found.plan, args)}-diagnostics"
    curves = found.store.curves(run_id=found.ids)
    decisions = read_decisions(found.store.root, marks)
    goals = {cell.task.id: cell.task.task_ids for cell in found.plan.cells if cell.task.goals}
    paths = write(found.episodes, found.runs, curves, folder, needed=decisions.empty)
    if len(decisions):
        paths += write_decisions_figures(decisions, found.runs, folder)
        walls = _walls(found, set(decisions.dropna(subset=["x"])["run_id"]))
        paths += write_goal_figures(decisions, found.runs, goals, walls, folder)
    for path in paths:
        print(f"written: {path}")
    if decisions.empty and any(
        mark.with_suffix(".safetensors").exists() for mark in marks.values()
    ):
        again = shlex.join(["offbench", "diagnose", "--play", "20", *args])
        print(f"lengths by time and by distance, values of all decisions: {again}")
    return 0


def _walls(found: "Recorded", runs: set[str]) -> dict[str, tuple[list[tuple[float, float]], float]]:
    """The walls of the mazes that these runs were played in, by task."""
    from offbench.tasks.environments import evaluation_env, maze_walls

    known = set(found.runs.loc[found.runs["run_id"].isin(runs), "task"])
    walls = {}
    for task in found.tasks.values():
        if task.id in known:
            env = evaluation_env(task)
            if (found_here := maze_walls(env)) is not None:
                walls[task.id] = found_here
            env.close()
    return walls


def _play(
    found: "Recorded", records: "dict[str, Record]", episodes: int, console: "Console"
) -> None:
    """Plays the kept policies that have not been played so often, and says which cannot be."""
    from offbench.bench.played import play
    from offbench.bench.policy import load
    from offbench.results.decisions import is_played, path_of, write_decisions

    tasks = found.tasks
    say = lambda text: console.print(text, markup=False, soft_wrap=True)
    asked = {cell.entry for cell in found.plan.cells}
    runs = [run for run in found.runs.to_dict("records") if run["entry"] in asked]
    runs = [run for run in runs if run["status"] == "ok"]
    done = 0
    with console.status("playing") as status:
        for i, run in enumerate(runs):
            name = f"{run['entry']} on {run['task']} seed {run['seed']}"
            record = records[run["run_id"]]
            mark, envs = record.path, record.spec.protocol.get("envs", 5)
            kept, path = mark.with_suffix(".safetensors"), path_of(found.store.root, mark)
            status.update(f"playing {name}, {i + 1} of {len(runs)}")
            if not kept.exists():
                say(f"{name}: its policy was not kept")
                continue
            if not is_played(path, kept, episodes):
                try:
                    rows = play(load(kept), tasks[run["task"]], episodes=episodes, n_envs=envs)
                except UserError as error:
                    say(f"{name}: {error}")
                    continue
                write_decisions(path, rows.assign(run_id=run["run_id"]), kept)
            done += 1
    if not done:
        raise UserError("no run here keeps a policy that says what its decisions are worth")
    say(f"{plural(done, 'run')} played {plural(episodes, 'episode')} each")
