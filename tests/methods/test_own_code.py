"""PyTorch code that is brought along: a network, a class as it was written, a policy from elsewhere."""

import importlib.util
import os
import random
import re
import shlex
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from support.modules import member
from support.own_td3_bc import OwnTD3BC
from support.paths import ROOT
from torch import nn
from torch.func import grad_and_value

from offbench import evaluate_policy, rng
from offbench.cli import main
from offbench.data.pipeline import make_pipeline
from offbench.errors import UserError
from offbench.methods.bc import BC
from offbench.methods.td3_bc import TD3BC
from offbench.nn import nets
from offbench.nn.optim import Adam
from offbench.results.store import Store
from offbench.rollout import evaluate, make_policy
from offbench.tasks.episodes import env_seeds
from offbench.tasks.loading import load_data
from offbench.tasks.locate import load_task
from offbench.testing import contract as testing
from offbench.testing.contract import SPEC, fake_batch
from offbench.training import checkpoint
from offbench.training.imperative import Imperative
from offbench.training.loop import diverged, train
from offbench.training.step import make_step, stack
from offbench.types import TimeStep, minibatch

HOPPER = "offbench/hopper/medium-replay-v0"
RUN = [
    f"task={HOPPER}",
    "n_updates=40",
    "eval.episodes=2",
    "eval.monitor_at=[]",
    "jobs=1",
    "device=cpu",
]


class Noisy:
    """Cloning that draws from every generator of the process."""

    def __init__(self, obs_dim, action_dim, lr=1e-2):
        self.net = nn.Sequential(nn.Linear(obs_dim, 8), nn.Dropout(0.5), nn.Linear(8, action_dim))
        self.opt = torch.optim.Adam(self.net.parameters(), lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, 100)

    def train_step(self, batch):
        shift = torch.randn(1) + np.random.rand() + random.random()
        loss = (self.net(batch.obs) - batch.action + 0.1 * shift).square().mean()
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        self.schedule.step()
        return {"loss": loss}

    def act(self, obs):
        return self.net(obs).tanh()


def trained(cls, data, seeds, n=40, **options):
    pipeline = make_pipeline(data, batch_size=8)
    hparams = options.pop("hparams", {})
    points = list(
        train(Imperative(cls, **hparams), pipeline, SPEC, seeds=seeds, n_updates=n, **options)
    )
    return points[-1]


def weights(point, i: int) -> list[torch.Tensor]:
    algorithm = point.state.members[i].algorithm
    return [
        p
        for name in ("net", "actor", "critic")
        if hasattr(algorithm, name)
        for p in getattr(algorithm, name).parameters()
    ]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- a class as it was written --------------------------------------------------------------


@pytest.mark.parametrize("cls", [Noisy, OwnTD3BC])
def test_a_seed_alone_is_the_same_seed_among_three_and_leaves_the_generators_alone(cls, data):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    alone, three = trained(cls, data, [5]), trained(cls, data, [3, 5, 4], stop_at=[7, 20])
    assert same(weights(alone, 0), weights(three, 1))
    assert not same(weights(three, 0), weights(three, 1))
    assert all(torch.equal(alone.metrics[k][0], three.metrics[k][1]) for k in alone.metrics)
    assert torch.equal(before[0], torch.get_rng_state()) and before[2] == random.getstate()
    assert np.array_equal(before[1], np.random.get_state()[1])


class Records:
    """Keeps the rows that it is given, and learns nothing."""

    def __init__(self, obs_dim, action_dim):
        self.seen, self.net = [], nn.Linear(obs_dim, action_dim)

    def train_step(self, batch):
        self.seen.append(batch.obs.clone())
        return {}

    def act(self, obs):
        return self.net(obs).tanh()


def test_its_batches_are_those_of_a_functional_method_of_the_seed(data):
    pipeline = make_pipeline(data, batch_size=8)
    (seen,) = [m.algorithm.seen for m in trained(Records, data, [7], n=35).state.members]
    step = make_step(Imperative(Records), pipeline)
    key = rng.split(rng.key(7))[1]
    want = [pipeline.batch(step.draw(rng.fold(key, torch.tensor(t))).rows).obs for t in range(35)]
    assert same(seen, want)


