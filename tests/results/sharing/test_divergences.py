"""How far seeds are apart in stores that are checked, merged and cleared up."""

import itertools
import os

import pandas as pd
import pytest
from support.records import episodes, provenance, spec
from support.stores import contents, fill, grow_old

from offbench.cli import main
from offbench.results.consistency import COLUMNS, parse_pairs, path_of, write_pairs
from offbench.results.sharing.gc import remove, rubbish
from offbench.results.sharing.merge import merge
from offbench.results.sharing.verify import verify

RUN = spec(method="iql")


def measured(root, seeds, divergence=0.25, entry="iql"):
    """The file of the pairs of some seeds of an entry, as `offbench diagnose --consistency` writes it."""
    ids = {seed: spec(method=entry, seed=seed).run_id for seed in seeds}
    lines = [
        (RUN.task, entry, "action", i, j, ids[i], ids[j], divergence, 100)
        for i, j in itertools.combinations(seeds, 2)
    ]
    path = path_of(root, RUN.suite, RUN.task, entry)
    write_pairs(path, pd.DataFrame(lines, columns=list(COLUMNS)))
    return path


def test_rows_come_along_with_the_runs_they_are_of(tmp_path, capsys):
    source = fill(tmp_path / "a", seeds=[0, 1, 2])
    path = measured(source.root, [0, 1, 2])
    assert main(["results", "merge", str(source.root), f"results={tmp_path / 'b'}"]) == 0
    assert "; consistency of 1 cell" in capsys.readouterr().out
    there = tmp_path / "b" / path.relative_to(source.root)
    assert there.read_bytes() == path.read_bytes()
    # a second time nothing is to do
    assert merge([source.root], tmp_path / "b").compared == 0


def test_rows_of_more_seeds_take_the_place_of_those_of_fewer_and_no_others_do(tmp_path):
    ours, theirs = (fill(tmp_path / name, seeds=[0, 1, 2]) for name in ("a", "b"))
    few, many = measured(ours.root, [0, 1], 0.1), measured(theirs.root, [0, 1, 2], 0.2)
    assert merge([ours.root], theirs.root).compared == 0
    assert merge([theirs.root], ours.root).compared == 1
    assert few.read_bytes() == many.read_bytes()
    # the pairs of seeds 0 and 2 are in neither
    measured(ours.root, [0, 1], 0.1)
    measured(theirs.root, [1, 2], 0.2)
    assert merge([theirs.root], ours.root).compared == 0
    assert parse_pairs(few)["divergence"].tolist() == [0.1]
    # nor are ours theirs where as many were measured
    measured(theirs.root, [0, 1], 0.2)
    assert merge([theirs.root], ours.root).compared == 0


def test_rows_of_runs_that_are_others_here_stay_away(tmp_path):
    theirs = fill(tmp_path / "b", seeds=[0, 1, 2], failed=[2])
    path = measured(theirs.root, [0, 1, 2])
    # seed 0 has other episodes here, seed 2 has failed there
    ours = fill(tmp_path / "a", seeds=[0], shift=1.0)
    assert len(merge([theirs.root], ours.root).conflicts) == 2
    assert not (ours.root / path.relative_to(theirs.root)).exists()
    # of the two that are the same the pair is taken
    found = merge([theirs.root], tmp_path / "c")
    here = parse_pairs(tmp_path / "c" / path.relative_to(theirs.root))
    assert found.compared == 1 and here[["seed", "other"]].to_numpy().tolist() == [[0, 1]]


def test_rows_of_another_label_stay_away(tmp_path):
    theirs, ours = fill(tmp_path / "b", entries=["iql"]), fill(tmp_path / "a", entries=["bc"])
    for seed in (0, 1):
        rows = episodes(score=[seed, seed + 25.0, seed + 50.0])
        ours.append(spec(method="iql", seed=seed), rows, provenance(entry="mine"))
    measured(theirs.root, [0, 1])
    found = merge([theirs.root], ours.root)
    assert found.skipped == 2 and found.compared == 0


def damage(path, how):
    text = path.read_text()
    path.write_text("x\n" if how == "other columns" else text.replace(",iql,", ",bc,"))


@pytest.mark.parametrize("how", ["other columns", "rows of another entry"])
def test_a_file_that_is_damaged_is_named_and_put_aside(how, tmp_path):
    store = fill(tmp_path / "a", seeds=[0, 1])
    assert not verify(store.root).faults
    path = measured(store.root, [0, 1])
    assert not verify(store.root).faults
    damage(path, how)
    assert [f.path for f in verify(store.root).faults] == [path]
    found = merge([store.root], tmp_path / "b")
    assert found.taken == 4 and [str(path) in line for line in found.damaged] == [True]
    # one that is damaged here is not written over
    whole = fill(tmp_path / "c", seeds=[0, 1])
    measured(whole.root, [0, 1])
    assert str(path) in merge([whole.root], store.root).damaged[0]
    before = contents(store.root)
    repaired = verify(store.root, repair=True)
    assert list(repaired.moved) == [path] and not path.exists() and repaired.damaged == 0
    assert contents(store.root) == before and not verify(store.root).faults


def test_gc_leaves_what_is_measured_of_recorded_runs(tmp_path):
    store = fill(tmp_path / "a", seeds=[0, 1], failed=[1])
    kept, gone = measured(store.root, [0, 7]), measured(store.root, [5, 6], entry="bc")
    broken = store.root / "consistency" / "s" / "t" / "e.csv"
    broken.parent.mkdir(parents=True)
    broken.write_text("x\n")
    for path in (kept, gone, broken):
        grow_old(path)
    found = rubbish(store.root, damaged=True, policies=True)
    assert [(one.path, one.kind) for one in found] == [
        (gone, "divergences of runs without a record")
    ]
    remove(found)
    assert kept.exists() and broken.exists() and not gone.exists()
    os.utime(measured(store.root, [5, 6], entry="bc"))
    assert not rubbish(store.root)
