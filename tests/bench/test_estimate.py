"""Estimators of kept policies that are asked together: what they share, and that they say the same."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.mdps import random_mdp, random_policy, walks

from offbench.bench import estimate, kept_estimates
from offbench.bench.estimate import Estimates, Estimators
from offbench.bench.kept_estimates import Candidate, Evaluation, rows_of
from offbench.errors import UserError
from offbench.ope.decisions import Decisions
from offbench.ope.fqe import FQE

SMALL = FQE(gamma=0.9, n_updates=30, hidden=(8,), batch_size=32)
DATA, _ = walks(random_mdp(0), random_policy(1), 50, 5)
NAMES = ("fqe", "wis", "dr")


def counted(monkeypatch, name: str) -> list:
    calls, was = [], getattr(estimate, name)
    monkeypatch.setattr(estimate, name, lambda *a, **k: calls.append(k) or was(*a, **k))
    return calls


def decisions(steps: int = 1) -> Decisions:
    """Two policies, four draws each."""
    choice = torch.randint(
        3, (2, 4, len(DATA.obs), steps), generator=torch.Generator().manual_seed(0)
    )
    return Decisions(torch.eye(3)[choice].flatten(3), None, steps)


def test_one_fit_and_one_clone_serve_all_estimators_to_the_bit(monkeypatch):
    fits, clones = counted(monkeypatch, "fit"), counted(monkeypatch, "clone")
    one, two = Estimators(DATA, SMALL), Estimators(DATA, SMALL)
    apart = {n: e.of([n], decisions(), [0, 1])[n] for n, e in zip(NAMES, (one, two, two))}
    assert (len(fits), len(clones)) == (2, 1)
    together = Estimators(DATA, SMALL).of(["dr", "fqe", "wis"], decisions(), [0, 1])
    assert (len(fits), len(clones)) == (3, 2) and list(together) == ["dr", "fqe", "wis"]
    for name in NAMES:
        a, b = apart[name], together[name]
        assert isinstance(a, Estimates) and isinstance(b, Estimates)
        assert a.values.tobytes() == b.values.tobytes() and list(a.effective) == list(b.effective)
    assert len({x.values.tobytes() for x in together.values()}) == 3
    assert together["fqe"].values.shape == (2, 50)


def test_weights_of_chunks_are_refused_and_their_values_are_not(monkeypatch):
    fits, clones = counted(monkeypatch, "fit"), counted(monkeypatch, "clone")
    found = Estimators(DATA, SMALL).of(NAMES, decisions(3), [0, 1])
    assert isinstance(found["fqe"], Estimates)
    assert all("of single actions" in str(found[name]) for name in ("wis", "dr"))
    # Q of recorded actions is not asked for
    assert [k["rows"] for k in fits] == [False] and not clones


class Runs:
    """Kept policies that cost nothing to evaluate; notes who was evaluated by what."""

    def __init__(self, root: Path, monkeypatch):
        self.calls, self.said = [], []
        mark = root / "runs" / "s" / "t" / "e"
        mark.mkdir(parents=True)
        self.all = [Candidate(x, f"e seed {x}", mark / f"{x}.json") for x in "abc"]
        for c in self.all:
            c.kept.write_bytes(c.run_id.encode())
        monkeypatch.setattr(kept_estimates, "load_data", lambda *a, **k: (DATA, None))
        monkeypatch.setattr(kept_estimates, "check_rewards", lambda *a: None)
        monkeypatch.setattr(kept_estimates, "estimate", self.estimate)
        self.evaluation = Evaluation(Task(), root, SMALL, say=self.said.append)

    def estimate(self, names, data, fqe, device, candidates, done) -> None:
        self.calls.append((",".join(names), "".join(c.run_id for c in candidates)))
        for c in candidates:
            for name in names:
                refused = c.run_id == "c" or (name, c.run_id) == ("dr", "b")
                done(name, c, UserError("no") if refused else rows_of(c.run_id, name, np.ones(2)))

    def files(self, *by: str) -> list[str]:
        return [p.name for p in self.evaluation.files(self.all, by, None)]


class Task:
    id, env = "toy", None


@pytest.fixture
def kept(tmp_path, monkeypatch):
    return Runs(tmp_path, monkeypatch)


def test_estimators_that_lack_the_same_policies_are_computed_together(kept):
    want = ["a.dr.parquet", "a.fqe.parquet", "b.fqe.parquet", "a.model.parquet", "b.model.parquet"]
    assert kept.files("dr", "fqe", "model") == want
    assert kept.calls == [("dr,fqe", "abc"), ("model", "abc")]
    # a reason is said once for both, and once for the model
    assert sorted(kept.said) == ["e seed b on toy: no"] + 2 * ["e seed c on toy: no"]
    kept.calls.clear()
    # now they lack others: what is on file is not computed again
    assert kept.files("fqe", "dr", "fqe") == [want[1], want[2], want[0]]
    assert kept.calls == [("fqe", "c"), ("dr", "bc")]
    rows = pd.read_parquet(next(kept.evaluation.root.rglob("a.dr.parquet")))
    assert set(rows["estimator"]) == {"dr"} and set(rows["run_id"]) == {"a"}


def test_estimates_of_whole_trajectories_are_made_again_to_their_first_terminals(kept, monkeypatch):
    assert kept.files("wis") and kept.files("wis") and len(kept.calls) == 2
    inside = DATA._replace(terminal=DATA.terminal.clone())
    inside.terminal[0] = True
    monkeypatch.setattr(kept_estimates, "load_data", lambda *a, **k: (inside, None))
    kept.calls.clear()
    # "c" is refused each time
    assert kept.files("wis") and kept.files("wis")
    assert kept.calls == [("wis", "abc"), ("wis", "c")]


def test_an_estimate_that_is_not_finite_is_refused_and_others_are_not():
    values = np.array([[1.0, 2.0], [np.inf, 0.0]])
    found, two = {}, [Candidate(x, x, Path(x)) for x in "ab"]

    class Two:
        def of(self, names, decisions, seeds):
            return {"fqe": Estimates(values, [None, None]), "wis": Estimates(values, [1.5, 2.5])}

    group = [(c, 0, Decisions(torch.zeros(1, 1, 3, 2), None)) for c in two]
    done = lambda name, candidate, rows: found.update({(name, candidate.run_id): rows})
    kept_estimates._estimate_group(("fqe", "wis"), Two(), group, done)
    assert found["wis", "a"]["effective"].tolist() == [1.5, 1.5]
    assert found["fqe", "a"]["value"].tolist() == [1.0, 2.0]
    for name in ("fqe", "wis"):
        assert f"its estimate by {name} is not finite" in str(found[name, "b"])
