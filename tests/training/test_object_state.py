"""The state of a user's object is stored without pickles and put back bit for bit, or it is refused by name."""

import collections
import copy
import json
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from offbench.data.pipeline import make_pipeline
from offbench.testing.contract import SPEC
from offbench.training import checkpoint
from offbench.training.imperative import Imperative
from offbench.training.loop import train
from offbench.training.object_state import NotPlain, State, read, write


class Schedule:
    """An object of a class of its own, with attributes."""

    def __init__(self):
        self.at, self.seen = 0, collections.deque(maxlen=3)


class Body(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.first = spectral_norm(nn.Linear(n_in, 8))
        self.norm, self.memory = nn.BatchNorm1d(8), nn.LSTM(8, 8)
        self.last, self.activation, self.calls = nn.Linear(8, n_out), F.relu, 0
        self.register_buffer("mask", torch.ones(n_out), persistent=False)

    def forward(self, x):
        self.calls += 1
        x = self.norm(self.activation(self.first(x)))
        return self.last(self.memory(x[None])[0][0]) * self.mask


class Everything:
    """What PyTorch classes hold, all at once; each part changes what is learned next."""

    def __init__(self, obs_dim, action_dim, device="cpu"):
        self.device, self.dtype = torch.device(device), torch.float32
        self.net = Body(obs_dim, action_dim)
        self.target = copy.deepcopy(self.net)
        self.log_alpha = torch.zeros(1, requires_grad=True)
        self.groups = [self.net.parameters(), [self.log_alpha]]
        self.opts = {
            "adam": torch.optim.AdamW(self.net.parameters(), 1e-2, betas=(0.9, 0.99)),
            "sgd": torch.optim.SGD([self.log_alpha], 1e-2, momentum=0.9),
        }
        del self.groups
        self.schedules = [
            torch.optim.lr_scheduler.OneCycleLR(self.opts["adam"], 0.1, total_steps=100),
            torch.optim.lr_scheduler.ReduceLROnPlateau(self.opts["sgd"], patience=1),
        ]
        self.generators = (torch.Generator().manual_seed(int(torch.randint(99, ()))),)
        self.numpy, self.old = np.random.default_rng(3), np.random.RandomState(4)
        self.python = random.Random(5)
        self.moments = {"mean": np.zeros(obs_dim), ("a", 1): np.float32(0.5), 3: [nn.ReLU]}
        self.counts = collections.Counter(steps=0)
        self.order = collections.OrderedDict(loss=[float("nan"), float("inf"), -0.0])
        self.schedule, self.best, self.note = Schedule(), None, "none yet"

    def train_step(self, batch):
        noise = torch.randn(1, generator=self.generators[0]) + torch.randn(1)
        noise = noise + self.numpy.normal() + self.old.rand() + self.python.random()
        loss = (self.net(batch.obs) - batch.action + 0.1 * noise).square().mean()
        loss = loss * self.log_alpha.exp().sum() + 0.01 * float(self.moments["mean"].sum())
        loss.backward()
        # gradients are added up over two steps
        if self.counts["steps"] % 2 == 0:
            for opt in self.opts.values():
                opt.step()
                opt.zero_grad()
        self.schedules[0].step()
        self.schedules[1].step(loss.item())
        self.counts["steps"] += 1
        self.moments["mean"] += batch.obs.numpy().mean(0)
        self.moments[("a", 1)] *= np.float32(1.01)
        self.order["loss"].append(loss.item())
        self.schedule.seen.append(loss.item())
        # another name for what is there already, and an attribute that is new
        self.best, self.latest = self.net.last.weight, {"obs": batch.obs.clone()}
        with torch.no_grad():
            self.net.mask.mul_(0.99)
            for p, t in zip(self.net.parameters(), self.target.parameters()):
                t.lerp_(p, 0.1)
        return {"loss": loss}

    def act(self, obs):
        return self.net(obs).tanh()


def test_whatever_a_class_holds_goes_on_bit_for_bit(data, tmp_path):
    method, pipeline = Imperative(Everything), make_pipeline(data, batch_size=8)
    points = train(method, pipeline, SPEC, seeds=[0, 5], n_updates=30, stop_at=[16])
    first = next(points)
    assert first.backend.notes == ()
    path = tmp_path / "c.safetensors"
    checkpoint.save(first.carry, path)
    carry, _ = checkpoint.load(path, method.like([0, 5], SPEC))
    (resumed,) = train(method, pipeline, SPEC, seeds=[0, 5], n_updates=30, resume=carry)
    (*_, whole) = points
    for a, b in zip(whole.state.members, resumed.state.members, strict=True):
        assert a.read().equals(b.read())
        assert b.algorithm.best is b.algorithm.net.last.weight
    one, two = whole.state.members
    assert not one.read().equals(two.read())


class Holds:
    def __init__(self, thing=None):
        self.thing = thing


class OwnList(list):
    pass


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (lambda x: x, r"thing is a .*<lambda>"),
        (threading.Lock(), "thing is a _thread.lock"),
        ({1, 2}, "thing is a builtins.set"),
        (OwnList([1]), "thing is a test_object_state.OwnList"),
        (Holds().__init__, "thing is a Holds.__init__"),
        ([0, {"a": (1, iter([]))}], r"thing\[1\]\['a'\]\[1\] is a builtins.list_iterator"),
        (np.array(["text"]), r"thing is an array of <U4"),
        (np.array([Schedule()]), "thing is an array of object"),
        (torch.zeros(2, 2).to_sparse(), "thing is a tensor of layout torch.sparse_coo"),
        (b"bytes", "thing is a builtins.bytes"),
    ],
)
def test_what_is_no_plain_data_is_refused_by_its_name(thing, words):
    with pytest.raises(NotPlain, match=words):
        read(Holds(thing))