@pytest.mark.parametrize("cls", [Noisy, OwnTD3BC])
def test_a_run_through_a_checkpoint_ends_where_it_would_have_ended(cls, data, tmp_path):
    method, pipeline = Imperative(cls), make_pipeline(data, batch_size=8)
    points = train(method, pipeline, SPEC, seeds=[0, 5], n_updates=40, stop_at=[15])
    checkpoint.save(next(points).carry, tmp_path / "c.safetensors")
    carry, _ = checkpoint.load(tmp_path / "c.safetensors", method.like([0, 5], SPEC))
    (resumed,) = train(method, pipeline, SPEC, seeds=[0, 5], n_updates=40, resume=carry)
    (*_, whole) = points
    assert same(weights(whole, 0), weights(resumed, 0)) and same(
        weights(whole, 1), weights(resumed, 1)
    )
    assert whole.metrics.keys() == resumed.metrics.keys()
    with pytest.raises(UserError, match="of another run"):
        checkpoint.load(tmp_path / "c.safetensors", method.like([0], SPEC))


def test_it_acts_on_a_copy_in_eval_mode(data):
    point = trained(Noisy, data, [0], n=4)
    policy, obs = make_policy(Imperative(Noisy), make_pipeline(data)), data.obs[:6].view(1, 6, -1)
    step = TimeStep(obs, torch.zeros(1, 6), torch.ones(1, 6, dtype=torch.bool))
    a, b = (policy.act(point.state, step, (), torch.full((1, 6), k))[0] for k in (1, 2))
    assert torch.equal(a, b) and a.shape == (1, 6, SPEC.action_dim)
    assert point.state.members[0].algorithm.net.training


class HoldsALambda(Noisy):
    def __init__(self, obs_dim, action_dim):
        super().__init__(obs_dim, action_dim)
        self.activation = lambda x: x


def test_objects_that_cannot_be_stored_train_and_the_row_says_so(data):
    point = trained(HoldsALambda, data, [0], n=4)
    assert str(point.backend) == (
        "imperative, one seed at a time (no checkpoints: attribute activation is a "
        "HoldsALambda.__init__.<locals>.<lambda>)"
    )
    assert trained(Noisy, data, [0], n=4).backend == ("imperative, one seed at a time", ())


def test_a_seed_whose_parameters_are_not_finite_has_diverged_and_a_mask_of_infinities_has_not(data):
    class Breaks(Noisy):
        def __init__(self, obs_dim, action_dim):
            super().__init__(obs_dim, action_dim)
            self.mask = torch.full((3,), -torch.inf)
            self.breaks = torch.rand(1).item() < 0.5

        def train_step(self, batch):
            if self.breaks:
                self.net[0].weight.data.fill_(torch.nan)
            return super().train_step(batch)

    point = trained(Breaks, data, [0, 1, 2, 3], n=2)
    broken = [m.algorithm.breaks for m in point.state.members]
    assert diverged(point.state).tolist() == broken and len(set(broken)) == 2


def written(**body):
    """A class with these methods, the others being right."""
    rest = {
        "__init__": lambda self, obs_dim, action_dim: None,
        "train_step": lambda self, batch: {"loss": 0.0},
        "act": lambda self, obs: torch.zeros(len(obs), SPEC.action_dim),
    }
    return type("Mine", (), {k: v for k, v in (rest | body).items() if v is not None})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"train_step": None}, r"Mine has no train_step\(batch\)"),
        ({"act": None}, r"Mine has no act\(obs\)"),
        ({"__init__": lambda self: None}, "takes no obs_dim and no action_dim"),
        (
            {"__init__": lambda self, obs_dim, action_dim: 1 / 0},
            r"__init__ raised ZeroDivisionError: .*test_own_code.py:",
        ),
        ({"train_step": lambda self, batch: None}, "train_step returned NoneType: return a dict"),
        (
            {"train_step": lambda self, batch: {"loss": batch.reward}},
            r"'loss' is a Tensor \(\d+,\): return a number",
        ),
        ({"train_step": lambda self, batch: batch.nothing}, "train_step raised AttributeError"),
        (
            {"act": lambda self, obs: torch.zeros(3)},
            r"act returned \(3,\) for obs \(2, \d+\): return \(2, \d+\)",
        ),
        (
            {"act": lambda self, obs: np.full((len(obs), SPEC.action_dim), np.nan)},
            "actions that are not finite",
        ),
    ],
)
def test_what_is_wrong_with_a_class_is_one_line(body, message):
    with pytest.raises(UserError, match=message) as found:
        Imperative(written(**body)).check(SPEC, fake_batch(SPEC))
    assert "\n" not in str(found.value)


