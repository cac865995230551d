"""Churn: how far a policy is from the one of the same run after fewer updates, and which runs those are."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from bench.test_seed_consistency_measured import STATES, Gaussian, loaded
from scipy import special
from support.records import episodes, provenance, spec

from offbench.bench import consistency
from offbench.bench.kept import on_its_way
from offbench.bench.progress import WENT_ON
from offbench.cli.consistency import _how_to_get, _went_on, _with_earlier
from offbench.errors import UserError
from offbench.results.consistency import CHURN, cell_churn
from offbench.results.store import Store
from offbench.training.imperative import Imperative


def policy(shift, seed, updates, method=None):
    found = loaded(shift, seed, method)
    return found._replace(run=replace(found.run, n_updates=updates))


def churn_of(monkeypatch, pairs) -> pd.DataFrame:
    monkeypatch.setattr(consistency, "load", lambda policy: policy)
    return consistency.measure_churn(pairs, SimpleNamespace(id="toy"), STATES)


def test_churn_is_the_way_of_each_seed_and_of_no_other(monkeypatch):
    ways = {3: ([0.0, 0.0], [0.3, -0.3]), 5: ([1.0, 1.0], [1.0, 1.0]), 8: ([0.0, 0.0], [0.4, 0.4])}
    pairs = {
        s: (policy(a, s, 90, Gaussian()), policy(b, s, 100, Gaussian()))
        for s, (a, b) in ways.items()
    }
    rows = churn_of(monkeypatch, pairs)
    assert [*CHURN] == [
        *rows.columns[:1], "entry", *rows.columns[1:], "went_on"
    ]  # fmt: skip
    acted = rows[rows["kind"] == "action"]
    assert acted["seed"].tolist() == [3, 5, 8]
    # actions lie in [-1, 1], of which observations of 0.2 leave a part
    assert acted["divergence"].tolist()[:2] == pytest.approx([0.15, 0.0], abs=1e-6)
    assert acted["divergence"].iloc[2] == pytest.approx(0.2, abs=1e-6)
    assert set(rows["kind"]) == {"action", "js"} and set(rows["states"]) == {7}
    assert set(rows["earlier_updates"]) == {90} and set(rows["updates"]) == {100}
    first = rows.iloc[0]
    assert first["run_id"] == pairs[3][1].run.run_id
    assert first["earlier_run_id"] == pairs[3][0].run.run_id


def test_runs_of_a_pytorch_class_are_refused(monkeypatch):
    one = policy([0.0, 0.0], 0, 90, object.__new__(Imperative))
    with pytest.raises(UserError, match="is a PyTorch class"):
        churn_of(monkeypatch, {0: (one, one)})


def test_the_mean_is_over_seeds_with_students_t_and_never_below_0():
    values = np.array([0.01, 0.02, 0.06])
    line = lambda i, x: ("t", "e", "action", i, 90, 100, "a", "b", x, 7, i == 1)
    found = cell_churn(
        pd.DataFrame([line(i, x) for i, x in enumerate(values)], columns=list(CHURN))
    )
    (row,) = found.to_dict("records")
    half = special.stdtrit(2, 0.975) * values.std(ddof=1) / np.sqrt(3)
    assert row["value"] == pytest.approx(0.03) and row["high"] == pytest.approx(0.03 + half)
    assert row["low"] == 0.0 and (row["n_seeds"], row["n_went_on"]) == (3, 1)
    one = cell_churn(pd.DataFrame([line(0, 0.5)], columns=list(CHURN)))
    assert one["value"].tolist() == [0.5] and one[["low", "high"]].isna().all(axis=None)


# --- which runs


def kept(store: Store, kind: str = "policy", **changes):
    """A record with a kept file that has nothing but its header."""
    from safetensors.torch import save_file

    run = spec(**changes)
    store.append(run, episodes(update=run.n_updates), provenance())
    path = store.path(run, "iql").with_suffix(".safetensors")
    about = {"format": 1, "kind": kind, "run": run.as_dict()}
    save_file({"w": torch.zeros(1)}, path, metadata={"offbench": json.dumps(about)})
    return path


def earlier(store: Store, *paths):
    """What `_with_earlier` finds for the last runs of some seeds."""
    records = store.read_all()
    of_seed = {records[path.stem].spec.seed: path for path in paths}
    return _with_earlier(SimpleNamespace(store=store), of_seed, records)


def test_the_last_kept_run_of_fewer_updates_counts_where_every_seed_has_it(tmp_path):
    store = Store(tmp_path)
    last = [kept(store, n_updates=100, seed=s) for s in (0, 1)]
    assert earlier(store, *last) == ({}, "no run of fewer than 100 updates is kept", 100)
    kept(store, n_updates=120)
    first = kept(store, n_updates=50)
    _, why, n = earlier(store, *last)
    assert why == "no run of fewer than 100 updates is kept of all seeds, of 0 alone" and n == 100
    assert earlier(store, last[0])[0] == {0: (first, last[0])}
    # a state or a policy
    second = [kept(store, "state", n_updates=n, seed=1) for n in (50, 90)]
    assert earlier(store, *last)[0] == {0: (first, last[0]), 1: (second[0], last[1])}
    assert earlier(store, last[1])[0] == {1: (second[1], last[1])}
    assert earlier(store) == ({}, "none of its policies are kept", 0)


def test_runs_of_other_settings_are_no_part_of_it(tmp_path):
    store = Store(tmp_path)
    last = kept(store, n_updates=100)
    kept(store, n_updates=50, hparams={**spec().hparams, "lr": 0.5})
    assert on_its_way(store, spec(n_updates=100)) == ({}, [])
    decayed = kept(store, n_updates=100, hparams={**spec().hparams, "decay": 100})
    kept(store, n_updates=50, hparams={**spec().hparams, "decay": 50})
    assert earlier(store, decayed) == (
        {},
        "method.decay follows the length of a run, so a shorter one is no part of it",
        0,
    )
    assert earlier(store, last)[2] == 100


def test_the_record_says_whether_a_run_went_on_from_the_earlier_one():
    rows = pd.DataFrame({"earlier_run_id": "a", "earlier_updates": 90, "run_id": list("bcd")})
    reasons = {"b": f"slow; {WENT_ON.format('a', 90)}", "c": WENT_ON.format("b", 90), "d": None}
    records = {run: SimpleNamespace(reason=reason) for run, reason in reasons.items()}
    assert _went_on(rows, records) == [True, False, False]


def test_it_is_said_how_to_get_a_shorter_run():
    args = ["suite=quick", "methods=[bc]", "n_updates=100", "task=a"]
    assert _how_to_get(args, {"a": 100, "b": 1}) == [
        "to measure it: offbench bench suite=quick 'methods=[bc]' task=a n_updates=90",
        "to measure it: offbench bench suite=quick 'methods=[bc]' task=b n_updates=1",
    ]
