"""How long sources of synthetic data take: trained once, asked for every pool, here and on a GPU that is not here."""

import re
from dataclasses import replace

import pytest

from offbench.bench import devices, probes
from offbench.bench import forecast as forecasts
from offbench.bench.forecast import forecast
from offbench.bench.plan import plan
from offbench.bench.preflight import build_source
from offbench.bench.stacks import pack
from offbench.cli import main
from offbench.results.store import Store
from offbench.synthetic.sources import PolicyGuidedDiffusion
from offbench.tasks.loading import load_data

H100 = devices.card("H100")


def cell(*overrides: str):
    what = ["method=bc", "eval.episodes=10"]
    if not any(word.startswith("task=") for word in overrides):
        what.append("task=offbench/hopper/medium-replay-v0")
    return plan([*what, "n_updates=100", *overrides], bench=False).cells[0]


def test_sources_of_synthetic_data_are_probed_and_added(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(forecasts, "_update_rate", lambda stack: 1000)
    monkeypatch.setattr(forecasts, "_step_rate", lambda cell: float("inf"))
    monkeypatch.setattr(probes, "step_s", lambda engine, steps: 0.01)
    sizes = ["synthetic.features=8", "synthetic.n_updates=500", "synthetic.every=30", "seeds=[0,1]"]
    one, other = (cell("synthetic=pgd", *sizes, f"synthetic.steps={n}") for n in (4, 4000))
    (first,), (slow,), (plain,) = (pack([c]) for c in (one, other, cell()))
    costs = forecast([first, slow, plain, first], Store(tmp_path))
    # of the same settings it is trained once
    assert costs[0].synthetic > 5 and costs[2].synthetic == 0
    assert costs[3].synthetic == pytest.approx(costs[0].synthetic - 5)
    # four pools of each of two seeds, with a thousand times the noise levels
    assert costs[1].synthetic > 100 * costs[3].synthetic
    data, _ = load_data(one.task, gamma=one.pipeline["gamma"], defects="ignore")
    kept = build_source(one).kept(data, tmp_path / "cache" / "sources")
    kept.parent.mkdir(parents=True)
    kept.touch()
    (again,) = forecast(pack([one]), Store(tmp_path))
    assert again.synthetic < 5
    where = ["method=bc", f"task={one.task.id}", "n_updates=100", f"results={tmp_path}"]
    assert main(["plan", *where, "synthetic=pgd", *sizes, "device=cpu"]) == 0
    assert "sources of synthetic data and what is drawn from them:" in capsys.readouterr().out
    assert main(["plan", *where, "synthetic=pgd", *sizes, "--on", "H100"]) == 0
    assert re.search(r"; synthetic data are \d+ % of it", " ".join(capsys.readouterr().out.split()))


def test_a_diffusion_model_is_counted_once_whatever_its_guidance(monkeypatch):
    monkeypatch.setattr(probes, "_diffusion", lambda *given: (7.0, 0.0))
    sources, found = probes.OfSources(None), []
    for more in ("coefficient=0", "coefficient=1", "features=16"):
        (stack,) = pack([cell("synthetic=pgd", f"synthetic.{more}")])
        found.append(sources.of(stack, print))
    # held-out episodes are not learned from: another model
    (stack,) = pack([cell("synthetic=pgd", "synthetic.coefficient=0", "eval.validation=0.2")])
    assert [*found, sources.of(stack, print)] == [7.0, 0.0, 7.0, 7.0]


def test_sources_are_forecast_for_a_gpu_without_being_made(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))
    # the authors' sizes, of 180 million parameters
    own = PolicyGuidedDiffusion()
    data, _ = load_data(cell().task, defects="ignore")
    training, pool = probes._diffusion(own, data, False, H100)
    # of a window: multiplications at each of 32, 16 and 8 steps, forward, and twice as many backward
    of_level = lambda n_in, n: 3 * n_in * n + 3 * n * n
    rise = lambda n: 2 * 2 * n * n + 3 * 2 * n * n + 3 * n * n
    window = 32 * (of_level(16, 1024) + rise(1024)) + 16 * (of_level(1024, 2048) + rise(2048))
    window += 8 * of_level(2048, 4096)
    rate = devices.REACHED["float32"] * H100.float32
    evaluations, updates = 2 * 256 * 8192, 3 * 32 * 100_000
    # what else there is: launches, memory, the embedded noise level
    assert 1 < pool / (evaluations * 2 * window / rate) < 1.1
    assert 1 < (training - devices.COMPILE_S) / (updates * 2 * window / rate) < 1.3
    assert probes._diffusion(own, data, True, H100) == (0.0, pool)
    ensemble = build_source(cell("synthetic=world_model", "synthetic.n_updates=1000"))
    once, _ = probes._world_model(ensemble, data, False, H100)
    ten, _ = probes._world_model(replace(ensemble, n_updates=10_000), data, False, H100)
    assert ten - devices.COMPILE_S == pytest.approx(10 * (once - devices.COMPILE_S))
    assert probes._world_model(ensemble, data, True, H100) == (0.0, 0.0)


def test_an_ensemble_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))
    wanted = cell("synthetic=world_model", "synthetic.n_updates=500", "synthetic.hidden=[8]")
    measured = []
    monkeypatch.setattr(probes, "_world_model", lambda *given: measured.append(1) or (7.0, 0.0))
    sources = probes.OfSources(None)
    (stack,) = pack([wanted])
    assert [sources.of(stack, print) for _ in range(2)] == [7.0, 0.0] and measured == [1]