def test_settings_that_mean_another_engine_are_refused(data):
    with pytest.raises(UserError, match="Noisy is run as it is written"):
        trained(Noisy, data, [0], backend="compile")


# --- on the command line --------------------------------------------------------------------


def run(tmp_path, *args, target="support.own_td3_bc.OwnTD3BC") -> int:
    return main(["run", f"method._target_={target}", *RUN, f"results={tmp_path}", *args])


def test_a_class_is_run_recorded_and_ranked_beside_a_functional_method(tmp_path, capsys):
    assert run(tmp_path, "method.width=16", "seeds=[0,1]", "eval.monitor_at=[0.5]") == 0
    assert "OwnTD3BC(width=16)" in capsys.readouterr().out
    store = Store(tmp_path)
    runs = store.runs()
    assert set(runs["backend"]) == {"imperative, one seed at a time"}
    assert runs["hparams.width"].tolist() == [16, 16] and set(runs["hparams.lr"]) == {3e-4}
    curves = store.read(runs["run_id"][0]).metrics
    assert {"critic_loss", "actor_loss", "q", "update"} == set(curves) and len(curves) == 20
    other = ["run", "method=bc", "method.hidden=[16]", *RUN, "seeds=[0,1]", "eval.monitor_at=[0.5]"]
    assert main([*other, f"results={tmp_path}"]) == 0
    assert "OwnTD3BC(width=16)" in capsys.readouterr().out
    episodes = store.episodes(stream="test")
    faced = episodes.groupby("entry")["env_seed"].apply(lambda x: sorted(set(x)))
    assert len(faced) == 2 and faced.iloc[0] == faced.iloc[1]


