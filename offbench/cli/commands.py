"""The commands of `offbench`, with their options, examples and the notes below their help."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from offbench.cli.parser import Parser, whole_number

KINDS = ("methods", "tasks", "suites", "samplers", "views", "weights", "synthetic", "published")


class Option(NamedTuple):
    """A `--flag` of a command besides its settings; its value is passed on as the keyword `name`."""

    flag: str
    help: str
    # what stands for its value; None of a switch
    metavar: str | None = None
    # of `argparse.ArgumentParser.add_argument`
    more: Mapping[str, Any] = MappingProxyType({})

    @property
    def name(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")

    def add_to(self, parser: Parser) -> None:
        kind = {"metavar": self.metavar} if self.metavar else {"action": "store_true"}
        parser.add_argument(self.flag, help=self.help, **kind, **self.more)


class Command(NamedTuple):
    summary: str
    examples: tuple[str, ...]
    # what it takes, where that is not KEY=VALUE
    usage: str = "[KEY=VALUE ...]"
    options: tuple[Option, ...] = ()


BOARD_OPTIONS = (
    Option(
        "--format",
        "print terminal, markdown, csv, json or latex",
        "FORMAT",
        {"choices": ("terminal", "markdown", "csv", "json", "latex"), "default": "terminal"},
    ),
    Option("--explain", "say what every number of it means"),
    Option("--diff", "what changed since a results folder, or a board's .json or .csv", "OLD"),
    Option("--check", "recompute a written board from the rows beside it", "FILE"),
    Option("--published", "published scores below, as corl,iql-2021", "SOURCES"),
)

EFFORT_OPTIONS = (
    Option("--only", "run again what has failed, and nothing else", "failed"),
    Option("--retry", "attempts after a lost process or a full disk (2)", "N"),
    Option("--max-time", "save and stop after 30m or 8h; exit code 75: more to do", "TIME"),
    Option("--shard", "the I-th of N parts of the runs", "I/N"),
)

COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "bench": Command(
            "run what is missing of a suite and print its leaderboard",
            (
                "bench suite=quick",
                "bench methods=[bc,iql+aw] seeds=[0,1]",
                "bench methods=[mymodule.MyMethod,bc] task=d4rl/hopper-medium-v2",
                "bench suite=d4rl-gym-9 --max-time 8h",
            ),
            options=EFFORT_OPTIONS,
        ),
        "run": Command(
            "run what is missing of one method and print the leaderboard",
            (
                "run method=iql method.expectile=0.9 seeds=[0,1]",
                "run method=bc task=offbench/hopper/medium-replay-v0 n_updates=2000",
                "run method=bc task.data=my.hdf5 task.env=HalfCheetah-v5 seeds=[0,1]",
            ),
            options=EFFORT_OPTIONS,
        ),
        "plan": Command(
            "print every run, every value with its source, and the time needed; run nothing",
            (
                "plan",
                "plan method=td3_bc method.alpha=1.0 n_updates=20000",
                "plan suite=d4rl-gym-9 --on H100",
            ),
            options=(
                Option("--on", "time on a GPU that need not be here: H100, A100, ...", "GPU"),
            ),
        ),
        "status": Command(
            "say how far the runs are, what works at them, and how long it takes",
            ("status", "status suite=d4rl-gym-9 --watch 5", "status --all results=there"),
            options=(
                Option("--watch", "again and again, until done", "SECONDS"),
                Option("--all", "every suite of the store"),
            ),
        ),
        "board": Command(
            "print the leaderboard of recorded runs and write it below results/board",
            ("board suite=quick", "board suite=d4rl-gym-9 published=[corl,iql-2021]"),
            options=BOARD_OPTIONS,
        ),
        "reproduce": Command(
            "plan, run and judge the cells of a published table",
            ("reproduce", "reproduce iql-2021-table1", "reproduce corl-gym methods=[iql] --run"),
            "[TABLE [KEY=VALUE ...]]",
            (Option("--run", "run what has no record"), *EFFORT_OPTIONS),
        ),
        "rerun": Command(
            "train a recorded run once more in its stack, and say whether its rows are equal",
            ("rerun RUN_ID", "rerun RUN_ID results=there --alone"),
            "RUN_ID [results=PATH]",
            (Option("--alone", "by itself: rounding differs"),),
        ),
        "compare": Command(
            "say whether an entry is better than others of the board, and where",
            (
                "compare iql+nstep10 iql",
                "compare mine iql rebrac --suite quick --results here --results there",
            ),
            "ENTRY [RIVAL ...] [--suite NAME] [KEY=VALUE ...]",
        ),
        "curves": Command(
            "print and draw the learning curves of recorded runs",
            ("curves suite=quick", "curves suite=quick methods=[bc,iql]", "curves --pulls 200"),
            options=(
                Option(
                    "--pulls",
                    "over episodes that may be played online, up to N",
                    "N",
                    {"type": whole_number},
                ),
            ),
        ),
        "diagnose": Command(
            "draw chunk lengths, values against returns; ope, synthetic: how good they are",
            ("diagnose suite=quick", "diagnose suite=quick methods=[bc,iql]", "diagnose ope"),
            options=(
                Option(
                    "--consistency",
                    "instead: do seeds of an entry end in the same policy? for the board, too",
                ),
                Option(
                    "--churn", "instead: how far policies moved since a shorter run that was kept"
                ),
                Option(
                    "--play",
                    "kept policies play N episodes again, and their decisions are drawn, too",
                    "N",
                    {"type": whole_number},
                ),
            ),
        ),
        "evaluate": Command(
            "estimate from recorded data alone what kept policies are worth",
            (
                "evaluate --offline suite=quick",
                "evaluate --offline task.data=my.hdf5 eval.fqe_updates=20000",
            ),
            options=(
                Option("--offline", "no environment is played in"),
                Option(
                    "--by",
                    "estimators: fqe, wis and dr (importance weights), model (a learned one), as fqe,wis",
                    "NAMES",
                    {"default": "fqe"},
                ),
                Option(
                    "--play",
                    "play N episodes, too, for the error of the estimates",
                    "N",
                    {"type": whole_number},
                ),
            ),
        ),
        "report": Command(
            "write the leaderboard with all that is behind it as one HTML file",
            ("report suite=quick", "report suite=quick --figures"),
            options=(Option("--figures", "write pictures for papers too"),),
        ),
        "sync": Command(
            "send recorded runs to wandb or TensorBoard, each once",
            ("sync --wandb suite=quick", "sync --tensorboard events methods=[bc,iql]"),
            options=(
                Option("--wandb", "to Weights & Biases"),
                Option("--tensorboard", "as event files", "DIR"),
            ),
        ),
        "results": Command("verify, merge, clear up and export recorded runs", (), "COMMAND ..."),
        "submit": Command(
            "pack the records of entries into one file that others can merge",
            ("submit iql+aw --suite quick", "submit mine iql --suite quick --out mine.zip"),
            "ENTRY ... [--suite NAME] [results=FOLDER]",
        ),
        "list": Command(
            "list methods, tasks, suites, samplers, views, weights, synthetic, published",
            ("list methods", "list suites"),
            "KIND",
        ),
        "data": Command(
            "list, show, check, import, collect, download and compose datasets", (), "COMMAND ..."
        ),
        "check": Command(
            "test that a method keeps the contract of all methods",
            ("check method=iql", "check method._target_=mymodule.MyMethod"),
        ),
        "speed": Command(
            "measure how fast training is here, against a plain PyTorch loop",
            (
                "speed",
                "speed methods=[iql] seeds=[1,8] hidden=[[64,64]]",
                "speed --audit methods=[iql,mymodule.MyMethod]",
            ),
            options=(Option("--audit", "say which methods would fail on a GPU"),),
        ),
    }
)

NOTES = """\
Help of one command, with examples and its settings: offbench COMMAND --help

