"""The share of time of monitor episodes, from records of the same cell."""

import pandas as pd
from support.records import episodes, provenance

from offbench.bench.forecast import SETUP_S, forecast
from offbench.bench.plan import plan
from offbench.results.store import Store


def cell(*overrides: str):
    what = ["method=bc", "task=offbench/hopper/medium-replay-v0", "eval.episodes=10"]
    return plan([*what, "n_updates=100", *overrides], bench=False).cells[0]


def test_monitor_episodes_cost_what_test_episodes_did(tmp_path):
    store, done = Store(tmp_path), cell("eval.monitor_at=[]", "seeds=[0,1]")
    facts = provenance(entry=done.entry, pack=2, wall_s=SETUP_S + 50, train_s=30)
    for run in done.runs():
        store.append(run, pd.DataFrame(episodes(10, update=100)), facts)
    plain, watched = (
        cell("seeds=[5,6,7,8]", m, "eval.monitor_episodes=3")
        for m in ("eval.monitor_at=[]", "eval.monitor_at=[0.5,0.8]")
    )
    several = cell("seeds=[5,6,7,8]", "eval.monitor_at=[0.5,0.8]", "eval.monitor_episodes=[1,4]")
    costs = forecast([plain, watched, several], store)
    # 20 s for 10 episodes of two seeds are 4 s for one of four
    assert [cost.monitor for cost in costs] == [0, 6 * 4, 5 * 4]
    assert [cost.seconds - 2 * (SETUP_S + 50) for cost in costs] == [0, 24, 20]
    assert {cost.basis for cost in costs} == {"records"}
