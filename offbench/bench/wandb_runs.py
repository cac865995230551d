"""Runs in Weights & Biases: one wandb run each, grouped by cell, with the updates as x axis.

Settings `wandb.project=` and the like win over WANDB_* variables, those over the defaults. Without an account
everything stays below results/wandb, for `wandb sync`.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.bench.logged import Logged, evaluation_means
from offbench.bench.settings import WandbSettings
from offbench.io import slug

if TYPE_CHECKING:
    import pandas as pd

# seconds for a server's first answer, and for the last upload of a run
_INIT_S, _FINISH_S = 30, 60
_TABLE = ("episode", "env_seed", "return", "score", "length", "success", "terminated", "truncated")


class Wandb:
    """A sink (`offbench.bench.logged.Sink`) of one wandb run per run, named by the run's id.

    A run that was interrupted, or is sent again, goes on in the wandb run of the same id.
    """

    def __init__(self, runs: Sequence[Logged], folder: Path, settings: WandbSettings):
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._table = wandb.Table
        own: dict[str, Any] = {"silent": True, "console": "off"}
        if "WANDB_INIT_TIMEOUT" not in os.environ:
            own["init_timeout"] = _INIT_S
        if "finish_timeout" in wandb.Settings.model_fields:
            own["finish_timeout"] = _FINISH_S
        # nothing of the machine, its user and its folders is sent
        private: dict[str, Any] = {"host": "offbench", "disable_git": True}
        private |= {"x_disable_meta": True, "x_disable_machine_info": True}
        own |= {k: v for k, v in private.items() if k in wandb.Settings.model_fields}
        self.runs: list[Any] = []
        # for each run: the file that says that wandb has all of it, and whether it has
        self._marks = [mark(logged, folder, settings) for logged in runs]
        self._complete = [False] * len(runs)
        for logged in runs:
            arguments = run_arguments(logged, settings)
            run = wandb.init(
                **arguments,
                dir=folder,
                reinit="create_new",
                resume="allow",
                settings=wandb.Settings(**own),
            )
            run.define_metric("update", hidden=True)
            for group in ("train/*", "monitor/*", "test/*"):
                run.define_metric(group, step_metric="update")
            self.runs.append(run)

    def sent_to(self, i: int) -> int:
        """The last update that an earlier wandb run of this id has; -1 where there is none."""
        run = self.runs[i]
        return int(run.summary.get("update", -1)) if run.resumed else -1

    def metrics(self, i: int, update: int, values: Mapping[str, float]) -> None:
        self.runs[i].log({"update": update} | {f"train/{k}": x for k, x in values.items()})

    def evaluation(self, i: int, rows: "pd.DataFrame") -> None:
        run, means = self.runs[i], evaluation_means(rows)
        run.log({"update": int(rows["update"].iloc[0])} | means)
        if rows["stream"].iloc[0] == "test":
            for name, value in means.items():
                run.summary[name] = value
            shown = rows[list(_TABLE)].astype(object).where(rows[list(_TABLE)].notna(), None)
            run.log({"test/episodes": self._table(list(_TABLE), shown.to_numpy().tolist())})
            self._complete[i] = True

    def close(self) -> None:
        for run, mark, complete in zip(self.runs, self._marks, self._complete, strict=True):
            run.finish()
            if complete:
                mark.parent.mkdir(exist_ok=True)
                mark.touch()


def mark(logged: Logged, folder: Path, settings: WandbSettings) -> Path:
    """A file that is there when all of a run was handed to wandb, by its mode and project."""
    told = run_arguments(logged, settings)
    where = [told["mode"], told["entity"] or "", told["project"], logged.spec.run_id]
    return folder / "wandb" / "sent" / slug("-".join(where))


@cache
def _usual_mode() -> str:
    """online with an API key, else offline; nothing is asked of the user or of a server."""
    import wandb

    # deprecated in later versions
    asks = "prompt" not in signature(wandb.login).parameters
    known = wandb.api.api_key if asks else wandb.login(prompt=False)
    return "online" if known else "offline"


def run_arguments(logged: Logged, settings: WandbSettings) -> dict[str, Any]:
    """The arguments of `wandb.init` for a run."""
    spec, commit = logged.spec, str(logged.facts.get("commit", ""))
    chosen = lambda given, variable, default: given or os.environ.get(variable) or default
    cell = f"{logged.entry}-{spec.task}"
    variable = [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
    tags = [spec.suite, spec.task, spec.method, f"seed {spec.seed}", commit[:7]]
    tags += settings.tags or variable
    name = chosen(settings.name, "WANDB_NAME", None)
    return {
        "id": spec.run_id,
        "project": chosen(settings.project, "WANDB_PROJECT", f"offbench-{spec.suite}"),
        "entity": chosen(settings.entity, "WANDB_ENTITY", None),
        "group": chosen(settings.group, "WANDB_RUN_GROUP", cell),
        "name": f"{name or cell}-{spec.seed}",
        "tags": list(dict.fromkeys(tag[:64] for tag in tags if tag)),
        "mode": settings.mode or os.environ.get("WANDB_MODE") or _usual_mode(),
        "config": run_config(logged),
    }


def run_config(logged: Logged) -> dict[str, Any]:
    """Everything that is recorded of a run, under the names of `Store.runs()`: hparams.lr, sources."""
    spec = logged.spec
    ids = {"entry": logged.entry, "run_id": spec.run_id, "config_id": spec.config_id}
    return ids | spec.as_dict() | dict(logged.facts)
