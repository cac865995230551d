"""What was measured of runs, in stores that are checked, merged and cleared up."""

import itertools
import os
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.numpy import save
from support.records import episodes, provenance, spec
from support.stores import contents, fill, flip, grow_old

from offbench.cli import main
from offbench.io import UNSEALED, linked_or_copied, seal
from offbench.results import decisions, estimates
from offbench.results.consistency import COLUMNS, parse_pairs, path_of, write_pairs
from offbench.results.sharing import measurements
from offbench.results.sharing.gc import remove, rubbish
from offbench.results.sharing.merge import merge
from offbench.results.sharing.verify import verify
from offbench.results.store import Store

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
    assert "; consistency: 1 file" in capsys.readouterr().out
    there = tmp_path / "b" / path.relative_to(source.root)
    assert there.read_bytes() == path.read_bytes()
    # a second time nothing is to do
    assert merge([source.root], tmp_path / "b").measured == {}


def test_rows_of_more_seeds_take_the_place_of_those_of_fewer_and_no_others_do(tmp_path):
    ours, theirs = (fill(tmp_path / name, seeds=[0, 1, 2]) for name in ("a", "b"))
    few, many = measured(ours.root, [0, 1], 0.1), measured(theirs.root, [0, 1, 2], 0.2)
    assert merge([ours.root], theirs.root).measured == {}
    assert merge([theirs.root], ours.root).measured == {"consistency": 1}
    assert few.read_bytes() == many.read_bytes()
    # the pairs of seeds 0 and 2 are in neither
    measured(ours.root, [0, 1], 0.1)
    measured(theirs.root, [1, 2], 0.2)
    assert merge([theirs.root], ours.root).measured == {}
    assert parse_pairs(few)["divergence"].tolist() == [0.1]
    # nor are ours theirs where as many were measured
    measured(theirs.root, [0, 1], 0.2)
    assert merge([theirs.root], ours.root).measured == {}


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
    assert found.measured == {"consistency": 1} and here[["seed", "other"]].to_numpy().tolist() == [
        [0, 1]
    ]


def test_rows_of_another_label_stay_away(tmp_path):
    theirs, ours = fill(tmp_path / "b", entries=["iql"]), fill(tmp_path / "a", entries=["bc"])
    for seed in (0, 1):
        rows = episodes(score=[seed, seed + 25.0, seed + 50.0])
        ours.append(spec(method="iql", seed=seed), rows, provenance(entry="mine"))
    measured(theirs.root, [0, 1])
    found = merge([theirs.root], ours.root)
    assert found.skipped == 2 and found.measured == {}


def test_of_one_seed_that_is_the_same_no_pair_is_taken(tmp_path):
    theirs = fill(tmp_path / "b", seeds=[0, 1], failed=[1])
    path = measured(theirs.root, [0, 1])
    assert merge([theirs.root], tmp_path / "c").measured == {}
    assert not (tmp_path / "c" / path.relative_to(theirs.root)).exists()


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


# --- tables of one run ----------------------------------------------------------------------


def estimated(store, seed=0, value=1.0, by="fqe"):
    """The estimates of a kept policy of a recorded run."""
    mark = store.path(spec(method="iql", seed=seed), "iql")
    rows = pd.DataFrame({"run_id": mark.stem, "estimator": by, "episode": range(4), "value": value})
    path = estimates.path_of(store.root, mark, by)
    estimates.write_estimates(path, rows, mark.with_suffix(".safetensors"), {"gamma": 0.9})
    return path


def played(store, seed=0, value=1.0):
    """The decisions of a kept policy of a recorded run."""
    mark = store.path(spec(method="iql", seed=seed), "iql")
    known = {"control": pd.NA, "distance": 0.5, "steps": 2, "success": True, "score": 1.0}
    rows = pd.DataFrame({"episode": [0, 1], "step": 0, "length": 2, "value": value, **known})
    rows = rows.assign(discounted_return=1.0, left_out=0.0, run_id=mark.stem)
    path = decisions.path_of(store.root, mark)
    decisions.write_decisions(path, rows, mark.with_suffix(".safetensors"))
    return path


TABLES = pytest.mark.parametrize("make", [estimated, played])


def kept_store(root):
    return fill(root, entries=["iql"], kept=[0, 1])


def copied(store, root):
    """The same records with the same policies: safetensors writes a header's names in any order."""
    shutil.copytree(store.root / "runs", root / "runs")
    return Store(root)


def test_tables_come_along_with_the_runs_they_are_of(tmp_path, capsys):
    theirs = kept_store(tmp_path / "a")
    paths = [estimated(theirs), estimated(theirs, by="wis"), played(theirs), played(theirs, seed=1)]
    assert main(["results", "merge", str(theirs.root), f"results={tmp_path / 'b'}"]) == 0
    assert "; estimates: 2 files; decisions: 2 files" in capsys.readouterr().out
    for path in paths:
        assert (tmp_path / "b" / path.relative_to(theirs.root)).read_bytes() == path.read_bytes()
    assert not verify(tmp_path / "b").faults
    assert merge([theirs.root], tmp_path / "b").measured == {}


