"""How far kept policies of seeds are apart: distances of policies that are known, and a small real run."""

import math
import shlex
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from support.records import spec as run_spec

from offbench import rng
from offbench.bench import consistency
from offbench.bench.consistency import (
    action_distance,
    choice_distance,
    first_actions,
    js_divergence,
    stacked,
)
from offbench.bench.policy import Loaded
from offbench.cli import main
from offbench.data.pipeline import Pipeline
from offbench.data.transforms import ObsNorm
from offbench.data.views import Chunk, NStep, Window
from offbench.errors import UserError
from offbench.results.consistency import read_pairs
from offbench.results.store import Store
from offbench.types import Spec

SPEC = Spec(obs_dim=2, action_dim=2, gamma=0.9, max_episode_steps=5)
STATES = torch.linspace(-1, 1, 14).reshape(7, 2)
NORM = ObsNorm(torch.zeros(2), torch.ones(2))


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """Always the action that is its state; of a chunk, zeros after the first; with noise, as much for all."""

    chunk: int = 1
    noise: float = 0.0

    def init(self, key, spec):
        return {"shift": torch.zeros(2)}

    def act(self, state, obs, key):
        first = 0.2 * obs + state["shift"] + self.noise * rng.normal(key, obs.shape)
        return torch.cat([first, torch.zeros(len(obs), 2 * (self.chunk - 1))], -1)


class Gaussian(Shifted):
    def gaussian_policy(self, state, obs):
        return self.act(state, obs, rng.key(0)), torch.zeros(2)


def loaded(shift, seed=0, method=None, view=None, spec=SPEC, norm=NORM) -> Loaded:
    pipeline = Pipeline(None, None, view or NStep(), (norm,))
    state = {"shift": torch.tensor([shift], dtype=torch.float32)}
    return Loaded("state", run_spec(seed=seed), method or Shifted(), pipeline, state, spec, None)


def distances(monkeypatch, policies) -> pd.DataFrame:
    found = dict(enumerate(policies))
    monkeypatch.setattr(consistency, "load", lambda i: found[i])
    return consistency.measure({i: i for i in found}, SimpleNamespace(id="toy"), STATES)


