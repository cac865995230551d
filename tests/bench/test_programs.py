"""What a plan says of compiling: programs are counted once, whatever the datasets."""

from pathlib import Path

import pytest

from offbench.bench.plan import plan
from offbench.bench.programs import compiled_programs
from offbench.bench.settings import Settings
from offbench.bench.stacks import pack
from offbench.cli import main

CHEETAHS = "task=offbench/halfcheetah/expert5-v0,offbench/halfcheetah/medium-replay-v0"
COMPILE = Settings(engine="compile", device="cpu")


def packs(*words: str, n_updates: int = 1000, max_stack: int | None = None):
    cells = plan([*words, f"n_updates={n_updates}"], bench=True).cells
    return pack(cells, max_stack=max_stack)


@pytest.mark.parametrize(
    ("words", "n"),
    [
        (["methods=[bc]", CHEETAHS], 1),
        # which rows are drawn is no part of an update
        (["methods=[bc,bc+rw]", CHEETAHS, "preset=none"], 1),
        (["methods=[bc,iql]", CHEETAHS, "preset=none"], 2),
        (["methods=[bc]", CHEETAHS + ",offbench/hopper/medium-replay-v0"], 2),
        (["methods=[bc]", CHEETAHS, "method.lr=1e-3,1e-4"], 1),
    ],
    ids=["datasets", "samplers", "methods", "dimensions", "sweep"],
)
def test_a_program_is_compiled_for_each_method_and_shape_of_problem(words, n):
    assert compiled_programs(packs(*words), COMPILE) == n


def test_stacks_of_other_sizes_are_other_programs():
    words = ["methods=[bc]", CHEETAHS, "seeds=[0,1,2]"]
    assert compiled_programs(packs(*words, max_stack=2), COMPILE) == 2


def test_only_what_the_engine_compiles_counts():
    auto = Settings(engine="auto", device="cpu")
    assert compiled_programs(packs("methods=[bc]", CHEETAHS), auto) == 0
    assert compiled_programs(packs("methods=[bc]", CHEETAHS, n_updates=10**6), auto) == 1


def test_a_plan_says_how_many_programs_it_compiles(tmp_path: Path, capsys):
    hopper = "task=offbench/hopper/medium-replay-v0"
    args = ["methods=[bc]", hopper, "n_updates=1000", "seeds=[0]", f"results={tmp_path}"]
    assert main(["plan", *args, "engine=compile"]) == 0
    assert "1 program to compile" in " ".join(capsys.readouterr().out.split())
