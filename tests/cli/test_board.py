"""`offbench board`: its options, its formats, and what it says of records that are not as they should be."""

import hashlib
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.records import episodes, parquet_of, provenance

from offbench.bench.plan import plan
from offbench.cli.app import call, main
from offbench.results.record import DamagedRecord, load, seal
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


# --- records that are not as they should be -------------------------------------------------


def refused(capsys, results: Path, *args: str) -> str:
    """The one line that a user's mistake is told in."""
    assert main(["board", *SETTINGS, f"results={results}", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and not (results / "board").exists()
    return err


def marks(results: Path) -> list[Path]:
    return sorted((results / "runs").rglob("*.json"))


def test_no_records_are_told(results, capsys):
    line = refused(capsys, results / "none")
    assert line.endswith(f"with these settings in {results}/none; run: offbench bench\n")
    version = plan([], bench=True).suite["version"]
    assert f"(4 runs of quick v{version} are there, with" in refused(capsys, results, "seeds=[77]")


@pytest.mark.parametrize("damage", ["gone", "half", "other rows", "json"])
def test_a_board_goes_on_without_a_damaged_run_and_names_its_file(results, capsys, damage):
    mark = marks(results)[1]
    path, entry = parquet_of(mark), mark.parent.name
    if damage == "gone":
        path.unlink()
    elif damage == "half":
        path.write_bytes(path.read_bytes()[:700])
    elif damage == "json":
        path = mark
        path.write_bytes(b"?" + path.read_bytes()[1:])
    else:
        path.write_bytes(parquet_of(marks(results)[0]).read_bytes())
    for command in ("board", "report", "bench"):
        with pytest.warns(DamagedRecord) as told:
            assert main([command, *SETTINGS, f"results={results}"]) == 0
        # all from one place in the code: Python prints them once
        (line,) = {
            warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in told
        }
        assert len({(w.filename, w.lineno) for w in told}) == 1
        assert line.startswith(f"offbench: warning: damaged record: {path} ")
        assert line.endswith(f"offbench results verify --repair results={results}\n")
    with pytest.warns(DamagedRecord):
        assert board(results, "--format", "markdown") == 0
    # not as a whole entry
    assert f"{entry} has 1 of 2 seeds asked for" in capsys.readouterr().out


def test_episodes_without_their_json_are_no_record(results, capsys):
    first = marks(results)[0]
    entry = first.parent.name
    first.unlink()
    assert board(results, "--format", "markdown") == 0
    assert f"{entry} has 1 of 2 seeds asked for" in capsys.readouterr().out


def test_two_records_of_one_run_are_refused_with_both_files(results, capsys):
    first = marks(results)[0]
    other = first.parent.with_name("other")
    shutil.copytree(first.parent, other)
    err = refused(capsys, results)
    assert "one run is recorded twice: " in err and str(first.name) in err and "/other/" in err


def test_two_configurations_of_one_seed_are_refused_with_what_differs(results, capsys):
    """Of another entry, whose settings the board does not know."""
    store, cell = Store(results), plan([*SETTINGS, f"results={results}"], bench=True).cells[0]
    run = cell.runs()[0]
    for lr in (1e-3, 1e-4):
        spec = type(run)(**{**run.as_dict(), "hparams": {"lr": lr}})
        n = cell.protocol["episodes"]
        store.append(spec, episodes(n, update=run.n_updates), provenance(entry="mine"))
    err = refused(capsys, results)
    assert "entry 'mine' has two runs of seed 0" in err and "which differ in hparams.lr (0." in err


def test_a_record_of_another_format_is_refused(results, capsys):
    path = marks(results)[0]
    body = load(path)
    path.write_text(seal(body | {"format": 9}))
    assert "has record format 9, this offbench reads 1" in refused(capsys, results)


def test_runs_of_another_version_of_the_suite_are_shown_and_told(results, capsys):
    store, cell = Store(results), plan([*SETTINGS, f"results={results}"], bench=True).cells[0]
    for run in cell.runs():
        spec = type(run)(**{**run.as_dict(), "suite_version": 99})
        n = cell.protocol["episodes"]
        store.append(spec, episodes(n, update=run.n_updates), provenance(entry="older"))
    assert board(results, "--format", "markdown") == 0
    assert "runs differ in suite_version" in capsys.readouterr().out


def test_scores_that_are_not_finite_are_refused_with_their_run(results, capsys):
    """They cannot be recorded; a file may hold them all the same."""
    path = marks(results)[0]
    parquet = parquet_of(path)
    table = pq.read_table(parquet)
    scores = table["score"].to_numpy().copy()
    scores[0] = np.nan
    place = table.column_names.index("score")
    pq.write_table(
        table.set_column(place, table.schema.field("score"), pa.array(scores)),
        parquet,
    )
    content, body = parquet.read_bytes(), load(path)
    about = {"file": parquet.name, "rows": table.num_rows, "bytes": len(content)}
    about["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(seal({k: v for k, v in body.items() if k != "checksum"} | {"episodes": about}))
    assert f"run {path.stem} has a score which is not finite" in refused(capsys, results)


def test_of_one_seed_the_interval_is_withheld_and_it_is_said_why(results, capsys):
    seeds = [*SETTINGS[:2], "seeds=[0]", f"results={results}"]
    assert call(["board", *seeds]) == 0
    out = capsys.readouterr().out
    assert "One seed: its interval is withheld, as nothing says how seeds differ" in out
    assert "±" not in out
    assert call(["board", *seeds, "--explain"]) == 0
    assert "One seed says nothing about how seeds differ" in " ".join(
        capsys.readouterr().out.split()
    )


# --- explain, diff, check -------------------------------------------------------------------


def test_every_number_is_explained(results, capsys):
    assert board(results, "--explain") == 0
    out = capsys.readouterr().out
    names = {line for line in out.splitlines() if line and not line.startswith(" ")}
    assert names >= {"score", "cell", "interval", "bold", "status", "IQM", "mean", "rank", "pairs"}
    assert names >= {"tuned", "tuning", "updates", "s/run"}
    words = " ".join(out.split())
    assert "[1-2] says that nothing is known of its place" in words and "`0/1` is none" in words
    assert max(map(len, out.splitlines())) <= 80
    assert not (results / "board").exists()


def test_a_board_is_compared_with_a_folder_and_with_a_written_board(results, tmp_path, capsys):
    assert board(results) == 0
    capsys.readouterr()
    for old in (results, results / "board/quick-part.json", results / "board/quick-part.csv"):
        assert board(results, "--diff", str(old)) == 0
        assert capsys.readouterr().out.startswith("no score changed: all 4 are the same")
    assert main(["board", f"results={results}", *SETTINGS, "--diff", str(tmp_path / "none")]) == 2
    assert "no results folder, and no board's .json or .csv" in capsys.readouterr().err


def test_a_written_board_is_checked_without_its_runs(results, capsys):
    assert board(results) == 0
    shutil.rmtree(results / "runs")
    path = results / "board/quick-part.csv"
    assert call(["board", "--check", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"{path}: every number is that of its rows\n")
    path.write_text(path.read_text().replace("quick", "fast").replace("cell,bc", "cell,bd"))
    assert call(["board", "--check", str(path)]) == 1
    assert "cell bd offbench/hopper/medium-replay-v0 mean" in capsys.readouterr().out
