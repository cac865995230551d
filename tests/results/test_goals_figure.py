"""What is counted of goal-conditioned policies played again, against loops, and its pictures."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import stats

from offbench.errors import UserError
from offbench.results import decisions as d
from offbench.results.goals_figure import measure_goals, paths_figure, write_goal_figures

GOALS = (1, 3)
WALLS = [(x, y) for x in range(4) for y in range(4) if x in (0, 3) or y in (0, 3)], 1.0
RUNS = pd.DataFrame(
    {"run_id": ["a", "b", "c"], "entry": ["v", "v", "bc"], "task": ["maze", "maze", "maze"]}
)


def played(run: str, n: int = 12, valued: bool = True) -> pd.DataFrame:
    """Episodes of 5 to 9 steps towards goal 1 or 3 in turn; every third does not arrive."""
    r, rows = np.random.default_rng(ord(run)), []
    for episode in range(n):
        steps, goal = int(r.integers(5, 10)), episode % 2
        for t in range(steps):
            left = steps - t
            row = {"run_id": run, "control": None, "episode": episode, "step": t, "length": 1}
            row |= {"value": -left - 10 * goal if valued else np.nan, "discounted_return": -left}
            row |= {"left_out": 0.0, "distance": float(left + goal), "steps": steps}
            row |= {"success": episode % 3 > 0, "score": 100.0 * (episode % 3 > 0)}
            row |= {"x": 1 + t / 9, "y": 1.0, "goal_x": 2.0, "goal_y": 1.0 + goal}
            row |= {"subgoal_x": 2.0 if t % 3 == 0 and valued else np.nan, "subgoal_y": 1.5}
            rows.append(row)
    return pd.DataFrame(rows)


@pytest.fixture
def decisions() -> pd.DataFrame:
    return d.typed(pd.concat([played("a"), played("b"), played("c", valued=False)]))


def test_values_and_successes_are_counted_goal_by_goal(decisions):
    numbers = measure_goals(decisions, RUNS, {"maze": GOALS})
    assert set(numbers["goal"]) == set(GOALS)
    for (entry, goal), mine in numbers.groupby(["entry", "goal"]):
        runs = {"v": ("a", "b"), "bc": ("c",)}[entry]
        rows = decisions[decisions["run_id"].isin(runs)]
        rows = rows[rows["episode"] % 2 == GOALS.index(goal)]
        (share,) = mine[mine["what"] == "success"].to_dict("records")
        first = rows[rows["step"] == 0]
        won = [bool(x) for x in first["success"]]
        assert (share["n"], share["value"]) == (len(won), pytest.approx(np.mean(won)))
        assert share["at"] == pytest.approx(np.mean(first["distance"].astype(float)))
        low, high = stats.binomtest(sum(won), len(won)).proportion_ci(method="wilson")
        assert (share["low"], share["high"]) == pytest.approx((low, high))
        values = mine[mine["what"].str.startswith("value")]
        if entry == "bc":
            assert values.empty
            continue
        left = values[values["what"] == "value by steps left"]
        assert left["n"].sum() == int(rows["success"].sum()) < len(rows)
        # exactly minus the steps that are left, and ten less for the second goal
        off = 10 * GOALS.index(goal)
        assert left["value"].to_numpy() == pytest.approx(-left["at"].to_numpy() - off)
        near = values[values["what"] == "value by distance"]
        assert near["n"].sum() == len(rows)
        assert near["value"].to_numpy() == pytest.approx(-near["at"].to_numpy() - off + off / 10)


def test_pictures_are_written_and_show_what_there_is(decisions, tmp_path):
    paths = write_goal_figures(decisions, RUNS, {"maze": GOALS}, {"maze": WALLS}, tmp_path)
    assert [path.name for path in paths] == ["goals.csv", "maze-goals.png", "maze-paths.png"]
    assert all(path.stat().st_size > 100 for path in paths)
    assert len(write_goal_figures(decisions, RUNS, {"maze": GOALS}, {}, tmp_path)) == 2
    # tasks without goals, and runs that were not played
    assert write_goal_figures(decisions, RUNS, {}, {}, tmp_path) == []
    assert write_goal_figures(decisions.iloc[:0], RUNS, {"maze": GOALS}, {}, tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write diagnostics"):
        write_goal_figures(decisions, RUNS, {"maze": GOALS}, {}, tmp_path / "file")


def test_a_maze_has_its_walls_paths_and_sub_goals(decisions):
    table = decisions.merge(RUNS, on="run_id").astype({"subgoal_x": float, "x": float})
    table["goal"] = [GOALS[n % 2] for n in table["episode"]]
    figure = paths_figure("maze", table, WALLS)
    panels = figure.axes
    assert len(panels) == 4
    titles = [axis.get_title() for axis in panels]
    assert titles == ["goal 1: 4 of 6 arrived", "goal 3: 4 of 6 arrived"] + [
        "goal 1: 8 of 12 arrived",
        "goal 3: 8 of 12 arrived",
    ]
    for axis, lines in zip(panels, (4 * 3, 4 * 3, None, None), strict=True):
        assert len(axis.collections[0].get_paths()) == len(WALLS[0])
        assert axis.get_xlim() == (-0.5, 3.5)
        if lines:
            assert len(axis.lines) == lines
    # beside path, start and goal, a line and a dot for every third step
    assert len(panels[2].lines) > 4 * 3 + 2 * 4


def test_files_without_places_are_read(decisions, tmp_path):
    kept, mark = tmp_path / "runs/m.safetensors", tmp_path / "runs/m.json"
    path = d.path_of(tmp_path, mark)
    mark.parent.mkdir()
    kept.write_bytes(b"policy")
    d.write_decisions(path, decisions, kept)
    old = pq.read_table(path)
    pq.write_table(old.drop_columns(list(d.PLACES)), path)
    rows = d.read_decisions(tmp_path, {"a": mark})
    assert list(rows) == d.DECISION_SCHEMA.names and rows["x"].isna().all()
    assert rows["distance"].tolist() == decisions["distance"].tolist()