def test_equal_policies_are_0_apart_and_shifted_ones_by_the_shift_over_the_range(monkeypatch):
    policies = [loaded([0.0, 0.0], 0), loaded([0.0, 0.0], 1), loaded([0.3, -0.3], 2)]
    rows = distances(monkeypatch, policies)
    assert rows["kind"].unique().tolist() == ["action"]
    assert rows[["seed", "other"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert rows["divergence"].tolist() == pytest.approx([0, 0.15, 0.15], abs=1e-6)
    assert rows["run_id"][0] == policies[0].run.run_id and set(rows["states"]) == {7}
    turned = distances(monkeypatch, policies[::-1])
    assert turned["divergence"].tolist() == pytest.approx([0.15, 0.15, 0], abs=1e-6)


def test_a_distance_is_root_mean_square_over_dimensions_and_mean_over_states():
    a = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    b = torch.tensor([[-1.0, -1.0], [0.6, 0.8]])
    assert action_distance(a, b) == pytest.approx((1 + math.sqrt(0.5) / 2) / 2)
    assert action_distance(a, b) == action_distance(b, a)
    one, other = torch.eye(3)[[0, 1, 2, 0]], torch.eye(3)[[0, 2, 2, 1]]
    assert choice_distance(one, other) == 0.5 and choice_distance(one, one) == 0


def test_of_chunks_the_first_action_counts_and_noise_is_the_same_for_all_seeds(monkeypatch):
    chunked = [
        loaded([x, x], i, Shifted(chunk=3, noise=0.1), Chunk(3, 0.9))
        for i, x in enumerate((0.0, 0.4))
    ]
    assert first_actions(stacked(chunked), STATES).shape == (2, 7, 2)
    assert distances(monkeypatch, chunked)["divergence"].tolist() == pytest.approx([0.2], abs=1e-6)
    same = [loaded([0.0, 0.0], i, Shifted(noise=0.1)) for i in range(2)]
    assert distances(monkeypatch, same)["divergence"].tolist() == [0.0]
    noisy = first_actions(same[0], STATES)[0] - first_actions(loaded([0.0, 0.0]), STATES)[0]
    assert noisy.abs().min() > 0 and len(noisy.unique()) == noisy.numel()


def test_a_policy_that_aims_at_a_return_is_asked_as_at_the_start_of_an_episode():
    @dataclass(frozen=True, kw_only=True)
    class Aims:
        def act(self, state, obs, key):
            first = (obs.valid.sum(-1) == 1) & (obs.timestep[:, 0] == 0)
            target = obs.return_to_go[:, 0] * first
            return target[:, None] * torch.ones(2) + state["shift"]

    view = Window(4, target_return=5.0, return_scale=0.1).to_act(2)
    found = first_actions(loaded([0.0, 0.1], method=Aims(), view=view), STATES)
    torch.testing.assert_close(found[0, 3], torch.tensor([0.5, 0.6]))


def test_policies_see_observations_as_in_training_and_other_data_are_refused():
    doubled = ObsNorm(torch.zeros(2), torch.full((2,), 0.5))
    found = first_actions(loaded([0.0, 0.0], norm=doubled), STATES)
    torch.testing.assert_close(found[0], 0.4 * STATES)
    with pytest.raises(UserError, match="are not seeds of one configuration"):
        stacked([loaded([0.0, 0.0]), loaded([0.0, 0.0], norm=doubled)])


def js_by_integration(m1, s1, m2, s2) -> float:
    x = np.linspace(-30, 30, 200_001)
    p, q = (
        np.exp(-0.5 * ((x - m) / s) ** 2) / s / np.sqrt(2 * np.pi) for m, s in ((m1, s1), (m2, s2))
    )
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = [np.where(y > 1e-250, y * np.log2(y / m), 0) for y in (p, q)]
    return float((kl[0] + kl[1]).sum() * (x[1] - x[0]) / 2)


@pytest.mark.parametrize(("m1", "s1", "m2", "s2"), [(0, 1, 1, 1), (0, 1, 0.3, 2), (0, 0.5, 5, 0.5)])
def test_jensen_shannon_is_that_of_numerical_integration(m1, s1, m2, s2):
    n = 3000
    wide = lambda x: torch.full((n, 1), float(x))
    args = [wide(m1), wide(math.log(s1)), wide(m2), wide(math.log(s2))]
    found = js_divergence(*args)
    assert found == pytest.approx(js_by_integration(m1, s1, m2, s2), abs=0.006)
    assert js_divergence(*args[2:], *args[:2]) == pytest.approx(found, abs=0.006)
    assert js_divergence(*args[:2], *args[:2]) == pytest.approx(0, abs=1e-9)


def test_of_two_equal_dimensions_it_is_that_of_one_at_a_larger_distance():
    n = 3000
    two, one = torch.full((n, 2), 0.7), torch.full((n, 1), 0.7 * math.sqrt(2))
    zeros = lambda x: torch.zeros_like(x)
    a = js_divergence(two, zeros(two), zeros(two), zeros(two))
    assert a == pytest.approx(js_divergence(one, zeros(one), zeros(one), zeros(one)), abs=0.006)


def test_gaussian_policies_have_both_kinds(monkeypatch):
    rows = distances(
        monkeypatch, [loaded([x, 0.0], i, Gaussian()) for i, x in enumerate((0.0, 2.0))]
    )
    found = rows.set_index("kind")["divergence"]
    assert found["action"] < found["js"] and set(found.index) == {"action", "js"}
    assert found["js"] == pytest.approx(js_by_integration(0, 1, 2, 1), abs=0.1)


HOPPER = "offbench/hopper/medium-replay-v0"


@pytest.mark.env
def test_seeds_of_real_runs_are_measured_and_stand_on_the_board(tmp_path, capsys):
    what = ["methods=[bc,iql]", f"task={HOPPER}", "seeds=[0,1,2]", f"results={tmp_path}"]
    what += [
        "n_updates=30",
        "eval.episodes=1",
        "eval.monitor_at=[]",
        "jobs=1",
        "method.hidden=[8]",
        "engine=vmap",
    ]
    assert main(["bench", *what]) == 0
    capsys.readouterr()
    assert main(["diagnose", "--consistency", *what]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "js" in out and "10,000" in out and "offbench diagnose --churn" in out
    rows = read_pairs(tmp_path, "quick", Store(tmp_path).runs())
    assert rows.groupby(["entry", "kind"]).size().to_dict() == {
        ("bc(hidden=[8])", "action"): 3,
        ("iql(hidden=[8])", "action"): 3,
        ("iql(hidden=[8])", "js"): 3,
    }
    assert ((rows["divergence"] > 0) & (rows["divergence"] < 1)).all()
    assert main(["diagnose", "--consistency", *what]) == 0
    pd.testing.assert_frame_equal(read_pairs(tmp_path, "quick", Store(tmp_path).runs()), rows)
    capsys.readouterr()
    assert main(["board", "--format", "markdown", *what]) == 0
    assert "| consistency |" in capsys.readouterr().out
    assert main(["diagnose", "--churn", *what]) == 2
    said = capsys.readouterr()
    assert said.out.count("no run of fewer than 30 updates is kept") == 2
    shorter = said.out.partition("to measure it: offbench ")[2].splitlines()[0]
    assert "no churn is measured" in said.err and "n_updates=27" in shorter
    # what is said to be run makes it measurable
    assert main(shlex.split(shorter.replace("[bc,iql]", "[bc]"))) == 0
    capsys.readouterr()
    assert main(["diagnose", "--churn", *what]) == 0
    assert "iql(hidden=[8]) on" in capsys.readouterr().out.partition(": not measured, ")[0]
    rows = pd.read_csv(next((tmp_path / "board").glob("*-churn.csv")))
    assert set(rows["entry"]) == {"bc(hidden=[8])"} and rows["seed"].tolist() == [0, 1, 2]
    assert set(rows["earlier_updates"]) == {27} and not rows["went_on"].any()
    assert rows["divergence"].between(1e-6, 0.2).all()
    for path in tmp_path.glob("runs/*/*/*/*.safetensors"):
        path.unlink()
    assert main(["diagnose", "--consistency", *what]) == 2
    assert "no entry here keeps the policies of two seeds" in capsys.readouterr().err
