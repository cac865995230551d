"""`offbench data check`: defects of a dataset, and whether an environment repeats its steps."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from offbench.cli.console import make_console, print_table, severity_label
from offbench.cli.data.load import Loaded, load
from offbench.errors import UserError
from offbench.io import sha256_of
from offbench.tasks import doctor, files
from offbench.tasks.embedded import manifests
from offbench.tasks.locate import load_task, ready

if TYPE_CHECKING:
    from rich.console import Console

    from offbench.tasks.doctor import Severity


def check(options: argparse.Namespace) -> int:
    """Prints and keeps the report on the dataset `options.name`; 1 for a severe defect."""
    env = options.env or None
    console, path = make_console(), Path(options.name)
    dataset = load(options.name, limit=options.limit, env=env, actions=options.actions)
    facts = _with_limit(dataset, options.limit, console)
    sha256 = sha256_of(path) if path.is_file() else dataset.card.get("sha256")
    report = doctor.check(dataset.data, facts, sha256=sha256)
    report = replace(report, findings=(*report.findings, *dataset.findings))
    rows = [
        (severity_label(f.severity), f.name.replace("_", " "), f.words) for f in report.findings
    ]
    refused = False
    if options.env is not None:
        severity, words = _repeated(options.name, env, options.limit, options.actions)
        refused = severity == "severe"
        rows.append((severity_label(severity), "environment", words))
    console.print(f"{report.id}: {report.rows:,} transitions in {report.episodes:,} episodes")
    print_table(console, rows, header=("severity", "check", "found"))
    try:
        console.print(f"\nreport: {doctor.save(report)}", soft_wrap=True)
    except OSError as error:
        raise UserError(
            f"the report cannot be kept in {files.cache_dir()} ({error.strerror}); set OFFBENCH_DATA"
        ) from None
    return 1 if report.severe or refused else 0


def _with_limit(dataset: Loaded, limit: int | None, console: "Console") -> doctor.Facts:
    """The facts with the time limit that was given, or else with that of the longest episodes."""
    facts, guessed = dataset.facts, limit is None
    if (
        limit is None
        and facts.max_episode_steps is None
        and not (facts.goals or facts.terminal_inside)
    ):
        limit = doctor.apparent_limit(dataset.data)
        if limit is not None:
            console.print(
                f"limit taken from the longest episodes: {limit} steps (--limit says otherwise)"
            )
    if limit is None:
        return facts
    return replace(facts, max_episode_steps=limit, limit_guessed=guessed)


def _repeated(
    name: str, env: str | None, limit: int | None, actions: str
) -> tuple["Severity", str]:
    """(severity, words) on how closely the environment reproduces recorded transitions; severe where it takes
    observations or actions of other sizes, which a run refuses."""
    from offbench.tasks.consistency import OtherSizes, one_step
    from offbench.tasks.custom import own_task

    try:
        if Path(name).exists() and name not in manifests():
            if env is None and Path(name).is_file():
                raise UserError("a file names no environment; give one: --env HalfCheetah-v5")
            task = own_task(name, env=env, max_episode_steps=limit, actions=actions)  # type: ignore[arg-type]
        else:
            task = ready(load_task(name))
        found = one_step(task)
    except OtherSizes as error:
        return "severe", str(error)
    except UserError as error:
        return "info", str(error)
    return "info" if found.agrees else "warning", found.words
