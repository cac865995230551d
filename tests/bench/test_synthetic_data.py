"""`synthetic=pgd` through the command line: what is recorded, kept, resumed and refused."""

import re

import pytest
import torch
from torch.utils._pytree import tree_leaves

import offbench
from offbench.bench.plan import plan
from offbench.bench.policy import load
from offbench.bench.preflight import build
from offbench.bench.runner import run_pack
from offbench.bench.stacks import pack
from offbench.bench.watch import Watch
from offbench.cli import main
from offbench.errors import Interrupted
from offbench.results.store import Store
from offbench.tasks.loading import load_data

HOPPER = "task=offbench/hopper/medium-replay-v0"
SMALL = [
    "synthetic.features=8",
    "synthetic.levels=2",
    "synthetic.n_updates=20",
    "synthetic.rollouts=8",
    "synthetic.length=4",
    "synthetic.steps=4",
    "synthetic.every=20",
]
QUICK = ["seeds=[0,1]", "eval.episodes=1", "eval.envs=1", "eval.monitor_at=[]", "jobs=1"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))


def run(results, n, *more, method="td3_bc", source="pgd"):
    small = (
        SMALL
        if source == "pgd"
        else [s for s in SMALL if "features" not in s and "levels" not in s]
    )
    small = small if source == "pgd" else [s for s in small if "steps" not in s]
    given = [HOPPER, f"method={method}", f"synthetic={source}", f"n_updates={n}", *small, *QUICK]
    return main(["run", *given, f"results={results}", *more])


def records(results):
    """By seed."""
    store = Store(results)
    found = store.read_all(run_id=list(store.runs()["run_id"])).values()
    return sorted(found, key=lambda record: record.spec.seed)


def kept(results, n):
    return [
        load(record.path.with_suffix(".safetensors"))
        for record in records(results)
        if record.spec.n_updates == n
    ]


def test_an_entry_names_its_source_and_runs_without_one_keep_their_ids():
    plain, both = plan([HOPPER, "methods=[td3_bc,td3_bc+pgd]"], bench=True).cells
    assert "synthetic" not in plain.pipeline and both.entry == "td3_bc+pgd"
    assert both.pipeline["synthetic"]["name"] == "pgd"
    (spelt,) = plan([HOPPER, "method=td3_bc", "synthetic=pgd"], bench=False).cells
    assert spelt.runs()[0].run_id == both.runs()[0].run_id
    three = plan([HOPPER, "methods=[td3_bc+pgd]", "synthetic.coefficient=[0,0.25,1]"], bench=True)
    labels = [cell.entry for cell in three.cells]
    assert labels == [
        "td3_bc+pgd(synthetic.coefficient=0)",
        "td3_bc+pgd(synthetic.coefficient=0.25)",
        "td3_bc+pgd(synthetic.coefficient=1)",
    ]


@pytest.mark.env
def test_a_run_is_recorded_with_its_source_and_its_policy_acts(tmp_path, capsys):
    assert run(tmp_path / "r", 40) == 0
    specs = [record.spec for record in records(tmp_path / "r")]
    assert len(specs) == 2
    for spec in specs:
        assert spec.pipeline["synthetic"]["name"] == "pgd"
        assert spec.pipeline["synthetic"]["coefficient"] == 0.25
    assert len([*(tmp_path / "cache" / "sources").glob("*.safetensors")]) == 1
    policy = offbench.load_policy(specs[0].run_id, results=str(tmp_path / "r"))
    action = policy.act(torch.zeros(11).numpy())
    assert action.shape == (3,) and abs(action).max() <= 1


@pytest.mark.env
def test_a_longer_run_goes_on_from_a_shorter_one_to_the_same_bits(tmp_path):
    assert run(tmp_path / "two", 30) == 0
    assert run(tmp_path / "two", 60) == 0
    assert run(tmp_path / "one", 60) == 0
    for a, b in zip(kept(tmp_path / "two", 60), kept(tmp_path / "one", 60), strict=True):
        leaves = zip(tree_leaves(a.state), tree_leaves(b.state), strict=True)
        assert all(torch.equal(x, y) for x, y in leaves)


