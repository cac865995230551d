"""What is counted of played decisions against loops over rows, and the files that hold them."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from support.records import episodes, provenance, spec

from offbench.errors import UserError
from offbench.results import decisions as d
from offbench.results.decisions_figure import lengths_figure, write_decisions_figures
from offbench.results.store import Store
from offbench.results.uncertainty import Cell, Pool, cell_interval

GAMMA = 0.9


def played(seed: int, control: int | None = None, n: int = 20, error: float = 0.0) -> pd.DataFrame:
    """Decisions whose values are their returns and noise of mean `error`, in episodes of 15 steps at most."""
    rng = np.random.default_rng([seed, control or 0])
    rows = []
    for episode in range(n):
        won, t = bool(rng.random() < 0.5), 0
        while t < 15:
            length = control or int(rng.integers(1, 4))
            back = float(rng.normal())
            rows.append(
                {
                    "control": control,
                    "episode": episode,
                    "step": t,
                    "length": length,
                    "value": back + error + 0.1 * float(rng.normal()),
                    "discounted_return": back,
                    "left_out": 0.0 if won else GAMMA ** (15 - t),
                    "distance": float(rng.random()),
                    "steps": 15,
                    "success": won,
                    "score": 100.0 * won,
                }
            )
            t += length
    return d.typed(pd.DataFrame(rows).astype({"control": "Int64"}))


@pytest.fixture
def store(tmp_path) -> Store:
    """Two seeds of an entry that chooses its lengths, and two of one that does not."""
    store = Store(tmp_path)
    for seed in (0, 1):
        for entry in ("chooses", "fixed"):
            run = spec(seed=seed, hparams={"entry": entry}, pipeline={"gamma": GAMMA})
            mark = store.append(run, episodes(), provenance(entry=entry))
            kept = mark.with_suffix(".safetensors")
            kept.write_bytes(f"policy {seed} {entry}".encode())
            parts = [played(seed)]
            if entry == "chooses":
                parts += [played(seed, 1, error=0.5), played(seed, 2)]
            else:
                parts = [played(seed, 2).assign(control=pd.array([pd.NA], "Int64")[0])]
            rows = pd.concat(parts, ignore_index=True).assign(run_id=run.run_id)
            d.write_decisions(d.path_of(store.root, mark), rows, kept)
    return store


def marks(store: Store) -> dict:
    return {run: record.path for run, record in store.read_all().items()}


def numbers(store: Store) -> pd.DataFrame:
    return d.measure(d.read_decisions(store.root, marks(store)), store.runs())


def chosen() -> pd.DataFrame:
    """The decisions of the entry that chooses, without controls."""
    return pd.concat([played(s).assign(run_id=f"run {s}") for s in (0, 1)], ignore_index=True)


def of(table: pd.DataFrame, what: str, control: int | None = None) -> pd.DataFrame:
    mine = table[(table["entry"] == "chooses") & (table["what"] == what)]
    return mine[mine["control"].isna() if control is None else mine["control"] == control]


def bins_of(x: list[float]) -> list[list[int]]:
    """Rows by tenths of the numbers, one after another: above how many of nine quantiles is each?"""
    edges = sorted({float(np.quantile(x, k / 10)) for k in range(1, 10)})
    found: dict[int, list[int]] = {}
    for i, one in enumerate(x):
        found.setdefault(sum(one > edge for edge in edges), []).append(i)
    return [found[k] for k in sorted(found)]


def interval(x: list[float], episode: list) -> tuple[float, float, float]:
    mean = sum(x) / len(x)
    sums: dict = {}
    for one, name in zip(x, episode, strict=True):
        sums[name] = sums.get(name, 0.0) + one - mean
    g = len(sums)
    from scipy import stats

    error = (g / (g - 1) * sum(v**2 for v in sums.values())) ** 0.5 / len(x)
    half = stats.t.ppf(0.975, g - 1) * error
    return mean, mean - half, mean + half


@pytest.mark.parametrize(
    "what, at, value",
    [
        ("return by value", "value", "discounted_return"),
        ("length by distance", "distance", "length"),
    ],
)
def test_bins_hold_equally_many_decisions_and_their_means(store, what, at, value):
    rows, found = chosen(), of(numbers(store), what)
    x, y = rows[at].astype(float).tolist(), rows[value].astype(float).tolist()
    names = list(zip(rows["run_id"], rows["episode"], strict=True))
    bins = bins_of(x)
    assert len(found) == len(bins) == 10
    for line, some in zip(found.sort_values("at").itertuples(), bins, strict=True):
        want = interval([y[i] for i in some], [names[i] for i in some])
        assert (line.value, line.low, line.high) == pytest.approx(want, rel=1e-9)
        assert line.at == pytest.approx(sum(x[i] for i in some) / len(some)) and line.n == len(some)
        if what == "return by value":
            left = [rows["left_out"][i] for i in some]
            assert line.whole == pytest.approx(sum(v < 0.01 for v in left) / len(left))


def test_equal_numbers_share_a_bin():
    x = pd.Series([0.0] * 50 + [1.0] * 30 + [2.0] * 20)
    assert d.equal_bins(x).groupby(x).nunique().tolist() == [1, 1, 1]
    assert d.equal_bins(x).nunique() == 3 and d.equal_bins(pd.Series([5.0])).tolist() == [0]


def test_lengths_by_step_are_those_of_successes_and_of_others(store):
    rows = chosen()
    for name, won in (("successes", True), ("others", False)):
        found = of(numbers(store), f"length by step, {name}").sort_values("at")
        want: dict[int, list[int]] = {}
        for row in rows.to_dict("records"):
            if row["success"] == won:
                want.setdefault(row["step"], []).append(row["length"])
        # a limit of 15 steps has bins of one step
        assert found["at"].tolist() == sorted(want)
        assert found["n"].tolist() == [len(want[t]) for t in sorted(want)]
        means = [sum(want[t]) / len(want[t]) for t in sorted(want)]
        assert found["value"].tolist() == pytest.approx(means)


def test_a_planted_error_of_the_values_is_seen_and_sound_values_lie_on_the_diagonal(store):
    table = numbers(store)
    for control, error in ((None, 0.0), (1, 0.5), (2, 0.0)):
        line = of(table, "value minus return", control).iloc[0]
        assert line["value"] == pytest.approx(error, abs=0.02)
        bins = of(table, "return by value", control)
        beside = (bins["at"] - bins["value"]).mean()
        assert beside == pytest.approx(error, abs=0.02)
        outside = ((bins["at"] < bins["low"]) | (bins["at"] > bins["high"])).mean()
        assert outside > 0.9 if error else outside < 0.5


def test_scores_have_the_intervals_of_a_board_and_controls_are_paired_by_episode(store):
    table = numbers(store)
    of_control: dict = {}
    for control in (None, 1, 2):
        rows = [played(s, control) for s in (0, 1)]
        of_control[control] = np.array(
            [[r[r["episode"] == e]["score"].iloc[0] for e in range(20)] for r in rows]
        )
    tables = {
        "score": of_control,
        "policy minus control": {c: of_control[None] - of_control[c] for c in (1, 2)},
    }
    for what, own in tables.items():
        cells = {
            c: Cell(x.mean(1), 20, x, tuple(range(20)), what == "score") for c, x in own.items()
        }
        pool = Pool.of(list(cells.values()))
        for control, cell in cells.items():
            line = of(table, what, control).iloc[0]
            want = (*cell_interval(cell, pool), 40)
            assert tuple(line[["value", "low", "high", "n"]]) == pytest.approx(want)
            assert line["value"] == pytest.approx(own[control].mean())
    assert of(table, "policy minus control").empty
    assert set(table[table["entry"] == "fixed"]["control"].isna()) == {True}


def test_scores_are_of_the_episodes_that_all_seeds_played(store):
    rows = d.read_decisions(store.root, marks(store))
    first = rows["run_id"] == rows["run_id"].iloc[0]
    fewer = d.measure(rows[~(first & (rows["episode"] >= 15))], store.runs())
    n = fewer[fewer["what"] == "score"].groupby("entry")["n"].unique().map(list).to_dict()
    assert sorted(n.values()) == [[30], [40]]


def test_values_that_diverged_are_left_out_of_the_calibration(store):
    rows = d.read_decisions(store.root, marks(store))
    rows.loc[rows.index[:5], "value"] = pd.NA
    lines = d.measure(rows, store.runs())
    before, after = (of(t, "value minus return").iloc[0]["n"] for t in (numbers(store), lines))
    assert after == before - 5 and lines["value"].notna().all()


# --- files ----------------------------------------------------------------------------------


def test_what_was_written_is_read_and_of_another_policy_refused(store):
    of_run = {(r.provenance.entry, r.spec.seed): r.path for r in store.read_all().values()}
    mark = of_run["chooses", 0]
    path, kept = d.path_of(store.root, mark), mark.with_suffix(".safetensors")
    assert path.parts[-5:-1] == ("decisions", *mark.parts[-4:-1])
    assert d.is_played(path, kept, 20) and not d.is_played(path, kept, 21)
    rows = d.read_decisions(store.root, {"a": mark})
    assert list(rows) == d.DECISION_SCHEMA.names and rows["control"].nunique() == 2
    own = rows[rows["control"].isna()].drop(columns="run_id")
    pd.testing.assert_frame_equal(own, played(0), check_dtype=False)
    kept.write_bytes(b"trained again")
    with pytest.raises(UserError, match=r"is of another policy than .*play it again with --play"):
        d.read_decisions(store.root, {"a": mark})
    assert not d.is_played(path, kept, 20)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="is no table of decisions"):
        d.read_decisions(store.root, {"a": mark})


def test_runs_that_were_not_played_have_no_decisions(store, tmp_path):
    assert d.read_decisions(tmp_path / "elsewhere", {}).empty
    for path in store.root.glob("decisions/*/*/*/*"):
        path.unlink()
    rows = d.read_decisions(store.root, marks(store))
    assert rows.empty and list(rows) == d.DECISION_SCHEMA.names
    assert d.measure(rows, store.runs()).empty


def test_numbers_and_pictures_are_written(store, tmp_path):
    rows = d.read_decisions(store.root, marks(store))
    paths = write_decisions_figures(rows, store.runs(), tmp_path / "out")
    name = "toy--point-v0"
    assert [p.name for p in paths] == [
        "decisions.csv",
        f"{name}-lengths.png",
        f"{name}-calibration.png",
    ]
    assert all(p.stat().st_size > 10_000 for p in paths[1:])
    assert tuple(pd.read_csv(paths[0])) == d.COLUMNS


def test_a_task_without_distances_or_successes_is_drawn_without_them(store):
    rows = d.read_decisions(store.root, marks(store))
    rows = rows.assign(distance=pd.array([pd.NA] * len(rows), "Float64"))
    rows = rows.assign(success=pd.array([pd.NA] * len(rows), "boolean"))
    table = d.measure(rows, store.runs())
    what = set(table["what"])
    assert "length by step" in what and not any("distance" in w or "success" in w for w in what)
    axes = lengths_figure("toy", table[table["entry"] == "chooses"]).axes
    assert [t.get_text() for t in axes[1].texts] == ["the environment tells no distance"]
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["all episodes"]


def test_drawing_needs_no_torch():
    code = "import sys, offbench.results.decisions_figure; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_bin_of_one_episode_is_drawn_only_where_there_is_no_other(store):
    table = numbers(store)
    table = table[table["entry"] == "chooses"]
    line = lambda t: lengths_figure("toy", t).axes[0].get_lines()[0].get_xdata()
    steps = of(table, "length by step, successes")
    last = table.index == steps["at"].idxmax()
    lonely = table.assign(low=table["low"].mask(last), high=table["high"].mask(last))
    assert len(line(lonely)) == len(line(table)) - 1 == len(steps) - 1
    alone = table.index.isin(steps.index)
    assert len(line(table.assign(low=table["low"].mask(alone)))) == len(steps)
