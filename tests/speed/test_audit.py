"""The audit finds what a GPU would not forgive, and finds nothing in the methods of the package."""

import inspect

import pytest
import torch
from support import faulty

from offbench.cli import main
from offbench.speed import audit as audits
from offbench.speed.audit import SAMPLERS, audit, views
from offbench.speed.contenders import shipped
from offbench.testing.fakes import small

FAULTS = {
    faulty.Item: "reads the value of a tensor",
    faulty.Branch: "reads the value of a tensor",
    faulty.CpuConstant: "a constant of shape () is on the CPU",
    faulty.CpuNumbers: "CPU",
    faulty.Mask: "depends on values",
    faulty.GlobalGenerator: "draws from a global generator",
    faulty.Nonzero: "depends on values",
    faulty.ToCpu: "copies a tensor to the CPU",
}


@pytest.mark.parametrize("cls", FAULTS)
def test_a_planted_fault_is_named_with_its_line(cls):
    found = audit(cls.__name__, cls(), view="plain", batch_size=4)
    line = inspect.getsourcelines(cls.scale)[1] + 1
    assert any(FAULTS[cls] in f and f.endswith(f"faulty.py:{line}") for f in found.faults), (
        found.faults
    )


@pytest.mark.parametrize("view", ["plain", "n-step", "chunk"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_healthy_method_passes_with_every_view_and_sampler(view, sampler):
    found = audit("healthy", faulty.Healthy(), view=view, sampler=sampler, batch_size=4)
    assert found.faults == ()
    assert found.draw > 10 and found.update > 10


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_that_a_goal_view_draws_and_gathers_runs_on_a_gpu(sampler):
    assert list(views(faulty.Goals())) == ["goal"]
    found = audit("goals", faulty.Goals(), view="goal", sampler=sampler, batch_size=4)
    assert found.faults == () and found.draw > 300


# the others are slow: tracing takes seconds
QUICK = ("bc", "discrete_cql", "td3_bc")


def _audited(name: str, view: str, sampler: str) -> None:
    found = audit(name, small(shipped()[name]()), view=view, sampler=sampler)
    assert found.faults == ()


@pytest.mark.parametrize("name", QUICK)
def test_a_method_runs_on_a_gpu(name):
    _audited(name, "plain", "uniform")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "name, view", [(n, v) for n, cls in shipped().items() for v in views(small(cls()))]
)
def test_every_method_runs_on_a_gpu_with_every_view_and_sampler(name, view, sampler):
    _audited(name, view, sampler)


def test_nothing_of_torch_stays_changed():
    before = torch.compile, torch.cuda.is_available, torch.Tensor.copy_
    audit("faulty", faulty.CpuConstant(), view="plain", batch_size=4)
    assert (torch.compile, torch.cuda.is_available, torch.Tensor.copy_) == before
    assert "copy_" not in vars(torch._subclasses.fake_tensor.FakeTensor)


# --- the command


def test_the_command_prints_a_table_and_fails_where_a_method_would(capsys, monkeypatch):
    monkeypatch.setattr(audits, "SAMPLERS", {"uniform": ()})
    assert main(["speed", "--audit", "methods=[support.faulty.Healthy]"]) == 0
    said = capsys.readouterr().out
    assert "none of 3 would fail" in said and max(map(len, said.splitlines())) <= 100
    assert main(["speed", "--audit", "methods=[support.faulty.Item]"]) == 3
    said = capsys.readouterr().out
    assert "3 of 3 would fail" in said and "faulty.py:" in said


@pytest.mark.parametrize(
    "words, said",
    [
        (["methods=[iqll]"], "unknown method 'iqll': did you mean 'iql'"),
        (["methods=[support.faulty.Itm]"], "did you mean 'Item'?"),
        (["seeds=[1]"], "unknown setting of speed --audit 'seeds'"),
        (["launches=true", "cards=[h10]"], "unknown card 'h10': did you mean 'h100'"),
        (["launches=maybe"], "launches=maybe: true or false"),
    ],
)
def test_a_mistake_gets_one_line(words, said, capsys):
    assert main(["speed", "--audit", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
