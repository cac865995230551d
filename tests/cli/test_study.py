"""`offbench reproduce STUDY`: the benches of a study of ours planned, run, each with a board of its own."""

import pytest

from offbench.bench import studies as module
from offbench.bench.plan import plan
from offbench.bench.reproduce import table_names
from offbench.bench.studies import Study, studies
from offbench.cli import main
from offbench.results.board.evidence import read_evidence

HOPPER = "offbench/hopper/medium-replay-v0"
TINY = ["n_updates=20", "eval.episodes=2", "eval.monitor_at=[]", "method.hidden=[8]", "jobs=1"]


@pytest.mark.parametrize("name", studies())
def test_every_part_of_a_study_is_planned(name):
    for args in studies()[name].parts.values():
        assert plan(args, bench=True).cells


def test_the_study_of_acsac_has_what_it_says():
    parts = studies()["acsac-small"].parts
    cells = {name: plan(args, bench=True).cells for name, args in parts.items()}
    assert [c.entry for c in cells["family"]] == ["qc", "acsac", "bfn", "fql", "iql", "iql+nstep5"]
    layouts = {(c.hparams["positions"], c.hparams["head"]) for c in cells["layouts"]}
    assert len(layouts) == 4 and ("sinusoid", "per_position") in layouts
    lengths = {(c.pipeline["view"]["h"], c.hparams["n_proposals"]) for c in cells["lengths"]}
    assert lengths == {(h, n) for h in (1, 3, 5, 7) for n in (1, 4, 8)}
    # the default cell is the same runs in the first three parts
    short = [cells[name] for name in ("family", "layouts", "lengths")]
    ids = [{run.run_id for c in of_part for run in c.runs()} for of_part in short]
    assert len(set.intersection(*ids)) == 3
    assert [c.entry for c in cells["budget"]] == [c.entry for c in cells["family"]]
    assert {c.n_updates for c in cells["budget"]} == {32_000}
    assert {c.pipeline["view"]["h"] for c in cells["lengths_longer"]} == {1, 3, 5, 7}
    # seed 100 chose the settings
    assert all(100 not in c.seeds for of_part in cells.values() for c in of_part)


def test_a_study_is_planned_then_run_with_a_board_for_each_part(tmp_path, monkeypatch, capsys):
    common = [f"task={HOPPER}", "suite=quick", "methods=[bc]"]
    parts = {"one": [*common, "seeds=[0]"], "two": [*common, "seeds=[0,1]", "method.lr=1e-3,2e-3"]}
    mine = Study(name="mine", summary="two benches", parts=parts)
    monkeypatch.setattr(module, "studies", lambda: {"mine": mine})
    given = ["reproduce", "mine", *TINY, f"results={tmp_path}"]
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "1 run to do" in out and "4 runs to do" in out and "methods=[bc]" in out
    assert out.splitlines()[-1].endswith("--run")
    assert not list(tmp_path.iterdir())

    assert main([*given, "--run"]) == 0
    out = capsys.readouterr().out
    # the lower rate is that of the suite
    assert "1 run, 0 recorded" in out and "4 runs, 1 recorded, 3 to do" in out
    assert main(given) == 0
    boards = [read_evidence(tmp_path / "board", f"mine-{part}") for part in parts]
    assert [len(board.runs) for board in boards] == [1, 4]


def test_studies_are_listed_and_a_wrong_name_says_the_nearest(capsys):
    assert main(["reproduce"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "acsac-small"
    assert not studies().keys() & dict(table_names()).keys()
    assert main(["reproduce", "acsac-smal"]) == 2
    assert (
        "unknown table or study 'acsac-smal': did you mean 'acsac-small'" in capsys.readouterr().err
    )