@pytest.mark.env
def test_a_run_that_is_stopped_while_its_source_is_trained_goes_on(tmp_path, monkeypatch):
    given = [HOPPER, "methods=[td3_bc+pgd]", "n_updates=40", *SMALL, *QUICK]
    asked = []

    def run_once(results, cache, stop=lambda: False):
        monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / cache))
        made = plan([*given, f"results={tmp_path / results}"], bench=True)
        (part,) = pack(made.cells)
        watch = Watch(part, send=lambda phase, share: asked.append(phase), stop=stop)
        return run_pack(part, Store(tmp_path / results), made.settings, watch=watch)

    left = iter([False] * 7)
    with pytest.raises(Interrupted):
        run_once("stopped", "cache", lambda: next(left, True))
    (begun,) = (tmp_path / "cache" / "sources").glob("*.safetensors")
    begun.write_bytes(begun.read_bytes()[:-7] + b"garbage")
    (outcome,) = run_once("stopped", "cache")
    assert outcome.note == (
        f"checkpoint {begun.name} is damaged (cut off or changed: its checksum is another); training begins again"
    )
    # undamaged
    (tmp_path / "cache" / "sources").rename(tmp_path / "first")
    left = iter([False] * 7)
    with pytest.raises(Interrupted):
        run_once("again", "cache", lambda: next(left, True))
    asked.clear()
    (outcome,) = run_once("again", "cache")
    assert outcome.note is None and "training a data source (40 %)" not in asked
    assert "training a data source (45 %)" in asked
    files = [
        next((tmp_path / folder).glob("*.safetensors")) for folder in ("first", "cache/sources")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    for a, b in zip(kept(tmp_path / "stopped", 40), kept(tmp_path / "again", 40), strict=True):
        assert all(map(torch.equal, tree_leaves(a.state), tree_leaves(b.state)))


@pytest.mark.env
def test_world_models_are_a_source_too(tmp_path):
    more = ["synthetic.hidden=[8]", "synthetic.batch_size=16"]
    assert run(tmp_path / "r", 40, *more, method="iql", source="world_model") == 0
    (first, _) = kept(tmp_path / "r", 40)
    assert first.run.pipeline["synthetic"]["name"] == "world_model"


@pytest.mark.parametrize(
    "given, said",
    [
        (["method=dt"], "DT reads context of a batch"),
        (["method=qc"], "of a batch, which synthetic sub-trajectories do not have"),
        (["method=td3_bc", "view=chunk"], "are cut into transitions; use view=nstep"),
        (["method=td3_bc", "synthetic.share=1.5"], "synthetic.share=1.5 must be"),
        (["method=td3_bc", "synthetic.length=7"], "synthetic.length=7 must be a multiple of 2"),
        (["method=td3_bc", "synthetic.length=2048"], "every episode of .*hopper.* is shorter"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, capsys, given, said):
    small = [s for s in SMALL if s.split("=")[0] not in {g.split("=")[0] for g in given}]
    out = tmp_path / "r"
    code = main(
        ["run", HOPPER, "synthetic=pgd", *given, *small, *QUICK, "n_updates=40", f"results={out}"]
    )
    err = capsys.readouterr().err
    assert code != 0 and "Traceback" not in err
    assert re.search(said, err), err
    assert not [*out.rglob("*.safetensors")]


def test_the_settings_of_a_source_need_one(tmp_path, capsys):
    assert main(["plan", HOPPER, "method=td3_bc", "synthetic.every=5"]) != 0
    assert "unknown setting 'synthetic.every'" in capsys.readouterr().err


def test_every_source_builds_with_the_suites_sizes():
    for source in ("pgd", "world_model"):
        (cell,) = plan([HOPPER, "method=td3_bc", f"synthetic={source}"], bench=False).cells
        data, spec = load_data(cell.task, gamma=0.99, defects="ignore")
        method, _ = build(cell, data, spec)
        assert method.size == 256 * 15 and method.share == 0.9375
