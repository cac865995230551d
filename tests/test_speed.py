"""The speed table compares equals: both contenders compute the same losses, and the numbers add up.

That the plain loops take the same steps as the methods, update after update, is test_methods.py.
"""

import numpy as np
import pytest
import torch
from test_methods import plain_update, start

from offbench import rng, speed
from offbench.errors import UserError
from offbench.speed import CONTENDERS, SPEC, main, measure, to_text
from offbench.testing import fake_batch

TINY = {"hidden": ((8,),), "batch_size": 8, "seconds": 0.05}


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(speed, "N_EPISODES", 2)


@pytest.fixture(scope="module")
def frame():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "N_EPISODES", 2)
        return measure(seeds=(1, 3), **TINY)


@pytest.mark.parametrize("name", CONTENDERS)
def test_both_contenders_compute_the_same_losses_on_the_same_batch(name):
    method = CONTENDERS[name][0](hidden=(64, 64))
    k = getattr(method, "minibatches", 1)
    state, plain = start(method, SPEC)
    batch = fake_batch(SPEC, size=256, minibatches=k, dtype=torch.float64)
    _, ours = method.update(state, batch, rng.key(3))
    theirs = plain_update(method, plain, batch, rng.key(3))
    assert ours.keys() == theirs.keys()
    assert all(abs(ours[name].item() - theirs[name]) < 1e-12 for name in ours)


def test_the_plain_loop_is_the_usual_one():
    for method, plain in CONTENDERS.values():
        learner = plain(method(hidden=(8,)), SPEC, torch.device("cpu"))
        optimisers = [x for x in vars(learner).values() if isinstance(x, torch.optim.Optimizer)]
        assert optimisers and all(
            type(o) is torch.optim.Adam and o.defaults["fused"] for o in optimisers
        )
        assert all(
            isinstance(x, float) for x in learner.update(fake_batch(SPEC)).values()
        )  # .item() every step


def test_there_is_a_row_for_every_method_backend_and_number_of_seeds(frame):
    rows = set(zip(frame.method, frame.backend, frame.seeds, strict=True))
    want = {(m, b, n) for m in CONTENDERS for b, n in [("plain", 1), ("eager", 1), ("eager", 3)]}
    assert rows == want and set(frame.hidden) == {"8"}


def test_ratios_are_to_the_plain_loop_of_the_same_method(frame):
    assert (frame.updates_per_s > 0).all() and (frame.setup_s > 0).all()
    assert np.allclose(frame.seed_updates_per_s, frame.updates_per_s * frame.seeds)
    for method, rows in frame.groupby("method"):
        (plain,) = rows[rows.backend == "plain"].seed_updates_per_s
        assert np.allclose(rows.ratio, rows.seed_updates_per_s / plain), method


def test_updates_are_minibatches(monkeypatch):
    """Where a step takes a tenth of a second, TD3+BC makes 20 updates a second, at two a step."""
    monkeypatch.setattr(speed._Contender, "_time", lambda self: self.n / 10)
    monkeypatch.setattr(speed, "_plain", lambda *a: lambda n: None)
    frame = measure(["iql", "td3_bc"], backends=("plain",), hidden=((8,),), seconds=50.0)
    assert frame.set_index("method").updates_per_s.to_dict() == pytest.approx(
        {"iql": 10, "td3_bc": 20}
    )


def test_contenders_take_turns(monkeypatch):
    turns = []
    take = speed._Contender.take_turn
    monkeypatch.setattr(
        speed._Contender, "take_turn", lambda self: (turns.append(self.row["seeds"]), take(self))[1]
    )
    measure(["bc"], backends=("eager",), seeds=(1, 2), **TINY)
    assert turns == [1, 2] * speed.ROUNDS


def test_without_a_plain_loop_there_is_no_ratio():
    frame = measure(["bc"], backends=("eager",), seeds=(1,), **TINY)
    assert frame.ratio.isna().all() and "x" not in to_text(frame).splitlines()[1]


def test_the_text_shows_every_row_and_says_what_plain_is(frame):
    text = to_text(frame)
    assert len(text.split("\n\n")[0].splitlines()) == 1 + len(frame)
    assert "Adam(fused=True)" in text and "1 thread," in text and "batch 8" in text


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"methods": ["iqll"]}, "did you mean 'iql'"),
        ({"backends": ("plian",)}, "plain"),
        ({"backends": ("plain", "eagre")}, "did you mean 'eager'"),
        ({"seeds": (0,)}, "positive"),
        ({"seconds": 0}, "positive"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(arguments, words, monkeypatch):
    monkeypatch.setattr(speed, "_data", lambda device: pytest.fail("measured"))
    with pytest.raises(UserError, match=words):
        measure(**(TINY | arguments))


def test_the_command_reads_its_settings(capsys, monkeypatch):
    seen = {}
    monkeypatch.setattr(speed, "measure", lambda **options: seen.update(options))
    monkeypatch.setattr(speed, "to_text", lambda frame: "the table")
    assert main(["methods=iql", "hidden=[64,32]", "seeds=[1,2]", "seconds=2"]) == 0
    assert seen == {"methods": ["iql"], "hidden": [[64, 32]], "seeds": [1, 2], "seconds": 2}
    assert capsys.readouterr().out == "the table\n"
    with pytest.raises(UserError, match="did you mean 'seconds'"):
        main(["second=2"])