@TABLES
def test_tables_come_along_without_the_policies_too(make, tmp_path):
    theirs = kept_store(tmp_path / "a")
    path = make(theirs)
    found = merge([theirs.root], tmp_path / "b", policies=False)
    assert found.measured.total() == 1 and not found.damaged
    assert (tmp_path / "b" / path.relative_to(theirs.root)).exists()
    assert not verify(tmp_path / "b").faults


@TABLES
def test_a_table_that_is_here_stays(make, tmp_path):
    theirs = kept_store(tmp_path / "b")
    ours = copied(theirs, tmp_path / "a")
    make(theirs, value=2.0)
    before = (path := make(ours)).read_bytes()
    assert merge([theirs.root], ours.root).measured == {} and path.read_bytes() == before


@TABLES
def test_of_two_that_bring_a_table_the_first_wins(make, tmp_path, monkeypatch):
    theirs = kept_store(tmp_path / "b")
    ours = copied(theirs, tmp_path / "a")
    target = ours.root / (path := make(theirs, value=2.0)).relative_to(theirs.root)

    def late(*args):
        make(ours)
        return linked_or_copied(*args)

    monkeypatch.setattr(measurements, "linked_or_copied", late)
    assert merge([theirs.root], ours.root).measured == {}
    assert target.read_bytes() != path.read_bytes() and not verify(ours.root).orphans


@TABLES
def test_tables_of_runs_that_are_others_here_or_of_another_policy_stay_away(make, tmp_path):
    theirs = kept_store(tmp_path / "b")
    path = make(theirs)
    others = fill(tmp_path / "a", entries=["iql"], seeds=[0], shift=1.0)
    assert merge([theirs.root], others.root).measured == {}
    assert not (others.root / path.relative_to(theirs.root)).exists()
    # the same episodes, and weights that differ in a last digit
    mine = copied(theirs, tmp_path / "c")
    kept = mine.path(spec(method="iql", seed=0), "iql").with_suffix(".safetensors")
    kept.write_bytes(b"another one")
    found = merge([theirs.root], mine.root)
    assert found.measured == {} and found.damaged == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def swap(path):
    """Puts the table of another run in its place."""
    table = pq.read_table(path)
    names = pa.array(["f" * 16] * len(table))
    pq.write_table(table.set_column(0, table.schema.field(0), names), path)


def retrain(path):
    """Puts another whole policy in the place of the one that the table is of."""
    run = f"{path.name.split('.')[0]}.safetensors"
    kept = path.parents[4].joinpath("runs", *path.parts[-4:-1], run)
    with safe_open(kept, "np") as file:
        metadata = file.metadata() | {"sha256": UNSEALED}
    kept.write_bytes(save({"w": np.arange(5.0)}, metadata=metadata))
    seal(kept)


def turn_a_bit(path):
    # of a page: rows come first
    flip(path, 40, 4)


@TABLES
@pytest.mark.parametrize(
    "damage, words",
    [
        (cut, "cannot be read as"),
        (turn_a_bit, "cannot be read as"),
        (swap, "has no rows of the run that it is named by, or others"),
        (retrain, "is of another policy than"),
        (lambda path: path.rename(path.with_name(f"{'1' * 16}{path.name[16:]}")), "has no rows"),
    ],
    ids=["cut", "a bit", "another run", "another policy", "another name"],
)
def test_a_table_that_is_damaged_is_named_left_out_and_put_aside(make, damage, words, tmp_path):
    store = kept_store(tmp_path / "a")
    whole, path = make(store, seed=1), make(store)
    assert not verify(store.root).faults
    damage(path)
    faults = [
        str(f) for f in verify(store.root).faults if "decisions" in str(f) or "estimates" in str(f)
    ]
    assert len(faults) == 1 and words in faults[0] and "\n" not in faults[0]
    found = merge([store.root], tmp_path / "b")
    assert faults[0] in found.damaged and found.measured.total() == 1
    repaired = verify(store.root, repair=True)
    assert whole.exists() and not verify(store.root).faults
    assert [p.parent for p in repaired.moved if p.suffix == ".parquet"] == [path.parent]


@TABLES
def test_gc_finds_tables_of_runs_without_a_record(make, tmp_path):
    store = kept_store(tmp_path / "a")
    stays, goes = make(store), make(store, seed=1)
    for path in store.path(spec(method="iql", seed=1), "iql").parent.glob(f"{goes.name[:16]}*"):
        path.unlink()
    grow_old(stays, goes)
    found = rubbish(store.root)
    assert [(one.path, one.kind) for one in found] == [
        (goes, f"{goes.relative_to(store.root).parts[0]} of runs without a record")
    ]
