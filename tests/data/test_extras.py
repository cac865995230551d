"""What methods ask of the data beside a transition, against loops over episodes."""

import pytest
import torch

from offbench import rng
from offbench.data.batch_extras import discounted_to_go, support
from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk, NStep
from offbench.errors import UserError
from offbench.testing.contract import SPEC, fake_batch, fake_data

VIEWS = [NStep(1, 0.9), NStep(3, 0.9), Chunk(2, 0.9), Chunk(4, 0.9)]


def rows_of(pipeline) -> torch.Tensor:
    """The rows that its sampler may draw."""
    return support(pipeline.data, pipeline.view, pipeline.extras).nonzero().squeeze(1)


@pytest.fixture
def data():
    """Terminals at ends of episodes, and some inside, as OGBench has them."""
    data = fake_data(dtype=torch.float64)
    inside = (torch.arange(len(data.last)) % 11 == 5) & data.valid
    return data._replace(terminal=data.terminal | inside)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_the_next_action_starts_where_the_span_ended(data, view):
    pipeline = make_pipeline(data, view=view, needs=["next_action"])
    starts, h = view.support(data), getattr(view, "h", 1)
    n = getattr(view, "n", h)
    kept = set(rows_of(pipeline).tolist())
    for row in range(len(data.last)):
        end, stopped = row, False
        while end < data.last[row] and end - row < n and not stopped:
            stopped = bool(data.terminal[end])
            end += 1
        possible = bool(starts[row]) and (stopped or bool(starts[end]))
        assert (row in kept) == possible
        if possible:
            batch = pipeline.batch(torch.tensor([row]))
            want = torch.zeros(h, 2) if stopped else data.action[end : end + h]
            assert torch.equal(batch.extras["next_action"][0], want.flatten().double())
            assert (batch.discount[0] == 0) == stopped


def test_the_return_to_go_is_the_discounted_sum_to_the_end_or_a_terminal(data):
    got = discounted_to_go(data, 0.9)
    for row in range(len(data.last)):
        want, power, here = 0.0, 1.0, row
        while here < data.last[row]:
            want += power * data.reward[here].item()
            power *= 0.9
            if data.terminal[here]:
                break
            here += 1
        assert got[row].item() == pytest.approx(want, abs=1e-12)
    batch = make_pipeline(data, view=NStep(1, 0.9), needs=["return_to_go"]).batch(
        torch.tensor([7, 3])
    )
    assert torch.equal(batch.extras["return_to_go"], got[[7, 3]])


def test_extras_see_transformed_rewards(data):
    options = {"reward_affine": {"scale": 2.0}}
    pipeline = make_pipeline(data, transforms=options, needs=["return_to_go"])
    assert torch.allclose(pipeline.extras[0].column, 2 * discounted_to_go(data, 0.99))


@pytest.fixture
def sparse(data):
    """Rewards of 5 for success and -5 without it; some episodes succeed and lose it again, some never do."""
    reward = torch.where(data.reward > 1.5, 5.0, -5.0).double()
    return data._replace(reward=torch.where(data.valid, reward, 0.0))


def test_an_episode_that_never_succeeds_is_worth_its_failure_for_ever(sparse):
    pipeline = make_pipeline(sparse, view=NStep(1, 0.9), needs=["sparse_return_to_go"])
    rows = sparse.valid.nonzero().squeeze(1)
    got = pipeline.batch(rows).extras["sparse_return_to_go"]
    plain, failed, won = discounted_to_go(sparse, 0.9), 0, 0
    for value, row in zip(got.tolist(), rows.tolist(), strict=True):
        steps = [i for i in rows.tolist() if sparse.episode[i] == sparse.episode[row]]
        if all(sparse.reward[i] == -5 for i in steps):
            failed += 1
            assert value == pytest.approx(-50, abs=1e-12)
        else:
            won += 1
            assert value == plain[row].item()
    assert failed > 50 and won > 50


def test_failure_for_ever_is_that_of_the_transformed_rewards(sparse):
    options = {"reward_affine": {"scale": 2.0, "shift": 1.0}}
    pipeline = make_pipeline(sparse, transforms=options, needs=["sparse_return_to_go"])
    assert pipeline.extras[0].column[sparse.valid].min().item() == pytest.approx(-900)


def test_failure_for_ever_needs_a_discount(sparse):
    with pytest.raises(UserError, match=r"gamma=1\.0"):
        make_pipeline(sparse, view=NStep(1, 1.0), needs=["sparse_return_to_go"])


def test_two_minibatches_split_extras_too():
    batch = fake_batch(minibatches=2, needs=["next_action", "return_to_go"])
    assert batch.extras["next_action"].shape == (2, 16, SPEC.action_dim)
    assert batch.extras["return_to_go"].shape == (2, 16)


