"""How good synthetic data are: perfect ones have no error, and what is broken on purpose shows."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from support.paths import ROOT

from offbench.bench import synthetic_quality as quality
from offbench.bench.plan import plan
from offbench.cli import main
from offbench.cli.synthetic import _sources
from offbench.errors import UserError
from offbench.synthetic.sources import PolicyGuidedDiffusion, WorldModel
from offbench.tasks.consistency import simulator
from offbench.tasks.loading import load_data
from offbench.tasks.locate import load_task

TASK = "offbench/hopper/medium-replay-v0"
pytestmark = pytest.mark.env


@pytest.fixture(scope="module")
def hopper():
    task = load_task(TASK)
    data, _ = load_data(task, defects="ignore")
    return data, simulator(task, (11, 3))


def zero(obs, number):
    return torch.zeros(*obs.shape[:-1], 3)


def test_recorded_windows_are_true_to_the_simulator(hopper):
    data, step = hopper
    found = quality.measure(lambda keys, policy: quality.recorded(data, 8), zero, data, step)
    assert found["state_error"] < 0.01 and found["steps"] == quality.STEPS
    rollouts = quality.recorded(data, 8)
    squares = rollouts.action[0, :, :-1].square().sum(-1)
    inside = torch.arange(7) < rollouts.lengths[0][:, None]
    wanted = -0.5 * float(squares[inside].mean()) - 1.5 * math.log(2 * math.pi)
    assert found["log_likelihood"] == pytest.approx(wanted, abs=1e-4)


def test_an_error_is_in_squared_deviations_of_the_data(hopper):
    data, step = hopper
    spread = data.obs[data.valid].std(0, correction=0)

    def half(keys, policy):
        """The last observation is one deviation off."""
        rollouts = quality.recorded(data, 8)
        obs = rollouts.obs.clone()
        obs[:, :, 7:] += spread
        return rollouts._replace(obs=obs)

    late = quality.measure(half, zero, data, step)
    # of seven steps the first quarter are two, the last quarter is one
    assert late["state_error_first"] < 0.01
    assert late["state_error_last"] == pytest.approx(1.0, abs=0.05)
    assert late["state_error"] == pytest.approx(1 / 7, abs=0.04)


def test_sources_are_drawn_from_with_more_and_more_guidance(hopper, tmp_path):
    data, _ = hopper
    small = PolicyGuidedDiffusion(
        length=4, features=8, levels=2, n_updates=5, steps=4, coefficient=0.5, rollouts=3
    )
    found = list(quality.draws({"pgd": small}, data, tmp_path))
    assert [(name, c) for name, c, _ in found] == [("data", None)] + [
        ("pgd", 0.5 * c) for c in quality.STRENGTHS
    ]
    keys = torch.zeros(1, dtype=torch.int64)
    plain, most = (draw(keys, zero) for _, _, draw in (found[1], found[-1]))
    assert plain.obs.shape == (1, quality.ROLLOUTS, 4, 11)
    assert not torch.equal(most.action, plain.action)


def test_recorded_windows_are_no_longer_than_episodes(hopper, tmp_path):
    data, _ = hopper
    # an ensemble may imagine for longer
    own = WorldModel(length=2048, n_updates=2, hidden=(8,))
    _, _, draw = next(iter(quality.draws({"world_model": own}, data, tmp_path)))
    rollouts = draw(torch.zeros(1, dtype=torch.int64), zero)
    assert rollouts.obs.shape[2] == int(torch.bincount(data.episode).max())


def test_policies_of_windows_are_refused(tmp_path, capsys):
    given = [f"task={TASK}", "method=dt", "seeds=[0]", "n_updates=4", "eval.episodes=1", "jobs=1"]
    given += ["eval.monitor_at=[]", f"results={tmp_path / 'r'}", "method.width=8", "method.heads=1"]
    assert main(["run", *given]) == 0
    (kept,) = (tmp_path / "r").rglob("*.safetensors")
    with pytest.raises(UserError, match="dt is none: leave it out"):
        quality.acting(kept)


def test_the_command_prints_means_and_writes_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(quality, "STEPS", 20)
    monkeypatch.setattr(quality, "ROLLOUTS", 10)
    small = ["features=8", "levels=2", "n_updates=20", "rollouts=8", "length=4", "steps=4"]
    given = [f"task={TASK}", "methods=[td3_bc+pgd]", *(f"synthetic.{s}" for s in small)]
    given += ["seeds=[0,1]", "n_updates=40", "eval.episodes=1", "eval.monitor_at=[]", "jobs=1"]
    # the model that the runs learned from does not know the held-out episodes
    given += [f"results={tmp_path / 'r'}", "eval.validation=0.2"]
    assert main(["bench", *given]) == 0
    capsys.readouterr()
    assert main(["diagnose", "synthetic", *given]) == 0
    out = capsys.readouterr().out
    assert "2 policies" in out and "pgd x0.25" in out and "log-likelihood" in out
    path = out.split("written: ")[1].split("\n")[0].strip()
    rows = pd.read_csv(path)
    assert len(rows) == 2 * 7 and set(rows["source"]) == {"data", "pgd"}
    assert (rows["state_error"] >= 0).all()
    assert len([*(tmp_path / "cache" / "sources").glob("*.safetensors")]) == 1


def test_what_cannot_be_measured_is_said_in_a_line(tmp_path, capsys):
    given = [f"task={TASK}", "seeds=[0]", "n_updates=40", "eval.episodes=1", "eval.monitor_at=[]"]
    given += ["jobs=1", f"results={tmp_path / 'r'}"]
    assert main(["diagnose", "synthetic", "methods=[td3_bc]", *given]) != 0
    assert "nothing recorded" in capsys.readouterr().err
    assert main(["bench", "methods=[td3_bc]", *given]) == 0
    capsys.readouterr()
    assert main(["diagnose", "synthetic", "methods=[td3_bc]", *given]) != 0
    err = capsys.readouterr().err
    assert "no entry here learns from synthetic data" in err and "Traceback" not in err
    with pytest.raises(UserError, match="no environment is known"):
        simulator(replace(load_task(TASK), env=None), (2, 1))


def test_sources_of_one_name_with_other_settings_are_all_measured():
    given = [
        f"task={TASK}",
        "methods=[td3_bc+pgd]",
        "synthetic.features=[8,16]",
        "synthetic.levels=2",
    ]
    cells = plan(given, bench=True).cells
    found = _sources(SimpleNamespace(plan=SimpleNamespace(cells=[*cells, *cells])), TASK)
    assert [(name, own.features) for name, own in found.items()] == [
        ("pgd", 8),
        (cells[1].entry, 16),
    ]


def test_the_shipped_means_follow_from_the_rows():
    folder = ROOT / "results" / "synthetic"
    if not folder.exists():
        pytest.skip("a source distribution carries no results")
    rows = pd.read_csv(folder / "quality.csv")
    columns = ["log_likelihood", "state_error", "state_error_first", "state_error_last"]
    means = rows.groupby(["task", "source", "coefficient"], dropna=False, sort=False)[
        columns
    ].mean()
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    numbers = [line.rsplit("|", 5)[1:5] for line in lines if line.count("|") == 7]
    found = [[float(x) for x in row] for row in numbers if "---" not in row[0] and row[0][1] == "-"]
    assert len(found) == len(means) == 16
    for row, wanted in zip(found, means.to_numpy(), strict=True):
        assert row[0] == pytest.approx(wanted[0], abs=0.0051)
        assert row[1:] == pytest.approx(list(wanted[1:]), abs=0.00051)
    ordered = rows[rows["source"] == "pgd"].sort_values("coefficient")
    assert ordered.groupby(["task", "run_id"])["log_likelihood"].is_monotonic_increasing.all()
