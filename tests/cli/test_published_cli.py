"""`offbench board published=...` and `offbench list published`."""

from pathlib import Path

import numpy as np
import pytest
from support.records import record_cells

from offbench.bench.plan import plan
from offbench.cli import main
from offbench.cli.published import _none_of, split_published
from offbench.errors import UserError
from offbench.results.published.scores import published_scores
from offbench.results.published.table import difference
from offbench.results.stats import Interval
from offbench.results.store import Store

HOPPER, PEN = "d4rl/hopper-medium-v2", "d4rl/pen-human-v1"

QUICK = "offbench/hopper/medium-replay-v0"


@pytest.fixture
def results(tmp_path) -> Path:
    """IQL 20 points below what CORL published on hopper-medium and TD3+BC where it is, by four seeds."""
    centre = {"iql": 47.5, "td3_bc": 60.4}
    cells = plan([f"task={HOPPER}", "methods=[iql,td3_bc]"], bench=True).cells
    record_cells(Store(tmp_path), cells, lambda cell, seed: centre[cell.entry] + seed - 1.5)
    return tmp_path


def board(results: Path, *more: str) -> int:
    return main(["board", f"task={HOPPER}", "methods=[iql,td3_bc]", f"results={results}", *more])


def files(results: Path) -> dict[str, str]:
    return {p.name: p.read_text(encoding="utf-8") for p in (results / "board").glob("*.[cm]*")}


def test_published_scores_stand_under_the_board_and_change_nothing_of_it(results, capsys):
    assert board(results) == 0
    plain, alone = capsys.readouterr().out, files(results)
    assert board(results, "published=corl,iql-2021") == 0
    out, both = capsys.readouterr().out, files(results)
    assert out.startswith(plain) and len(out) > len(plain)
    assert both["d4rl-gym-9-part.csv"] == alone["d4rl-gym-9-part.csv"]
    text = both["d4rl-gym-9-part.md"]
    assert text.startswith(alone["d4rl-gym-9-part.md"])
    section = text.removeprefix(alone["d4rl-gym-9-part.md"])
    rows = [[c.strip() for c in r.split("|")[1:-1]] for r in section.splitlines() if r[:1] == "|"]
    found = {(row[0], row[1]): row[2:] for row in rows[2:]}
    # 67.53, std 3.78 (ddof=0) over 4 seeds: 3.18 x 3.78 / sqrt(3)
    assert found["IQL", "corl"] == ["iql", "67.5 ± 6.9 ≠", "4", "1M"]
    assert found["TD3+BC", "corl"] == ["td3_bc", "60.4 ± 6.4", "4", "1M"]
    assert found["10% BC", "corl"][0] == "--"
    assert found["IQL", "iql-2021"] == ["iql", "66.3 ≠", "--", "--"]
    assert "CORL: README" in section and "here in MuJoCo 3" in section
    # a legend for the mark, in both
    assert "≠: ours and theirs differ" in section and "≠: ours and theirs differ" in out


def test_the_option_is_the_setting(results, capsys):
    assert board(results, "--published", "corl,iql-2021") == 0
    option = capsys.readouterr().out
    assert board(results, "published=[corl,iql-2021]") == 0
    assert capsys.readouterr().out == option
    assert "iql-2021: Kostrikov" in option


def test_what_is_known_to_differ_is_said(results, capsys, tmp_path):
    assert board(results, "published=corl-best") == 0
    assert "corl-best: best evaluation there, the last here" in " ".join(
        capsys.readouterr().out.split()
    )
    mine = tmp_path / "mine.csv"
    mine.write_text(
        f"task,entry,score,std,seeds,steps,method\n{HOPPER},iql,47.4,2,5,300k,IQL|old\n"
    )
    assert board(results, f"published={mine}") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "iql: 300k updates there, 1M here" in out and "47.4±2.5 " in out
    assert "≠" not in out.split("≠: ours")[0]
    # a method's name ends no cell of the Markdown table
    (written,) = (results / "board").glob("*.md")
    assert r"| IQL\|old |" in written.read_text()


