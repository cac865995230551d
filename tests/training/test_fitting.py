"""Fits that are stopped, killed or out of disk: they end in the same bits, or say why they begin again."""

import pytest
import torch
from support.disks import files_of_at_most
from torch import Tensor

from offbench import rng
from offbench.data.sampling import make_sampler
from offbench.errors import Interrupted
from offbench.training.fitting import NEVER, Fit, Stops, begin, run
from offbench.training.step import Draw, Input, Step

N = 20


def fit(stops: Stops = NEVER) -> Tensor:
    """The slopes of two lines through noisy points, (2, 1, 1)."""
    x = rng.normal(rng.key(1), (50, 1))
    y = 3 * x + rng.normal(rng.key(2), (50, 1))
    sampler = make_sampler(torch.ones(50, dtype=torch.bool))

    def update(state: Fit, given: Input):
        loss = lambda w: torch.square(given.batch[0] @ w - given.batch[1]).mean()
        return state.descend(loss, 0.1, state.falling(N))[0], {}

    step = Step(
        lambda key: Draw(sampler(key, 8), key),
        lambda row: (x[row], y[row]),
        update,
    )
    starts = [Fit.start(torch.zeros(1, 1)), Fit.start(torch.ones(1, 1))]
    return run(step, begin(starts, rng.split(rng.key(3))), N, stops=stops).net


@pytest.fixture(scope="module")
def undisturbed():
    return fit()


def test_a_fit_that_is_stopped_again_and_again_ends_in_the_same_bits(undisturbed, tmp_path):
    asked: list[int] = []
    stops = Stops(
        lambda update: asked.append(update) or update % 6 == 0, tmp_path / "c.safetensors"
    )
    for _ in range(3):
        with pytest.raises(Interrupted):
            fit(stops)
    assert torch.equal(fit(stops), undisturbed)
    assert asked == [*range(1, N + 1)] and [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_without_a_checkpoint_it_begins_again(undisturbed):
    asked: list[int] = []
    with pytest.raises(Interrupted):
        fit(Stops(lambda update: asked.append(update) or update == 6))
    assert torch.equal(fit(Stops(lambda update: bool(asked.append(update)))), undisturbed)
    assert asked == [*range(1, 7), *range(1, N + 1)]


@pytest.mark.parametrize("minutes, again", [(1e-9, 5), (60.0, 1), (0.0, 1)])
def test_a_fit_that_is_killed_goes_on_from_its_last_checkpoint(
    minutes, again, undisturbed, tmp_path
):
    asked: list[int] = []

    def killed(update: int) -> bool:
        asked.append(update)
        if update == 5 and len(asked) == 5:
            raise KeyboardInterrupt
        return False

    stops = Stops(killed, tmp_path / "c.safetensors", minutes)
    with pytest.raises(KeyboardInterrupt):
        fit(stops)
    assert torch.equal(fit(stops), undisturbed) and asked[5:] == [*range(again, N + 1)]


def test_a_damaged_checkpoint_is_told_and_training_begins_again(undisturbed, tmp_path):
    path, said = tmp_path / "c.safetensors", []
    with pytest.raises(Interrupted):
        fit(Stops(lambda update: update == 6, path))
    path.write_bytes(path.read_bytes()[:-7] + b"garbage")
    asked: list[int] = []
    stops = Stops(lambda update: bool(asked.append(update)), path, say=said.append)
    assert torch.equal(fit(stops), undisturbed) and asked[0] == 1
    line = "checkpoint c.safetensors is damaged (cut off or changed: its checksum is another); training begins again"
    assert said == [line]


def test_a_fit_goes_on_where_no_checkpoint_can_be_written(undisturbed, tmp_path):
    said: list[str] = []
    with files_of_at_most(100):
        found = fit(Stops(path=tmp_path / "c.safetensors", minutes=1e-9, say=said.append))
    assert torch.equal(found, undisturbed) and not [*tmp_path.iterdir()]
    assert {*said} == {"a checkpoint could not be written: File too large"}