def test_a_pipeline_with_extras_moves_as_one(data):
    pipeline = make_pipeline(data, needs=["return_to_go"]).to("meta")
    assert pipeline.extras[0].column.device.type == "meta"


def test_an_unknown_extra_names_the_nearest(data):
    with pytest.raises(UserError, match="next_action"):
        make_pipeline(data, needs=["next_actions"])


def test_draws_without_extras_are_as_before(data):
    plain, more = make_pipeline(data), make_pipeline(data, needs=["return_to_go"])
    assert torch.equal(plain.sample(rng.key(0)).obs, more.sample(rng.key(0)).obs)


# --- the prefixes of a chunk


def prefixes_of(data, row: int, h: int, gamma: float, after_terminal: bool) -> list:
    """(reward, discount, end, valid) of the first 1, 2, ..., h steps from a row, step by step."""
    made, reward, discount, here, ended = [], 0.0, 1.0, row, False
    for j in range(h):
        valid = row + j < int(data.last[row])
        if valid and (after_terminal or not ended):
            reward += gamma**j * data.reward[row + j].item()
        if valid and not ended:
            here, discount = here + 1, discount * gamma
            if data.terminal[row + j]:
                ended, discount = True, 0.0
        made.append((reward, discount, here, float(valid)))
    return made


@pytest.mark.parametrize("after_terminal", [False, True])
@pytest.mark.parametrize("h", [1, 2, 5])
def test_prefixes_equal_a_loop_at_every_row_of_every_episode(data, h, after_terminal):
    """Terminals inside episodes, at their ends, and chunks that the end of an episode cuts short."""
    view = Chunk(h, 0.9, pad=True, rewards_after_terminal=after_terminal)
    pipeline = make_pipeline(data, view=view, needs=["prefixes"])
    rows = rows_of(pipeline)
    assert torch.equal(rows, data.valid.nonzero().squeeze(1))
    batch = pipeline.batch(rows)
    for i, row in enumerate(rows.tolist()):
        reward, discount, end, valid = zip(*prefixes_of(data, row, h, 0.9, after_terminal))
        assert batch.extras["prefix_reward"][i].tolist() == pytest.approx(reward, abs=1e-12)
        assert batch.extras["prefix_discount"][i].tolist() == pytest.approx(discount, abs=1e-12)
        assert torch.equal(batch.extras["prefix_obs"][i], data.obs[list(end)])
        assert batch.extras["valid"][i].tolist() == list(valid)
        assert batch.reward[i].item() == pytest.approx(reward[-1], abs=1e-12)
        assert batch.discount[i].item() == pytest.approx(discount[-1], abs=1e-12)
        assert torch.equal(batch.next_obs[i], data.obs[end[-1]])
        padding = batch.action[i].unflatten(0, (h, 2))[torch.tensor(valid) == 0]
        assert (padding == 0).all()


def test_rewards_after_a_success_are_added_only_where_asked_for(data):
    """The two readings differ on this data, and only in the rewards."""
    stopped, plain = (
        make_pipeline(data, view=Chunk(4, 0.9, True, after), needs=["prefixes"])
        for after in (False, True)
    )
    rows = rows_of(stopped)
    a, b = stopped.batch(rows), plain.batch(rows)
    crossed = a.extras["prefix_reward"] != b.extras["prefix_reward"]
    assert crossed.any() and (a.extras["prefix_discount"][crossed] == 0).all()
    assert torch.equal(a.extras["prefix_obs"], b.extras["prefix_obs"])
    assert torch.equal(a.discount, b.discount) and not torch.equal(a.reward, b.reward)


def test_whole_chunks_are_all_valid_and_single_steps_are_chunks_of_one(data):
    whole = make_pipeline(data, view=Chunk(4, 0.9), needs=["prefixes"])
    rows = rows_of(whole)
    assert (whole.batch(rows).extras["valid"] == 1).all()
    assert len(rows) < int(data.valid.sum())
    single = make_pipeline(data, view=NStep(1, 0.9), needs=["prefixes", "valid"])
    batch = single.batch(rows_of(single))
    assert torch.equal(batch.extras["prefix_reward"][:, 0], batch.reward)
    assert torch.equal(batch.extras["prefix_discount"][:, 0], batch.discount)
    assert torch.equal(batch.extras["prefix_obs"][:, 0], batch.next_obs)
    assert (batch.extras["valid"] == 1).all()


def test_values_of_every_length_need_chunks(data):
    with pytest.raises(UserError, match="view=chunk"):
        make_pipeline(data, view=NStep(3, 0.9), needs=["prefixes"])