def test_a_wide_score_keeps_its_mark_in_the_terminal(results, capsys, tmp_path):
    mine = tmp_path / "mine.csv"
    mine.write_text(f"task,entry,score,std,seeds\n{HOPPER},iql,110.04,0.4,5\n")
    assert board(results, f"published={mine}") == 0
    assert "110.0±0.5≠" in capsys.readouterr().out


def test_sources_without_scores_of_the_tasks_are_told_in_one_line(tmp_path, capsys, results):
    cells = plan([f"task={QUICK}", "methods=[bc]"], bench=True).cells
    record_cells(Store(tmp_path), cells, lambda cell, seed: seed)
    where = [f"task={QUICK}", "methods=[bc]", f"results={tmp_path}"]
    assert main(["board", *where, "published=all"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("no published scores of these tasks: their data were made here; nearest")
    assert board(results, "published=ogbench-2024") == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert "in ogbench-2024; there are some in corl, corl-best" in last


def test_means_over_five_tasks_are_not_shown_as_one_task():
    tasks = [f"ogbench/scene-play-singletask-task{i}-v0" for i in range(1, 6)]
    assert published_scores([*tasks, "ogbench/scene-play-singletask-v0"]).empty
    for names in (["qam-2026"], ["all"]):
        assert _none_of(tasks, names).endswith(
            "in qam-2026 are means over the five tasks of an environment"
        )
    assert "means over" not in _none_of(tasks, ["corl"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("published=corll", "unknown source of published scores 'corll': did you mean 'corl'"),
        ("published=", "published= names no source"),
        ("published=none.csv", "none.csv: there is no such file"),
    ],
)
def test_a_wrong_source_is_told_before_anything_is_written(results, capsys, given, words):
    assert board(results, given) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and not out
    assert not (results / "board").exists()


def test_all_sources_are_listed(capsys):
    assert main(["list", "published"]) == 0
    out = capsys.readouterr().out
    about = out.split("corl-best")[0]
    assert "30 tasks, 4 seeds: BC, 10% BC, TD3+BC" in about and "checkpoint: last" in about
    assert out.count("\n") == 2 * 35


def test_settings_are_split_from_sources():
    assert split_published(["a=1", "published=corl, iql-2021"]) == (["a=1"], ["corl", "iql-2021"])
    assert split_published(["a=1"]) == (["a=1"], None)
    assert split_published(["published=null"]) == ([], None)
    with pytest.raises(UserError):
        split_published(["published=nobody"])


def test_the_interval_of_a_difference():
    # equal intervals: sqrt(2) times as wide
    found = difference(Interval(10, 8, 12), Interval(5, 3, 7))
    np.testing.assert_allclose(found, (5, 5 - 8**0.5, 5 + 8**0.5))
    # towards a lower score of ours counts our lower bound and their upper one
    found = difference(Interval(10, 7, 11), Interval(5, 5, 9))
    np.testing.assert_allclose(found, (5, 0, 6))
    # theirs without a spread is taken as exact, ours without one says nothing
    np.testing.assert_allclose(difference(Interval(1, 0, 3), Interval(0, *[np.nan] * 2)), (1, 0, 3))
    assert np.isnan(difference(Interval(1, np.nan, np.nan), Interval(0, -1, 1)).low)


def test_equal_methods_are_rarely_told_apart():
    from scipy import stats

    rng, n = np.random.default_rng(0), 4
    ours, theirs = rng.normal(size=(2, 4000, n))
    half = [stats.t.ppf(0.975, n - 1) * x.std(1, ddof=1) / n**0.5 for x in (ours, theirs)]
    missed = 0
    for a, b, h, k in zip(ours.mean(1), theirs.mean(1), *half):
        found = difference(Interval(a, a - h, a + h), Interval(b, b - k, b + k))
        missed += found.low > 0 or found.high < 0
    # measured 1.9 % in 20,000
    assert 0.01 < missed / 4000 < 0.05
