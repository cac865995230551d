"""`offbench reproduce`: a published table planned, run, and judged by the records."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from support.records import provenance, record_cells

from offbench.bench.reproduce import find_table, reproduction, table_names
from offbench.bench.studies import studies
from offbench.cli import main
from offbench.errors import UserError
from offbench.results.store import Store

QUICK, CUBE = "offbench/hopper/medium-replay-v0", "offbench/cube-single-play-v0"


@pytest.fixture
def mine(tmp_path) -> Path:
    """A published table of embedded tasks, with a method that is not here."""
    path = tmp_path / "mine.csv"
    path.write_text(
        "task,entry,score,std,seeds,steps\n"
        f"{QUICK},bc,90,1,3,30\n{QUICK},elsewhere,90,1,3,30\n{CUBE},bc,1,2,2,\n"
    )
    return path


def test_a_table_of_ones_own_is_planned_run_and_judged(mine, tmp_path, capsys):
    results = tmp_path / "results"
    given = [str(mine), f"task={QUICK}", "seeds=[0,1]", "eval.episodes=2", "method.hidden=[8]"]
    given += [f"results={results}", "jobs=1"]
    assert main(["reproduce", *given]) == 0
    out = capsys.readouterr().out
    assert "2 published scores, 1 of them of 1 cell that can be run here" in out
    assert "cannot be run: elsewhere: no such method here" in out
    changed = "seeds=[0,1] eval.episodes=2 method.hidden=[8]"
    assert f"changed by you, so not the published settings: {changed}" in out
    # the published number of updates
    assert "30 updates" in out and "2 runs to do" in out and out.splitlines()[-1].endswith(" --run")
    assert not results.exists()

    assert main(["reproduce", *given, "--run"]) == 0
    out = capsys.readouterr().out
    assert "quick: 2 runs, 0 recorded, 2 to do" in out
    assert len(list(results.glob("runs/quick/*/*/*.parquet"))) == 2
    assert f"No test of what is published: {changed} changed by you." in out
    with (results / "reproduce" / "mine.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["n_seeds"] == "2" and -5 < float(row["ours"]) < 30
    # two hardly trained seeds: 90 ± 2.5 lies in their interval or above it
    assert row["verdict"] == "agrees" or row["verdict"].endswith("lower")

    assert main(["reproduce", *given]) == 0
    again = capsys.readouterr().out
    assert "quick: 2 runs, all recorded" in again and row["verdict"].split(":")[0] in again


def verdicts(results: Path, name: str) -> dict[tuple[str, str], str]:
    with (results / "reproduce" / f"{name}.csv").open(newline="") as file:
        return {(row["entry"], row["task"]): row["verdict"] for row in csv.DictReader(file)}


def test_each_cell_has_a_verdict_and_the_table_one_sentence(tmp_path, capsys):
    tasks = [f"d4rl/{robot}-medium-v2" for robot in ("hopper", "walker2d", "halfcheetah")]
    given = ["corl-gym", "methods=[bc,iql,dt]", f"task=[{','.join(tasks)}]", f"results={tmp_path}"]
    wanted = reproduction(given[0], given[1:])
    assert len(wanted.cells) == 9 and {len(c.seeds) for c in wanted.cells.values()} == {4}
    of = lambda entry, robot: wanted.cells[entry, f"d4rl/{robot}-medium-v2"]
    # CORL's settings of the decision transformer, 100k updates, 100 episodes
    dt = of("dt", "hopper")
    assert dt.entry == "dt(preset=corl)" and (dt.n_updates, dt.protocol["episodes"]) == (10**5, 100)
    published = {(r.entry, r.task): r.score for r in wanted.rows.itertuples()}
    at = lambda by: (
        lambda cell, seed: published[cell.entry.split("(")[0], cell.task.id] + by + seed / 4
    )
    store = Store(tmp_path)
    record_cells(store, [of("bc", "hopper"), dt, of("bc", "halfcheetah")], at(0))
    record_cells(store, [of("iql", "hopper")], at(-20))
    record_cells(store, [replace(of("iql", "walker2d"), seeds=(0, 1))], at(0))
    failed = of("iql", "halfcheetah")
    for run in replace(failed, task=replace(failed.task, sha256="ab" * 32)).runs():
        store.fail(run, "diverged to nan", provenance(entry="iql"), status="diverged")

    assert main(["reproduce", *given]) == 0
    out = capsys.readouterr().out
    found = verdicts(tmp_path, "corl-gym")
    assert found["bc", tasks[0]] == found["dt", tasks[0]] == found["bc", tasks[2]] == "agrees"
    assert found["iql", tasks[0]] == "differs: ours 19.6 lower"
    assert found["iql", tasks[1]] == "cannot tell: 2 of 4 seeds"
    assert found["iql", tasks[2]] == "diverged"
    assert found["bc", tasks[1]] == found["dt", tasks[1]] == "not run"
    assert "3 of 4 cells agree; expected by chance at 95 %: at most 0.2 misses; 5 not run" in out
    assert "changed by you" not in out
    lines = [line for line in out.splitlines() if line[:6] in ("BC    ", "IQL   ", "DT    ")]
    assert len(lines) == 9 and max(map(len, lines)) <= 80
    assert sum("  differs -19.6 [" in line for line in lines) == 1
    assert sum(line.endswith("  cannot tell: 2 of 4 seeds") for line in lines) == 1


def test_one_seed_tells_nothing(tmp_path, capsys):
    given = ["corl-gym", "methods=[bc]", "task=d4rl/hopper-medium-v2", f"results={tmp_path}"]
    record_cells(
        Store(tmp_path),
        reproduction(given[0], [*given[1:], "seeds=[3]"]).cells.values(),
        lambda c, s: 0.0,
    )
    assert main(["reproduce", *given, "seeds=[3]"]) == 0
    out = capsys.readouterr().out
    assert list(verdicts(tmp_path, "corl-gym").values()) == ["cannot tell: one seed"]
    assert (
        "Nothing can be told yet: of 1 cell none is whole." in out
        and "seeds=[3] changed by you" in out
    )


def test_what_a_source_does_not_say_is_said():
    wanted = reproduction("iql-2021-table1", ["methods=[iql,onestep]"])
    assert [p.name for p in wanted.plans] == ["d4rl-gym-9", "d4rl-antmaze"]
    assert len(wanted.cells) == 15 and list(wanted.impossible) == ["no such method here"]
    assert {c.entry for c in wanted.cells.values()} == {"iql(preset=paper)"}
    assert wanted.assumed[0] == "its number of seeds is not known: 4, of the suite"
    assert not wanted.changed and not any("hyper-parameters" in x for x in wanted.assumed)
    # ReBRAC's ten seeds, SAC-N's three million updates
    ten = reproduction("rebrac-2023-gym", ["task=d4rl/hopper-medium-v2", "methods=[rebrac]"])
    assert [len(c.seeds) for c in ten.cells.values()] == [10]
    long = reproduction("corl-gym", ["task=d4rl/hopper-medium-v2", "methods=[sac_n]"])
    assert [c.n_updates for c in long.cells.values()] == [3_000_000]


def test_settings_are_the_published_ones_or_it_is_said_that_they_are_not():
    wanted = reproduction("rebrac-2023", ["methods=[rebrac,iql,td3_bc]"])
    rebrac = [row for row in wanted.rows.itertuples() if row.entry == "rebrac"]
    assert len(rebrac) == 28
    for row in rebrac:
        used = wanted.cells[row.entry, row.task].hparams
        noted = [float(part.partition("=")[2]) for part in row.note.split()]
        assert [used["actor_bc_weight"], used["critic_bc_weight"]] == noted, row.task
    # tuned per dataset there
    (said,) = [line for line in wanted.assumed if line.startswith("hyper-parameters")]
    assert said == "hyper-parameters of td3_bc, iql: the usual ones here; its own may differ"


def test_every_table_that_is_listed_is_found(capsys):
    names = [name for name, _ in table_names()]
    some = ("corl-gym", "iql-2021-table1", "rebrac-2023-antmaze", "harness-2023-mixed")
    assert {*some, "ogbench-2024"} <= set(names)
    assert not {"corl-best", "qam-2026"} & set(names)
    for name, rows in table_names():
        assert len(find_table(name)[1]) == len(rows) > 0
    assert main(["reproduce"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [*names, *studies()]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["corl-gum"], "unknown table or study 'corl-gum': did you mean 'corl-gym'"),
        (["corl-best"], "offbench scores the last"),
        (["qam-2026"], "a mean over five tasks"),
        (["corl-gym", "methods=[iqll]"], "unknown entry of corl-gym 'iqll': did you mean 'iql'"),
        (["corl-gym", "task=d4rl/x"], "unknown task of corl-gym 'd4rl/x'"),
        (["corl-gym", "methods=[bc]", "mathod=1"], "offbench: unknown setting 'mathod'"),
        (
            ["corl-gym", "seeds=[0]", "n_updates=1,2"],
            "offbench: n_updates=1,2: a sweep has several",
        ),
        (["corl-gym", "method=bc"], "method= is set by the table"),
        (["corl-gym", "iql-2021"], "one table at a time: corl-gym, iql-2021"),
        (["seeds=[0]"], "name a table first"),
        (["none.csv"], "no such file"),
    ],
)
def test_a_mistake_is_told_in_one_line(args, words, capsys):
    assert main(["reproduce", *args]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and not out


def test_a_table_without_a_task_that_is_here(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("task,entry,score\nd4rl/hopper-none-v9,bc,1\n")
    with pytest.raises(UserError, match=r"none of its cells can be run here .*unknown task"):
        reproduction(str(path), [])
