"""Evaluation beside training gives the rows of evaluation in place, whenever it gets to run."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import pandas as pd
import pytest

from offbench.bench import monitors, runner, stacks
from offbench.bench.plan import plan
from offbench.results.store import Store

pytestmark = pytest.mark.env


class InPlace:
    """Evaluates when asked, so training waits."""

    def __init__(self, *_):
        pass

    def shutdown(self):
        pass

    def submit(self, work, *given):
        done = Future()
        done.set_result(work(*given))
        return done


class Late(ThreadPoolExecutor):
    """Evaluates when training has ended, which takes a part of a second."""

    def submit(self, work, *given):
        def later():
            time.sleep(2)
            return work(*given)

        return super().submit(later)


@pytest.mark.slow
def test_rows_do_not_depend_on_when_the_environments_stepped(tmp_path, monkeypatch):
    """The engine writes over its state in place; a policy that is looked at must not move with it."""
    made = plan(
        [
            "method=td3_bc",
            "task=offbench/hopper/medium-replay-v0",
            "seeds=[0,1]",
            "n_updates=200",
            "method.hidden=[8]",
            "method.lr=0.01",
            "eval.episodes=1",
            "eval.monitor_at=[0.25,0.5,0.75]",
            "eval.monitor_episodes=1",
            "device=cpu",
        ],
        bench=False,
    )
    rows = {}
    executors = {"thread": ThreadPoolExecutor, "in place": InPlace, "late": Late}
    for name, executor in executors.items():
        monkeypatch.setattr(monitors, "ThreadPoolExecutor", executor)
        store = Store(tmp_path / name)
        (pack,) = stacks.pack(made.cells)
        runner.run_pack(pack, store, made.settings)
        rows[name] = store.episodes().sort_values(["seed", "stream", "update", "episode"])
    columns = ["seed", "stream", "update", "episode", "env_seed", "return", "length"]
    first = rows["in place"][columns].reset_index(drop=True)
    assert len(first) == 2 * (3 + 1)
    assert first[first.stream == "monitor"].groupby("update")["return"].sum().nunique() == 3
    for name in ("thread", "late"):
        pd.testing.assert_frame_equal(first, rows[name][columns].reset_index(drop=True))
