"""PyTorch code that is brought along: a network, a class as it was written, a policy from elsewhere."""

import random

import numpy as np
import pytest
import torch
from modules import member
from own_td3_bc import OwnTD3BC
from torch import nn

from offbench import checkpoint, rng
from offbench.cli import main
from offbench.engine import make_step
from offbench.errors import UserError
from offbench.imperative import Imperative
from offbench.methods.td3_bc import TD3BC
from offbench.pipeline import make_pipeline
from offbench.records import Store
from offbench.testing import SPEC, fake_batch
from offbench.training import diverged, train
from offbench.types import minibatch

HOPPER = "offbench/hopper/medium-replay-v0"
RUN = [f"task={HOPPER}", "n_updates=40", "eval.episodes=2", "jobs=1", "device=cpu"]


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
    return [p for name in ("net", "actor", "critic") if hasattr(algorithm, name)
            for p in getattr(algorithm, name).parameters()]  # fmt: skip


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
    carry = checkpoint.load(tmp_path / "c.safetensors", method.like([0, 5]))
    (resumed,) = train(method, pipeline, SPEC, seeds=[0, 5], n_updates=40, resume=carry)
    (*_, whole) = points
    assert same(weights(whole, 0), weights(resumed, 0)) and same(weights(whole, 1), weights(resumed, 1))
    assert whole.metrics.keys() == resumed.metrics.keys()
    with pytest.raises(UserError, match="of another run"):
        checkpoint.load(tmp_path / "c.safetensors", method.like([0]))


class Unpicklable(Noisy):
    def __init__(self, obs_dim, action_dim):
        super().__init__(obs_dim, action_dim)
        self.activation = lambda x: x


def test_objects_that_cannot_be_pickled_train_and_the_row_says_so(data):
    point = trained(Unpicklable, data, [0], n=4)
    assert point.backend.startswith("imperative, one seed at a time (no checkpoints: ")
    assert trained(Noisy, data, [0], n=4).backend == "imperative, one seed at a time"


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
        ({"__init__": lambda self, obs_dim, action_dim: 1 / 0}, r"__init__ raised ZeroDivisionError: .*test_own_code.py:"),
        ({"train_step": lambda self, batch: None}, "train_step returned NoneType: return a dict"),
        ({"train_step": lambda self, batch: {"loss": batch.reward}}, r"'loss' is a Tensor \(\d+,\): return a number"),
        ({"train_step": lambda self, batch: batch.nothing}, "train_step raised AttributeError"),
        ({"act": lambda self, obs: torch.zeros(3)}, r"act returned \(3,\) for obs \(2, \d+\): return \(2, \d+\)"),
        ({"act": lambda self, obs: np.full((len(obs), SPEC.action_dim), np.nan)}, "actions that are not finite"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_class_is_one_line(body, message):
    with pytest.raises(UserError, match=message) as found:
        Imperative(written(**body)).check(SPEC, fake_batch(SPEC))
    assert "\n" not in str(found.value)


def test_settings_that_mean_another_engine_are_refused(data):
    with pytest.raises(UserError, match="Noisy is run as it is written"):
        trained(Noisy, data, [0], backend="compile")


# --- on the command line --------------------------------------------------------------------


def run(tmp_path, *args, target="own_td3_bc.OwnTD3BC") -> int:
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


def test_seeds_do_not_depend_on_the_stack_the_monitor_or_an_interruption(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    small = ["method.width=16", "checkpoint_minutes=0"]
    run(tmp_path / "a", *small, "seeds=[0,1]", "eval.monitor_at=[0.2,0.5]")
    run(tmp_path / "b", *small, "seeds=[1]")
    from offbench import evaluation

    real, calls = evaluation.evaluate, []

    def interrupted(*args, **kwargs):
        calls.append(kwargs["stream"])
        if calls == ["monitor", "monitor"]:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            from offbench.config import plan
            from offbench.run import pack, run_pack

            made = plan(
                ["method._target_=own_td3_bc.OwnTD3BC", *RUN, *small, "seeds=[0,1]",
                 "eval.monitor_at=[0.2,0.5]", f"results={tmp_path / 'c'}"], bench=False,
            )  # fmt: skip
            run_pack(pack(made.cells)[0], Store(tmp_path / "c"), made.settings)
    assert list((tmp_path / "c").glob("checkpoints/*.safetensors"))
    run(tmp_path / "c", *small, "seeds=[0,1]", "eval.monitor_at=[0.2,0.5]")
    assert not list((tmp_path / "c").glob("checkpoints/*"))
    returns = [
        Store(tmp_path / x).episodes(stream="test", seed=1)["return"].tolist() for x in "abc"
    ]
    assert returns[0] == returns[1] == returns[2] and len(returns[0]) == 2


MODULE = '''
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
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to stand in, with a module in it that no path names."""
    (tmp_path / "mine_here.py").write_text(MODULE % "self.scale.data.fill_(torch.nan) and 0.0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    yield tmp_path
    __import__("sys").modules.pop("mine_here", None)


def test_a_divergence_is_a_record_and_a_module_in_the_folder_is_found(folder, capsys):
    assert run(folder / "r", "seeds=[0]", target="mine_here.Mine") == 1
    assert Store(folder / "r").runs()["status"].tolist() == ["diverged"]
    assert "not finite after 40 updates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "target", "message"),
    [
        (["method.gian=2"], "Mine", "did you mean 'method.gain'"),
        ([], "OnlyActs", "OnlyActs has no train_step: a PyTorch class needs"),
        (["weight=dw"], "Mine", "use weight=none"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(args, target, message, folder, capsys):
    assert run(folder / "r", *args, target=f"mine_here.{target}") == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not (folder / "r").exists()


def test_plan_and_check_take_a_class(folder, capsys):
    target = "method._target_=own_td3_bc.OwnTD3BC"
    assert main(["plan", target, *RUN, f"results={folder}"]) == 0
    assert main(["check", target, *RUN]) == 0
    assert "trained as it is written" in capsys.readouterr().out


# --- one of our own against the functional one, and CORL's ----------------------------------


def test_td3_bc_in_plain_pytorch_agrees_with_the_functional_one():
    ours = TD3BC(hidden=(16, 16), policy_noise=0.0)
    state = ours.init(rng.key(0), SPEC)
    plain = OwnTD3BC(SPEC.obs_dim, SPEC.action_dim, width=16, policy_noise=0.0)
    pairs = [(state.actor, plain.actor), (state.actor, plain.actor_target)]
    for i, names in enumerate(("q1", "q2")):
        pairs += [(member(state.critic, i), getattr(t, names)) for t in (plain.critic, plain.critic_target)]
    for layers, module in pairs:
        for p, layer in zip([m for m in module if isinstance(m, nn.Linear)], layers, strict=True):
            p.weight.data, p.bias.data = layer["w"].T.clone(), layer["b"].flatten().clone()
    for t in range(20):
        batch = fake_batch(SPEC, minibatches=2, seed=t)
        state, metrics = ours.update(state, batch, rng.key(t))
        for i in (0, 1):
            found = plain.train_step(minibatch(batch, i))
    assert found["actor_loss"] == pytest.approx(float(metrics["actor_loss"]), abs=1e-4)
    obs = fake_batch(SPEC).obs
    assert torch.allclose(plain.act(obs), ours.act(state, obs, rng.key(0)), atol=1e-4)
    moved = plain.act(obs) - OwnTD3BC(SPEC.obs_dim, SPEC.action_dim, width=16).act(obs)
    assert moved.abs().max() > 1e-2