Without suite=, a task has the protocol of the suite that lists it, or of its
family (conf/protocols.yaml). Defaults of all settings are in conf/run.yaml; of
methods, samplers, views, weights, synthetic data in conf/{method,sampler,...}.
A method of your own: method._target_=package.Class, or an installed package
with an `offbench.conf` entry point.
"""

NAMES = """\
  method.KEY, sampler.KEY, view.KEY, weight.KEY, synthetic.KEY: see conf/,
  or `offbench plan method=NAME`, which prints every value with its source
  names: offbench list methods|tasks|suites|samplers|views|weights|synthetic
  several values: method.expectile=[0.7,0.9]; a list as [a,b], null for none
"""

SPEED_SETTINGS = """\
settings:
  methods, precision, backends   names: [td3_bc,iql] or [float32,tf32]
  seeds                          numbers of seeds that train together: [1,8]
  hidden                         widths of hidden layers: [[64,64],[256,256]]
  batch_size, device, threads    as in a run; threads of the processor
  seconds, minutes               of each row; of all, what is left is skipped
  out                            folder of speed.csv, .json and .png; null: none
  launches, cards                of --audit: true rewrites results/launches.csv
                                 (needs triton), for h100 or a100
  peer, peer_pattern, peer_seeds another program's command, a regular expression
                                 with its updates per second, seeds it trains
"""
