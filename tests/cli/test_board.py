"""`offbench board`: its options, its formats, and what it says of records that are not as they should be."""

from pathlib import Path

import numpy as np
import pytest
from support.records import episodes, provenance

from offbench.bench.plan import plan
from offbench.cli.app import call
from offbench.results.store import Store

SETTINGS = ("methods=[bc,iql]", "task=offbench/hopper/medium-replay-v0", "seeds=[0,1]")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Records of two methods with two seeds each, on one task of quick."""
    store, generator = Store(tmp_path), np.random.default_rng(0)
    for cell in plan([*SETTINGS, f"results={tmp_path}"], bench=True).cells:
        for run in cell.runs():
            n = cell.protocol["episodes"]
            rows = episodes(n, update=run.n_updates, score=generator.normal(50, 9, n))
            store.append(run, rows, provenance(entry=cell.entry))
    return tmp_path


def board(results: Path, *args: str) -> int:
    return call(["board", *SETTINGS, f"results={results}", *args])


def test_options_stand_anywhere_among_the_settings(results, capsys):
    for args in (["--format", "csv", *SETTINGS], [*SETTINGS, "--format", "csv"]):
        assert call(["board", f"results={results}", *args, "device=cpu"]) == 0
        assert capsys.readouterr().out.startswith("kind,entry,task,")


def test_a_format_is_printed_alone_and_is_the_file(results, capsys):
    for name, ending in (("markdown", "md"), ("csv", "csv")):
        assert board(results, "--format", name) == 0
        assert capsys.readouterr().out == (results / f"board/quick-part.{ending}").read_text()
