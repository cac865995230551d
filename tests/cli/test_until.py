"""`bench.until=decided`: the loop over looks, its board, and what is refused."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from support.records import record_cells

from offbench.bench.plan import plan
from offbench.bench.stacks import missing
from offbench.cli import main
from offbench.cli.board import evidence_of
from offbench.cli.describe import say_protocol
from offbench.cli.parts import Ran
from offbench.cli.recorded import board_name
from offbench.cli.until import notes_of, progress_of, run_until_decided
from offbench.errors import UserError
from offbench.results.sequential import EQUIVALENT, Look, Progress, Rule
from offbench.results.store import Store

HOPPER = "offbench/hopper/medium-replay-v0"
TASKS = (HOPPER, "offbench/halfcheetah/medium-replay-v0")
DECIDED = ("bench.until=decided", "bench.max_seeds=8", "seeds=[0,1,2]")
ENTRIES = ("methods=[bc,iql,td3_bc]", f"task={HOPPER}")

# bc is far below the others, which vary
SCORES = {"bc": lambda seed: 5.0 + seed % 2}
OTHERS = lambda seed: (60.0, 90.0, 75.0)[seed % 3]


class Studied:
    """A store whose runs are recorded with known scores when they are asked for; counts them."""

    def __init__(self, folder: Path, *words: str, stop_after: int = 10**9) -> None:
        self.args = [*DECIDED, *ENTRIES, f"results={folder}", *words]
        self.plan, self.store = plan(self.args, bench=True), Store(folder)
        self.trained: list[tuple[str, int]] = []
        self.stop_after, self.text = stop_after, io.StringIO()

    def run_missing(self, wanted, store, console):
        todo, left = missing(wanted.cells, store), 0
        for cell in todo:
            if len(self.trained) >= self.stop_after:
                left += len(cell.seeds)
            else:
                self.trained += [(cell.entry, seed) for seed in cell.seeds]
                scores = lambda cell, seed: SCORES.get(cell.entry, OTHERS)(seed)
                record_cells(store, [cell], scores)
        return Ran(wanted, sum(len(cell.seeds) for cell in todo), left, [])

    def run(self) -> str:
        console = Console(file=self.text, width=200)
        run_until_decided(self.plan, self.store, console, self.run_missing)
        return self.text.getvalue()


def test_only_the_entries_of_undecided_pairs_get_more_seeds(tmp_path) -> None:
    found = Studied(tmp_path)
    assert found.run().splitlines() == [
        "look 1 of 3: 2 of 3 pairs decided; iql, td3_bc get seeds 3-4",
        "look 2 of 3: 2 of 3 pairs decided; iql, td3_bc get seeds 5-7",
        "look 3 of 3: 2 of 3 pairs decided",
        "the rest is not decided with 8 seeds (bench.max_seeds)",
    ]
    expected = {"bc": 3, "iql": 8, "td3_bc": 8}
    assert sorted(found.trained) == [(e, seed) for e, n in expected.items() for seed in range(n)]


def test_the_same_command_goes_on_where_it_was_stopped_and_then_trains_nothing(tmp_path) -> None:
    whole = Studied(tmp_path / "whole").run()
    # after the first look, and half of the second
    stopped = Studied(tmp_path / "stopped", stop_after=10)
    assert "look 2 waits for runs that are not recorded" in stopped.run()
    again = Studied(tmp_path / "stopped")
    assert again.run() == whole and len(again.trained) == 19 - len(stopped.trained) > 0
    third = Studied(tmp_path / "stopped")
    assert third.run() == whole and not third.trained


def test_all_decided_trains_nothing_more(tmp_path) -> None:
    for _ in range(2):
        found = Studied(tmp_path, "methods=[bc,iql]")
        assert found.run() == "look 1 of 3: 1 of 1 pairs decided\nall decided\n"
    assert not found.trained


def test_the_board_counts_every_seed_and_says_how_they_came_about(tmp_path) -> None:
    found = Studied(tmp_path)
    found.run()
    board = evidence_of(found.plan, found.store).board()
    cells = board.cells.set_index("entry")
    assert cells["n_seeds"].to_dict() == {"bc": 3, "iql": 8, "td3_bc": 8}
    assert set(cells["status"]) == {"ok"} and board.aggregate["rank"].notna().all()
    said = " ".join(board.notes)
    assert "seeds added by the sequential rule (bench.until=decided)" in said
    assert "not corrected for stopping" in said and "2 of 3 pairs decided in 3 looks" in said
    assert "iql is better than bc. td3_bc is better than bc. not decided: iql and td3_bc" in said
    assert board_name(found.plan, found.args) == "quick-part-decided"
    # the board of the seeds that were asked for is another, and stays as it was
    usual = plan(found.args[1:], bench=True)
    rows = evidence_of(usual, found.store).board()
    assert set(rows.cells["n_seeds"]) == {3} and not any("sequential" in x for x in rows.notes)
    assert board_name(usual, found.args[1:]) == "quick-part"


def test_the_notes_name_what_is_left_out() -> None:
    look = Look(3, {("a", "b"): EQUIVALENT}, (("a", "c"),))
    _, words = notes_of(Progress(Rule((3, 5)), (look,), {}, 6))
    assert words == (
        "1 of 6 pairs decided in 1 look (at most 5 % chance that equal entries are called different)."
        " equivalent within 5 points: a and b. not decided: a and c."
        " left out, as an entry has a failed run: 4 pairs"
    )


def test_settings_of_the_rule_are_no_part_of_a_run() -> None:
    usual, ruled = (
        plan([*ENTRIES, "seeds=[0,1,2]", *words], bench=True)
        for words in ([], ["bench.until=decided", "bench.max_seeds=9"])
    )
    ids = lambda p: [(c.entry, r.run_id) for c in p.cells for r in c.runs()]
    assert ids(usual) == ids(ruled)
    assert usual.settings.possible_seeds == (0, 1, 2)
    assert ruled.settings.possible_seeds == tuple(range(9))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench.max_seeds=2"], r"bench.max_seeds=2 is below the 3 seeds to begin with"),
        (["bench.until=decide"], "bench.until: unknown value 'decide': did you mean 'decided'"),
        (["bench.max_seeds=many"], r"bench.max_seeds='many' must be a whole number"),
        (["bench.untl=decided"], r"bench.untl.*did you mean"),
        (["seeds=[0,1]"], r"seeds=\[0, 1\]: bench.until=decided begins with 3 seeds at least"),
        (["methods=[bc]"], "needs two entries to compare, on all tasks; there is bc"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, capsys, words, message) -> None:
    args = [*DECIDED, *ENTRIES, f"results={tmp_path / 'r'}", *words]
    assert main(["bench", *_last(args)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("offbench: ") and err.count("\n") == 1 and re.search(message, err), err
    assert not (tmp_path / "r").exists()


def _last(args: list[str]) -> list[str]:
    """Each setting once, the last that is given."""
    return list({arg.partition("=")[0]: arg for arg in args}.values())


def test_run_trains_one_entry_and_has_no_rule(tmp_path, capsys) -> None:
    args = ["method=bc", f"task={HOPPER}", "bench.until=decided", f"results={tmp_path / 'r'}"]
    assert main(["run", *args]) == 2
    assert "bench.until=decided compares entries: use offbench bench" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_published_table_has_its_own_seeds(capsys) -> None:
    assert main(["reproduce", "corl-gym", "bench.until=decided"]) == 2
    assert "bench.until= is set by the table" in capsys.readouterr().err


def test_a_plan_says_when_it_looks() -> None:
    text = io.StringIO()
    wanted = plan([*ENTRIES, "bench.until=decided"], bench=True)
    say_protocol(wanted, Console(file=text, width=200))
    assert (
        "those not decided get more (bench.until=decided): looks at 6, 9, 14, 20 seeds"
        in text.getvalue()
    )


def test_tasks_without_a_common_number_are_refused(tmp_path) -> None:
    wanted = plan([*DECIDED, ENTRIES[0], f"results={tmp_path}"], bench=True)
    first, *rest = wanted.cells
    unlike = replace(wanted, cells=(replace(first, seeds=(0, 1, 2, 3)), *rest))
    with pytest.raises(UserError, match="begins with the same seeds everywhere"):
        progress_of(unlike, Store(tmp_path))
    blind = replace(first, task=replace(first.task, env=None))
    with pytest.raises(UserError, match="has no environment, so no scores"):
        progress_of(replace(wanted, cells=(blind, *rest)), Store(tmp_path))


@pytest.mark.slow
@pytest.mark.env
def test_a_bench_trains_until_decided_and_a_second_one_trains_nothing(tmp_path, capsys) -> None:
    args = [
        "bench",
        "methods=[bc,iql]",
        f"task={HOPPER}",
        "n_updates=20",
        "eval.episodes=1",
        "eval.monitor_at=[]",
        "method.hidden=[8]",
        "engine=vmap",
        "jobs=1",
        "seeds=[0,1,2]",
        "bench.until=decided",
        "bench.max_seeds=5",
        f"results={tmp_path}",
    ]
    assert main(args) == 0
    text = capsys.readouterr().out
    assert "look 1 of 2: " in text
    board = tmp_path / "board" / "quick-part-decided.md"
    words, runs = board.read_text(), Store(tmp_path).runs()
    assert "added by the sequential rule" in words
    assert set(runs["status"]) == {"ok"} and len(runs) in (6, 10)
    assert main(args) == 0
    assert f"{len(runs)} recorded, 0 to do" in capsys.readouterr().out
    assert board.read_text() == words and len(Store(tmp_path).runs()) == len(runs)
    assert main(["board", *args[1:]]) == 0
    assert board.read_text() == words
    rows = pd.read_parquet(board.with_suffix(".runs.parquet"))
    assert sorted(rows["run_id"]) == sorted(runs["run_id"])