@pytest.mark.slow
def test_seeds_do_not_depend_on_the_stack_the_monitor_or_an_interruption(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    small = ["method.width=16", "checkpoint_minutes=0"]
    run(tmp_path / "a", *small, "seeds=[0,1]", "eval.monitor_at=[0.2,0.5]")
    run(tmp_path / "b", *small, "seeds=[1]")
    from offbench import rollout as evaluation

    real, calls = evaluation.evaluate, []

    def interrupted(*args, **kwargs):
        calls.append(kwargs["stream"])
        if calls == ["monitor", "monitor"]:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            from offbench.bench.plan import plan
            from offbench.bench.runner import run_pack
            from offbench.bench.stacks import pack

            made = plan(
                [
                    "method._target_=support.own_td3_bc.OwnTD3BC",
                    *RUN,
                    *small,
                    "seeds=[0,1]",
                    "eval.monitor_at=[0.2,0.5]",
                    f"results={tmp_path / 'c'}",
                ],
                bench=False,
            )
            run_pack(pack(made.cells)[0], Store(tmp_path / "c"), made.settings)
    assert list((tmp_path / "c").glob("checkpoints/*.safetensors"))
    run(tmp_path / "c", *small, "seeds=[0,1]", "eval.monitor_at=[0.2,0.5]")
    assert not list((tmp_path / "c").glob("checkpoints/*"))
    returns = [
        Store(tmp_path / x).episodes(stream="test", seed=1)["return"].tolist() for x in "abc"
    ]
    whole, alone, interrupted = returns
    assert whole == interrupted and len(whole) == 2
    # on some processors a library adds in another order where more seeds act at once
    assert whole == pytest.approx(alone, rel=1e-6)


def test_what_acts_while_a_run_is_watched_does_not_disturb_its_training(tmp_path):
    watched = ["eval.monitor_at=[0.1,0.3,0.5]"]
    for name, args in (("a", watched), ("b", [])):
        run(tmp_path / name, "method.width=16", "seeds=[1]", *args, target="own_td3_bc.Thinks")
    returns = [Store(tmp_path / x).episodes(stream="test")["return"].tolist() for x in "ab"]
    assert returns[0] == returns[1]


MODULE = """
import torch

class Mine:
    def __init__(self, obs_dim, action_dim, gain: float = 1.0):
        self.size, self.scale = action_dim, torch.nn.Parameter(torch.zeros(1) + gain)
    def train_step(self, batch):
        return {"q": %s}
    def act(self, obs):
        return torch.zeros(len(obs), self.size)

class OnlyActs:
    def __init__(self, obs_dim, action_dim): ...
    def act(self, obs): ...
"""
NO_METHODS = """
import abc, dataclasses, typing

def a_function(width: int = 3): return Mine(width, width)

an_object = Mine(1, 1)

class NoUpdate:
    def init(self, key, spec): ...
    def act(self, state, obs, key): ...

class Whole(NoUpdate):
    def update(self, state, batch, key): ...

class Abstract(Whole, abc.ABC):
    @abc.abstractmethod
    def update(self, state, batch, key): ...

class AProtocol(typing.Protocol):
    def init(self, key, spec): ...
    def update(self, state, batch, key): ...
    def act(self, state, obs, key): ...

@dataclasses.dataclass
class NeedsWidth(Whole):
    width: int

class Refuses(Whole):
    def __init__(self): raise ValueError("an even width")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to stand in, with a module in it that no path names."""
    code = MODULE % "self.scale.data.fill_(torch.nan) and 0.0" + NO_METHODS
    (tmp_path / "mine_here.py").write_text(code)
    (tmp_path / "broken_here.py").write_text("raise RuntimeError('no GPU here')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    yield tmp_path
    __import__("sys").modules.pop("mine_here", None)


def test_a_divergence_is_a_record_and_a_module_in_the_folder_is_found(folder, capsys):
    assert run(folder / "r", "seeds=[0]", target="mine_here.Mine") == 3
    assert Store(folder / "r").runs()["status"].tolist() == ["diverged"]
    assert "not finite after 40 updates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "target", "message"),
    [
        (["method.gian=2"], "Mine", "did you mean 'method.gain'"),
        ([], "OnlyActs", "OnlyActs has no train_step: a PyTorch class needs"),
        ([], "a_function", "_target_=mine_here.a_function is a function, not a class: a PyTorch"),
        ([], "an_object", "_target_=mine_here.an_object is a Mine, not a class or function"),
        ([], "NoUpdate", "NoUpdate has no update: a PyTorch class needs"),
        ([], "Abstract", "Abstract is an abstract class: name one that"),
        ([], "AProtocol", "AProtocol is an abstract class: name one that"),
        ([], "NeedsWidth", "NeedsWidth needs width, which neither"),
        ([], "Refuses", "Refuses.__init__ raised ValueError: an even width (/"),
        ([], "Mime", "'Mime': did you mean 'Mine'"),
        (["weight=dw"], "Mine", "use weight=none"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(args, target, message, folder, capsys):
    assert run(folder / "r", *args, target=f"mine_here.{target}") == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not (folder / "r").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mine_here", "_target_=mine_here: a dotted path is needed"),
        ("3", "_target_=3: a dotted path is needed"),
        ("offbench.methods.iql", "_target_=offbench.methods.iql is a module, not a class"),
        ("broken_here.Mine", "import broken_here raised RuntimeError: no GPU here (/"),
        ("offbench.methods.iqq.IQL", "no module named 'offbench.methods.iqq'"),
    ],
)
def test_a_target_that_is_none_is_one_line(target, message, folder, capsys):
    assert main(["plan", f"method._target_={target}", *RUN, f"results={folder / 'r'}"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not (folder / "r").exists()


def test_plan_and_check_take_a_class(folder, capsys):
    target = "method._target_=support.own_td3_bc.OwnTD3BC"
    assert main(["plan", target, *RUN, f"results={folder}"]) == 0
    assert main(["check", target, *RUN]) == 0
    assert "trained as it is written" in capsys.readouterr().out


# --- one of our own against the functional one, and CORL's ----------------------------------


def put(layers, *modules) -> None:
    """Our weights into modules."""
    for module in modules:
        linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
        for linear, layer in zip(linears, layers, strict=True):
            linear.weight.data, linear.bias.data = (
                layer["w"].T.clone(),
                layer["b"].flatten().clone(),
            )


def test_td3_bc_in_plain_pytorch_agrees_with_the_functional_one():
    ours = TD3BC(hidden=(16, 16), policy_noise=0.0)
    state = ours.init(rng.key(0), SPEC)
    plain = OwnTD3BC(SPEC.obs_dim, SPEC.action_dim, width=16, policy_noise=0.0)
    put(state.actor, plain.actor, plain.actor_target)
    for i, name in enumerate(("q1", "q2")):
        put(
            member(state.critic, i), getattr(plain.critic, name), getattr(plain.critic_target, name)
        )
    before = plain.act(fake_batch(SPEC).obs)
    for t in range(20):
        batch = fake_batch(SPEC, minibatches=2, seed=t)
        state, metrics = ours.update(state, batch, rng.key(t))
        for i in (0, 1):
            found = plain.train_step(minibatch(batch, i))
    assert found["actor_loss"] == pytest.approx(float(metrics["actor_loss"]), abs=1e-4)
    obs = fake_batch(SPEC).obs
    assert torch.allclose(plain.act(obs), ours.act(state, obs, rng.key(0)), atol=1e-4)
    assert (plain.act(obs) - before).abs().max() > 1e-3


# a checkout of tinkoff-ai/CORL: $CORL, or beside this repository
CORL = Path(os.environ.get("CORL") or ROOT.parent / "CORL")


@pytest.fixture
def corl(monkeypatch):
    """CORL's own file, as it stands where it is; what it imports to log and to step d4rl is absent."""
    if not (CORL / "algorithms/offline/td3_bc.py").is_file():
        pytest.skip("CORL's code is not here: CORL=FOLDER names a checkout of it")
    for name in ("d4rl", "gym", "pyrallis", "wandb"):
        monkeypatch.setitem(
            sys.modules, name, types.SimpleNamespace(wrap=lambda: lambda f: f, Env=object)
        )
    spec = importlib.util.spec_from_file_location(
        "corl_td3_bc", CORL / "algorithms/offline/td3_bc.py"
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "corl_td3_bc", module)
    spec.loader.exec_module(module)
    return module


def corl_class(corl):
    """The door to it: twelve lines around a class that is not ours."""

    class Corl:
        def __init__(self, obs_dim, action_dim, device="cpu", lr=3e-4):
            self.device = device
            actor = corl.Actor(obs_dim, action_dim, 1.0)
            critics = [corl.Critic(obs_dim, action_dim) for _ in range(2)]
            opts = [torch.optim.Adam(net.parameters(), lr) for net in (actor, *critics)]
            self.actor = actor
            self.td3_bc = corl.TD3_BC(
                1.0, actor, opts[0], critics[0], opts[1], critics[1], opts[2], device=device
            )

        def train_step(self, b):
            done = (b.discount == 0).float()
            return self.td3_bc.train(
                [b.obs, b.action, b.reward[:, None], b.next_obs, done[:, None]]
            )

        def act(self, obs):
            return self.actor(obs)

    return Corl


def test_corls_td3_bc_trains_as_it_is_and_as_our_functional_one(corl, data):
    cls = corl_class(corl)
    alone, two = trained(cls, data, [5], n=10), trained(cls, data, [3, 5], n=10)
    assert same(weights(alone, 0), weights(two, 1)) and not diverged(two.state).any()

    ours = TD3BC(policy_noise=0.0)
    state = ours.init(rng.key(0), SPEC)
    theirs = cls(SPEC.obs_dim, SPEC.action_dim)
    algorithm = theirs.td3_bc
    algorithm.policy_noise = 0.0
    critics = [
        (algorithm.critic_1, algorithm.critic_1_target),
        (algorithm.critic_2, algorithm.critic_2_target),
    ]
    put(state.actor, theirs.actor, algorithm.actor_target)
    for i, nets_ in enumerate(critics):
        put(member(state.critic, i), *nets_)
    before = theirs.act(fake_batch(SPEC).obs)
    for t in range(10):
        batch = fake_batch(SPEC, minibatches=2, seed=t)
        state, metrics = ours.update(state, batch, rng.key(t))
        for i in (0, 1):
            found = theirs.train_step(minibatch(batch, i))
    assert found["actor_loss"] == pytest.approx(float(metrics["actor_loss"]), abs=1e-4)
    obs = fake_batch(SPEC).obs
    assert torch.allclose(theirs.act(obs), ours.act(state, obs, rng.key(0)), atol=1e-4)
    assert (theirs.act(obs) - before).abs().max() > 1e-3


# --- a network ------------------------------------------------------------------------------


class Body(nn.Module):
    def __init__(self, n_in, n_out, middle=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_in, 8), middle or nn.Tanh(), nn.Linear(8, n_out))
        self.register_buffer("scale", torch.full((n_out,), 0.5))
        self.frozen = nn.Parameter(torch.ones(n_out), requires_grad=False)

    def forward(self, x):
        return self.scale * self.frozen * self.layers(x)


@dataclass(frozen=True, kw_only=True)
class ModuleBC:
    """A functional method whose network is a module."""

    lr: float = 1e-2
    make: ClassVar = staticmethod(Body)

    def net(self, n_in, n_out):
        return nets.from_module(lambda: self.make(n_in, n_out))

    def init(self, key, spec):
        params = self.net(spec.obs_dim, spec.action_dim).init(key)
        return params, Adam(self.lr).init(params)

    def update(self, state, batch, key):
        apply = self.net(batch.obs.shape[1], batch.action.shape[1]).apply
        loss = lambda params: (apply(params, batch.obs) - batch.action).square().mean()
        grads, value = grad_and_value(loss)(state[0])
        return Adam(self.lr).step(grads, state[1], state[0]), {"loss": value}

    def act(self, state, obs, key):
        return self.net(obs.shape[1], state[0]["frozen"].shape[0]).apply(state[0], obs).tanh()


def test_a_module_keeps_the_contract_of_a_method_and_is_stacked_over_seeds(data, monkeypatch):
    # which compiles Python, where a module cannot be made; the engine compiles the traced program
    monkeypatch.setattr(
        testing, "CHECKS", [c for c in testing.CHECKS if c is not testing.check_compiles]
    )
    testing.check_method(ModuleBC(), report=None)
    pipeline = make_pipeline(data, batch_size=8)
    run = lambda seeds: [*train(ModuleBC(), pipeline, SPEC, seeds=seeds, n_updates=30)][-1].state
    one, three = run([5]), run([4, 5, 6])
    for name in one[0]:
        assert torch.allclose(one[0][name][0], three[0][name][1], atol=1e-5), name
    assert (three[0]["frozen"] == 1).all() and "scale" not in three[0]
    assert not torch.equal(three[0]["layers.0.weight"][0], three[0]["layers.0.weight"][1])


def test_a_modules_parameters_are_a_function_of_the_key_and_the_generator_is_put_back():
    net, before = nets.from_module(lambda: Body(3, 2)), torch.get_rng_state()
    a, b, c = (net.init(rng.key(s)) for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["layers.0.weight"], c["layers.0.weight"])
    assert torch.equal(before, torch.get_rng_state())
    module = Body(3, 2)
    module.load_state_dict({**a, "scale": module.scale})
    x = torch.randn(5, 3)
    assert torch.equal(net.apply(a, x), module(x))


class Draws(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Counts(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.how == "in place":
            self.seen += 1
        elif self.how == "of the data":
            self.seen += x.mean()
        else:
            self.seen = self.seen + 1
        return x


class RandomBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("features", torch.randn(3))


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (lambda: nn.BatchNorm1d(8), r"Body: layers.1 \(BatchNorm1d\) keeps running statistics"),
        (lambda: nn.Dropout(0.1), r"Body: layers.1 \(Dropout\) draws random numbers"),
        (lambda: nn.AlphaDropout(0.1), r"Body: layers.1 \(AlphaDropout\) draws random numbers"),
        (RandomBuffer, "Body: buffer 'layers.1.features' is drawn at random"),
        (Draws, "Body.forward draws random numbers"),
        (lambda: Counts("in place"), "Body.forward changes buffer 'layers.1.seen'"),
        (lambda: Counts("anew"), "Body.forward changes buffer 'layers.1.seen'"),
        (lambda: Counts("of the data"), "Body.forward changes buffer 'layers.1.seen'"),
    ],
)
def test_what_remembers_or_draws_in_a_module_is_refused_by_name(middle, message, data):
    class Method(ModuleBC):
        make = staticmethod(lambda n_in, n_out: Body(n_in, n_out, middle()))

    with pytest.raises(UserError, match=message):
        list(train(Method(), make_pipeline(data, batch_size=8), SPEC, seeds=[0, 1], n_updates=1))


def test_parts_in_eval_mode_are_constant_and_taken():
    net = nets.from_module(lambda: Body(3, 2, nn.BatchNorm1d(8)).eval())
    assert net.apply(net.init(rng.key(0)), torch.randn(5, 3)).shape == (5, 2)
    nets.from_module(lambda: Body(3, 2, nn.Dropout(0.5)).eval())


# --- a policy from elsewhere ----------------------------------------------------------------


def still(size):
    return lambda obs: np.zeros((len(obs), size))


def elsewhere(act, tmp_path, **options):
    options = {"entry": "mine", "version": "1", "episodes": 2} | options
    return evaluate_policy(act, HOPPER, results=str(tmp_path), **options)


def test_a_policy_from_elsewhere_plays_the_same_episodes_and_is_on_the_board(tmp_path, capsys):
    rows = elsewhere({0: still(3), 1: lambda obs: torch.full((len(obs), 3), 0.1)}, tmp_path)
    assert rows["env_seed"].tolist() == env_seeds(HOPPER, "test", 2) * 2
    assert (
        main(["run", "method=bc", "method.hidden=[16]", *RUN, "seeds=[0,1]", f"results={tmp_path}"])
        == 0
    )
    board = capsys.readouterr().out
    assert "mine" in board and "trained outside offbench" in board.replace("\n", " ")
    record = Store(tmp_path).read(Store(tmp_path).runs(entry="mine")["run_id"][0])
    assert record.provenance.tuning == {
        "how": "outside",
        "tried": None,
        "source": "trained outside offbench",
    }
    other = Store(tmp_path).read(Store(tmp_path).runs(method="bc")["run_id"][0])
    assert record.spec.protocol == other.spec.protocol and record.spec.env == other.spec.env


def test_its_scores_are_those_of_the_same_weights_evaluated_as_a_method(tmp_path):
    task = load_task(HOPPER)
    data, spec = load_data(task, defects="ignore")
    method, pipeline = BC(hidden=(8,)), make_pipeline(data)
    state = method.init(rng.key(0), spec)
    want = evaluate(
        make_policy(method, pipeline), stack([state]), task, seeds=[0], episodes=3, n_envs=2
    )
    act = lambda obs: method.act(state, torch.from_numpy(obs), rng.key(0)).numpy()
    got = elsewhere(act, tmp_path, episodes=3)
    assert got["return"].tolist() == pytest.approx(want["return"].tolist(), rel=1e-6)


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ({}, {}, r"mine version 1 is recorded on .* seed 0 \(run \w{16}\)"),
        ({}, {"version": "2"}, "mine is on record on .* as another policy"),
        ({}, {"episodes": 3}, "under another protocol"),
    ],
)
def test_two_policies_are_never_one_run(first, then, message, tmp_path):
    elsewhere(still(3), tmp_path, **first)
    with pytest.raises(UserError, match=message):
        elsewhere(still(3), tmp_path, **then)
    assert len(Store(tmp_path).runs()) == 1
    elsewhere(still(3), tmp_path, entry="other", **then)
    assert len(Store(tmp_path).runs()) == 2


same_policy = still(3)


@pytest.mark.parametrize(
    ("act", "options", "message"),
    [
        ({0: same_policy, 1: same_policy}, {}, r"seeds \[0, 1\] have 1 policies"),
        ({}, {}, r"seeds \[\] have 0 policies"),
        (still(2), {}, r"mine: act returned \(\d, 2\) for obs \(\d, 11\): return \(\d, 3\)"),
        (lambda obs: np.full((len(obs), 3), np.nan), {}, "actions that are not finite"),
        (still(3), {"actions": "raw"}, "actions='raw' must be 'env' or 'unit'"),
        (still(3), {"episodes": 0}, "episodes=0 must be at least 1"),
        (still(3), {"suite": "quik"}, "did you mean 'quick'"),
        ("policy.pt", {}, "act: str is not callable"),
    ],
)
def test_a_policy_that_cannot_be_taken_is_one_line_and_nothing_is_recorded(
    act, options, message, tmp_path
):
    with pytest.raises(UserError, match=message) as found:
        elsewhere(act, tmp_path, **options)
    assert "\n" not in str(found.value) and not Store(tmp_path).runs().size


class Wide(gymnasium.Env):
    """Actions in [0, 4]; the reward is the action; five steps."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,))
    action_space = gymnasium.spaces.Box(0, 4, (1,))

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), float(action[0]), False, self.t == 5, {}


@pytest.mark.parametrize(
    ("actions", "action", "want"), [("env", 3.0, 15.0), ("unit", 0.5, 15.0), ("env", 9.0, 20.0)]
)
def test_actions_are_in_the_environments_units_or_in_those_of_the_data(
    actions, action, want, tmp_path
):
    if "Wide-v0" not in gymnasium.registry:
        gymnasium.register("Wide-v0", Wide)
    task = replace(load_task(HOPPER), id="wide", env="Wide-v0", env_kwargs={}, adapter=None)
    rows = evaluate_policy(
        lambda obs: np.full((len(obs), 1), action),
        task,
        entry="mine",
        version="1",
        episodes=1,
        suite="other",
        results=str(tmp_path),
        actions=actions,
    )
    assert rows["return"].tolist() == pytest.approx([want])


def test_a_policy_with_a_memory_is_told_where_episodes_begin(tmp_path):
    class Remembers:
        begun = 0

        def reset(self, first):
            assert first.any() and first.dtype == bool
            self.begun += first.sum()

        def __call__(self, obs):
            assert obs.dtype == np.float32 and self.begun
            return np.zeros((len(obs), 3))

    act = Remembers()
    elsewhere(act, tmp_path, episodes=7)
    assert act.begun == 7


# --- the page -------------------------------------------------------------------------------


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/own-code.md").read_text()
    blocks = re.findall(r"```(python|bash)\n(.*?)```", page, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "bash", "python", "python", "python"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("myalgo.py").write_text(blocks[0][1])
    names: dict = {"__name__": "page"}
    for kind, text in blocks:
        if kind == "bash":
            command, *args = shlex.split(text)
            assert command == "offbench" and main([*args, "jobs=1"]) == 0
        else:
            exec(compile(text, "own-code.md", "exec"), names)
    runs = Store("results").runs()
    assert runs["entry"].tolist().count("MyAlgo(width=32)") == 2
    assert runs["entry"].tolist().count("constant") == 3
    assert names["point"].metrics["loss"].shape == (3,) and len(names["rows"]) == 6
    sys.modules.pop("myalgo")