def test_an_object_that_the_constructor_does_not_make_is_refused_when_it_is_saved_and_loaded():
    made = read(Holds()).classes
    late = Holds(Schedule())
    with pytest.raises(NotPlain, match=r"thing (is|was) a test_object_state\.Schedule, which the"):
        read(late, made)
    with pytest.raises(NotPlain, match=r"thing (is|was) a test_object_state\.Schedule, which the"):
        write(Holds(), read(late), "cpu")


class Forgets(Holds):
    """What is set is not what is read."""

    @property
    def kept(self):
        return 1

    def __setattr__(self, name, value):
        super().__setattr__(name, value)

    def state_dict(self):
        return {"thing": self.thing}

    def load_state_dict(self, state):
        self.thing = [*state["thing"], 0]


def test_a_state_that_is_another_after_it_is_put_back_is_refused():
    with pytest.raises(NotPlain, match="not the same when it is put back"):
        write(Holds(Forgets([])), read(Holds(Forgets([1]))), "cpu")


@pytest.mark.parametrize(
    "tree",
    [
        {"object": [[{"is": "thing"}, {"tensor": 9, "class": "torch.Tensor"}]], "class": "?"},
        {"object": [[{"is": "thing"}, {"same": "nowhere"}]], "class": "test_object_state.Holds"},
        {"object": [[{"is": "thing"}, {"array": 0, "dtype": "O", "shape": [1], "scalar": False}]]},
        {"object": [[{"is": "thing"}, {"constant": "os.system"}]]},
        {"stateful": {"is": 1}, "params": [], "class": "test_object_state.Holds"},
        {},
        json.loads("[" * 900 + "]" * 900),
    ],
)
def test_a_file_that_says_anything_is_refused_in_one_line(tree):
    if isinstance(tree, dict):
        tree = {"class": "test_object_state.Holds", **tree}
    state = State(tree, [torch.zeros(8, dtype=torch.uint8)])
    with pytest.raises(NotPlain) as found:
        write(Holds(), state, "cpu")
    assert "\n" not in str(found.value)
