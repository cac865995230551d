"""A run beside a damaged checkpoint begins again, says so in one line, and ends as any other."""

import pandas as pd
import pytest

from offbench.bench.plan import plan
from offbench.bench.progress import checkpoint_path
from offbench.bench.stacks import pack
from offbench.cli import main
from offbench.results.store import Store

RUN = [
    "method=bc",
    "method.hidden=[8]",
    "task=offbench/hopper/medium-replay-v0",
    "n_updates=8",
    "eval.episodes=2",
    "eval.monitor_at=[]",
    "seeds=[0,1]",
    "jobs=1",
    "device=cpu",
]


@pytest.mark.env
def test_a_damaged_checkpoint_costs_its_updates_and_is_remarked(tmp_path, capsys):
    args = [*RUN, f"results={tmp_path / 'r'}"]
    wanted = plan(args, bench=False)
    path = checkpoint_path(pack(wanted.cells)[0], wanted.settings)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      and so on")
    # the side file of an earlier version
    path.with_suffix(".json").write_text('{"curves": [')
    assert main(["run", *args]) == 0
    line = (
        f"checkpoint {path.name} is damaged (cut off, or of another version); training begins again"
    )
    out = " ".join(capsys.readouterr().out.split())
    # as the note of the stack, and below the board
    assert out.count(line) == 2
    assert Store(tmp_path / "r").runs()["reason"].tolist() == [line, line]
    assert [p.name for p in path.parent.iterdir()] == [f"{path.stem}.damaged"]
    assert main(["run", *RUN, f"results={tmp_path / 'whole'}"]) == 0
    rows = [
        Store(tmp_path / x).episodes().sort_values(["seed", "episode"], ignore_index=True)
        for x in ("r", "whole")
    ]
    pd.testing.assert_frame_equal(*rows)
