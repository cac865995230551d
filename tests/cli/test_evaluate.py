"""`offbench evaluate --offline` and `offbench diagnose ope`."""

import numpy as np
import pandas as pd
import pytest

from offbench.cli import main
from offbench.results.store import Store

TASK = "task=offbench/hopper/medium-replay-v0"
TINY = ["method.hidden=[8]", "batch_size=16", "n_updates=40", "jobs=1", "engine=eager"]
SMALL = ["eval.fqe_updates=30", "eval.fqe_hidden=[8]", "device=cpu"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two seeds each of a plain method, one of chunks and one that looks back."""
    folder = tmp_path_factory.mktemp("results")
    shared = [TASK, *TINY, "eval.episodes=2", "eval.monitor_at=[]", f"results={folder}"]
    for name, more in {
        "plain": ["method=bc", "seeds=[0,1]"],
        "chunks": ["method=bc", "view=chunk", "view.h=3", "seeds=[0,1]"],
        "window": ["method=dt", "method.width=8", "seeds=[0]"],
    }.items():
        own = [x for x in shared if name != "window" or x != "method.hidden=[8]"]
        assert main(["run", *more, *own, f"label={name}"]) == 0
    return folder


@pytest.mark.env
def test_kept_policies_are_evaluated_and_compared_with_what_they_earn(results, capsys):
    args = [TASK, f"results={results}", *SMALL]
    assert main(["diagnose", "ope", *args, "--play", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "window seed 0 on offbench/hopper/medium-replay-v0: its policy decides by more than" in said
    )
    assert (
        "FQE: rank correlation" in said and "regret@1" in said and "of discounted returns" in said
    )
    board = results / "board"
    table = pd.read_csv(next(board.glob("*-estimates.csv"))).set_index(["entry", "estimator"])
    assert set(table.index) == {(e, n) for e in ("plain", "chunks") for n in ("fqe", "played")}
    assert (table["low"] < table["value"]).all() and (table["n_seeds"] == 2).all()
    trust = pd.read_csv(next(board.glob("*-ope.csv"))).iloc[0]
    assert trust["n"] == 4 and trust["absolute_error"] > 0 and -1 <= trust["rank_correlation"] <= 1


@pytest.mark.env
def test_played_returns_are_the_discounted_rewards_of_the_episodes(results):
    from offbench.bench.kept_estimates import Candidate, played_returns, unlimited
    from offbench.rollout import EnvPool
    from offbench.tasks.locate import load_task

    store = Store(results)
    record = next(r for r in store.read_all().values() if r.provenance.entry == "plain")
    task = unlimited(load_task(record.spec.task), 0.5)
    pool = EnvPool(task)
    found = played_returns(Candidate("run", "it", record.path), pool, episodes=2, gamma=0.5)
    heard = []
    pool.watch = lambda step: heard.append((step.episode, step.t, float(step.reward)))
    from offbench.bench.policy import load
    from offbench.rollout import evaluate, make_policy

    loaded = load(record.path.with_suffix(".safetensors"))
    policy = make_policy(loaded.method, loaded.pipeline, values="none")
    evaluate(policy, loaded.state, pool, seeds=[record.spec.seed], episodes=2, stream="played")
    pool.close()
    want = [sum(0.5**t * r for e, t, r in heard if e == i) for i in range(2)]
    assert np.allclose(found["value"], want, rtol=1e-12)


def test_estimates_on_file_are_not_made_again(results, capsys, monkeypatch):
    args = ["evaluate", "--offline", TASK, f"results={results}", *SMALL, "eval.fqe_gamma=0.9"]
    assert main(args) == 0
    first = capsys.readouterr().out
    from offbench.bench import estimate

    monkeypatch.setattr(estimate, "fit", None)
    assert main(args) == 0
    assert capsys.readouterr().out == first


def test_an_entry_can_be_asked_for(results, capsys):
    args = ["method=bc", "label=plain", "seeds=[0,1]", "eval.episodes=2", "eval.monitor_at=[]"]
    assert main(["evaluate", "--offline", TASK, *TINY, *SMALL, *args, f"results={results}"]) == 0
    said = capsys.readouterr().out
    assert "plain" in said and "chunks" not in said


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "needs --offline"),
        (["--offline", "--by", "fqi"], "unknown --by 'fqi'"),
        (["--offline", "--play", "0"], "the number of episodes is at least 1"),
        (["--offline"], "nothing recorded"),
        (["--offline", "eval.fqe_gamma=3"], "must lie in [0, 1]"),
    ],
)
def test_a_mistake_is_one_line(args, message, tmp_path, capsys):
    assert main(["evaluate", TASK, f"results={tmp_path / 'none'}", *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.env
def test_importance_weights_say_how_many_episodes_they_rest_on(results, capsys):
    args = [TASK, f"results={results}", *SMALL]
    assert main(["evaluate", "--offline", "--by", "wis,dr", *args]) == 0
    said = " ".join(capsys.readouterr().out.split())
    # once for both estimators
    assert said.count("chunks seed 0 on") == 1 and said.count("window seed 0 on") == 1
    assert (
        "chunks seed 0 on offbench/hopper/medium-replay-v0: importance weights are of single"
        in said
    )
    assert "WIS" in said and "DR" in said and " n=" in said
    table = pd.read_csv(next((results / "board").glob("*-estimates.csv")))
    assert set(table["entry"]) == {"plain"} and set(table["estimator"]) == {"wis", "dr"}
    assert (table["effective"] >= 0).all()
