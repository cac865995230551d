"""Sources of synthetic data: what is trained once, from which policy pools come, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from support.disks import files_of_at_most

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, from_episodes
from offbench.data.views import Chunk, NStep
from offbench.errors import Interrupted, UserError
from offbench.methods.td3_bc import TD3BC
from offbench.synthetic import diffusion, sources
from offbench.synthetic.sources import (
    PolicyGuidedDiffusion,
    WorldModel,
    imagine,
    policies,
    refresh,
    start_rows,
)
from offbench.training.fitting import Stops
from offbench.training.loop import train
from offbench.training.step import initial_carry
from offbench.types import Spec

SPEC = Spec(obs_dim=1, action_dim=1, gamma=0.9, max_episode_steps=30)
TINY = {"length": 4, "rollouts": 8, "every": 10, "share": 0.5}
PGD = PolicyGuidedDiffusion(
    **TINY, features=8, levels=2, n_updates=20, batch_size=8, average=0.5, steps=8
)


ENSEMBLE = WorldModel(**TINY, hidden=(8,), n_updates=20, batch_size=8)


def corridor(n=30, steps=15, seed=0):
    """s' = s + a / 2, reward s: linear, so that a model of it can be learned in seconds."""
    g = np.random.default_rng(seed)
    episodes = []
    for _ in range(n):
        action = g.uniform(-1, 1, (steps, 1))
        obs = np.concatenate([g.normal(0, 1, (1, 1)), action / 2]).cumsum(0)
        episodes.append(Episode(obs, action, obs[:-1, 0], np.zeros(steps, bool)))
    return from_episodes(episodes)


@pytest.fixture
def trained(monkeypatch):
    """The trainings of denoisers, which take no time: their weights are those before the first update."""
    found = []

    def train(settings, data, **options):
        found.append(settings)
        return diffusion.untrained(settings, data)

    monkeypatch.setattr(diffusion, "train", train)
    return found


def test_a_denoiser_is_trained_once_for_the_same_data_and_settings(tmp_path, trained):
    data = corridor()
    keys = rng.split(rng.key(3), 2)
    policy = lambda obs, number: torch.zeros_like(obs)
    first = PGD.source(data, tmp_path)(keys, policy, True)
    again = PGD.source(data, tmp_path)(keys, policy, True)
    assert len(trained) == 1 and all(map(torch.equal, first, again))
    # how it is sampled and mixed does not count
    PolicyGuidedDiffusion(**{**PGD.__dict__, "coefficient": 3.0, "rollouts": 2}).source(
        data, tmp_path
    )
    assert len(trained) == 1
    PolicyGuidedDiffusion(**{**PGD.__dict__, "lr": 1e-3}).source(data, tmp_path)
    PGD.source(corridor(seed=1), tmp_path)
    assert len(trained) == 3 and len([*tmp_path.glob("*.safetensors")]) == 3


@pytest.mark.parametrize("own", [PGD, ENSEMBLE], ids=["pgd", "world_model"])
def test_a_source_that_was_stopped_again_and_again_is_the_same(own, tmp_path):
    data, at = corridor(), []
    whole, path = own.kept(data, tmp_path / "whole"), own.kept(data, tmp_path)
    own.source(data, whole.parent)
    stops = Stops(lambda update: at.append(update) or update % 7 == 0)
    for _ in range(2):
        with pytest.raises(Interrupted):
            own.source(data, tmp_path, stops)
        assert not path.exists() and path.with_suffix(".training.safetensors").exists()
    own.source(data, tmp_path, stops)
    assert at == [*range(1, 21)] and path.read_bytes() == whole.read_bytes()
    assert {p.name for p in tmp_path.glob("*")} <= {path.name, f"{path.stem}.lock", "whole"}


def test_what_a_killed_training_has_left_goes_with_the_next(tmp_path, trained):
    data = corridor()
    path = PGD.kept(data, tmp_path)
    left = [path.with_suffix(".training.safetensors")]
    left += [
        tmp_path / f".{stem}.0123456789abcdef.tmp.safetensors" for stem in (path.stem, left[0].stem)
    ]
    other = tmp_path / ".0000000000000000.0123456789abcdef.tmp.safetensors"
    # killed before it was kept, and between that and the removal of its checkpoint
    for _ in range(2):
        for file in (*left, other):
            file.touch()
        PGD.source(data, tmp_path)
        assert path.exists() and other.exists() and not any(file.exists() for file in left)


def test_an_ensemble_is_trained_once_for_the_same_data_and_settings(tmp_path, monkeypatch):
    trainings, fit = [], sources.run
    trains = lambda *given, **more: (trainings.append(given), fit(*given, **more))[1]
    monkeypatch.setattr(sources, "run", trains)
    data, keys = corridor(), rng.split(rng.key(3), 2)
    policy = lambda obs, number: torch.zeros_like(obs)
    first, again = (ENSEMBLE.source(data, tmp_path)(keys, policy, True) for _ in range(2))
    assert len(trainings) == 1 and all(map(torch.equal, first, again))
    # how long it imagines and how it is mixed does not count
    replace(ENSEMBLE, length=6, rollouts=2, every=5).source(data, tmp_path)
    assert len(trainings) == 1
    replace(ENSEMBLE, hidden=(16,)).source(data, tmp_path)
    ENSEMBLE.source(corridor(seed=1), tmp_path)
    assert len(trainings) == 3


def test_who_waits_for_anothers_training_can_be_stopped(tmp_path, trained):
    data = corridor()
    with FileLock(PGD.kept(data, tmp_path).with_suffix(".lock")):
        with pytest.raises(Interrupted):
            PGD.source(data, tmp_path, Stops(lambda update: True))
    assert not trained and PGD.source(data, tmp_path, Stops(lambda update: True))


def test_a_damaged_denoiser_is_trained_again(tmp_path, trained):
    data, keys = corridor(), rng.split(rng.key(3), 1)
    policy = lambda obs, number: torch.zeros_like(obs)
    first = PGD.source(data, tmp_path)(keys, policy, True)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-7] + b"garbage")
    said = []
    again = PGD.source(data, tmp_path, Stops(say=said.append))(keys, policy, True)
    assert all(map(torch.equal, first, again)) and len(trained) == 2
    assert said == [
        f"a kept data source is trained again: checkpoint {path.name} is damaged (cut off or changed: its checksum is another)"
    ]


@pytest.mark.parametrize("own", [PGD, ENSEMBLE], ids=["pgd", "world_model"])
def test_a_source_that_cannot_be_kept_is_told_and_used(own, tmp_path):
    data, keys, said = corridor(), rng.split(rng.key(3), 1), []
    policy = lambda obs, number: torch.zeros_like(obs)
    wanted = own.source(data, tmp_path / "whole")(keys, policy, True)
    with files_of_at_most(100):
        roll = own.source(data, tmp_path, Stops(say=said.append))
    assert said == ["a data source could not be kept: File too large"]
    assert all(map(torch.equal, roll(keys, policy, True), wanted))
    assert not [*tmp_path.glob("*.safetensors"), *tmp_path.glob(".*")]


def test_a_source_of_another_class_is_another(tmp_path):
    class Mine(WorldModel):
        pass

    data = corridor()
    own = Mine(**TINY, hidden=(8,), n_updates=20, batch_size=8)
    assert own.kept(data, tmp_path) != ENSEMBLE.kept(data, tmp_path)


def test_a_source_is_trained_where_nothing_can_be_written(tmp_path, trained):
    """Its folder would be in a file."""
    data, keys, said = corridor(), rng.split(rng.key(3), 1), []
    policy = lambda obs, number: torch.zeros_like(obs)
    wanted = PGD.source(data, tmp_path / "whole")(keys, policy, True)
    (tmp_path / "file").touch()
    roll = PGD.source(data, tmp_path / "file" / "sources", Stops(say=said.append))
    assert all(map(torch.equal, roll(keys, policy, True), wanted)) and len(trained) == 2
    assert len(said) == 1 and said[0].startswith("a data source could not be kept: ")


def test_the_checkpoint_of_a_source_that_cannot_be_kept_stays(tmp_path):
    data, at, said = corridor(), [], []
    with pytest.raises(Interrupted):
        PGD.source(data, tmp_path, Stops(lambda update: update == 15))
    asked = Stops(lambda update: bool(at.append(update)), say=said.append)
    with files_of_at_most(100):
        PGD.source(data, tmp_path, asked)
    PGD.source(data, tmp_path, asked)
    assert at == 2 * [*range(16, 21)] and len(said) == 1
    assert [p.name for p in tmp_path.glob("*.safetensors")] == [PGD.kept(data, tmp_path).name]


def test_nothing_is_guided_before_the_first_update(tmp_path, trained):
    asked = []

    def policy(obs, number):
        asked.append(obs.shape)
        return torch.zeros_like(obs)

    roll = PGD.source(corridor(), tmp_path)
    keys = rng.split(rng.key(3), 2)
    roll(keys, policy, False)
    assert not asked
    roll(keys, policy, True)
    # eight rollouts of four observations, at every step but the last
    assert asked == [(2, 32, 1)] * 7


def test_a_learned_model_imagines_the_true_dynamics_from_recorded_states(tmp_path):
    data = corridor()
    settings = WorldModel(**TINY, hidden=(32,), n_updates=1500, batch_size=64)
    policy = lambda obs, number=0: -obs.clamp(-1, 1)
    roll = settings.source(data, tmp_path)
    rolled = roll(rng.split(rng.key(0), 2), policy, True)
    assert rolled.obs.shape == (2, 8, 4, 1)
    assert torch.equal(rolled.action, policy(rolled.obs))
    true = rolled.obs[:, :, :-1] + rolled.action[:, :, :-1] / 2
    assert (rolled.obs[:, :, 1:] - true).abs().max() < 0.15
    assert (rolled.reward - rolled.obs[..., 0]).abs().max() < 0.3
    starts = set(data.obs[data.valid].flatten().tolist())
    assert {*rolled.obs[:, :, 0].flatten().tolist()} <= starts
    assert not torch.equal(rolled.obs[0, :, 0], rolled.obs[1, :, 0])


def test_every_row_of_a_large_set_can_begin_a_sub_trajectory(monkeypatch):
    keys, n, high = rng.split(rng.key(0), 2), 100_000, 20_000_000
    rows = start_rows(keys, n, high)
    assert rows.shape == (2, n) and 0 <= rows.min() and rows.max() < high
    # of 2**23 numbers only, one in a hundred and fifty would be there twice
    assert n - len(rows[0].unique()) < n / 300
    # draws of smaller ones are what they were
    few = (rng.uniform(keys[:, None], (1, n)) * 7).long()
    assert torch.equal(start_rows(keys, n, 7), few)
    # the largest number below 1
    largest = lambda key, shape, dtype: torch.full(
        shape, 1 - torch.finfo(dtype).eps / 2, dtype=dtype
    )
    monkeypatch.setattr(rng, "uniform", largest)
    for size in (7, (1 << 23) - 1, 1 << 23, high, 100_000_001):
        assert start_rows(keys, 1, size).max() == size - 1


def test_each_imagined_sub_trajectory_follows_one_member():
    class Members:
        """Member m adds m to the state."""

        def step(self, obs, action):
            shift = torch.arange(5.0)[:, None, None]
            return obs + shift, obs[..., 0], torch.zeros_like(obs[..., 0])

    rolled = imagine(Members(), torch.zeros(2, 7, 1), lambda obs, number: obs * 0, 4)
    steps = rolled.obs[..., 0].diff(dim=-1)
    assert steps.shape == (2, 7, 3) and (steps == steps[..., :1]).all()
    # a seed's are shared by all members, in a stack as alone
    assert steps[0, :, 0].tolist() == steps[1, :, 0].tolist() == [0.0, 0, 1, 1, 2, 2, 3]


class Noisy:
    """A method that acts by chance alone."""

    def init(self, key, spec):
        return torch.zeros(())

    def act(self, state, obs, key):
        return 0.1 * rng.normal(key, (len(obs), 1))


def test_a_policy_that_draws_its_actions_draws_others_at_every_step(tmp_path):
    pipeline = make_pipeline(corridor(), batch_size=8)
    method = ENSEMBLE.mix(Noisy())
    found = []

    def source(keys, policy, learned):
        alike = lambda obs, number: found.append(policy(torch.zeros(2, 3, 1), number)) or obs * 0
        return ENSEMBLE.source(corridor(), tmp_path)(keys, alike, learned)

    carry = initial_carry(method, SPEC, [0, 1])
    refresh(ENSEMBLE, source, method, pipeline).make(carry)
    # of four observations
    assert len(torch.stack(found).flatten().unique()) == 4 * 2 * 3
    again, found = found, []
    refresh(ENSEMBLE, source, method, pipeline).make(carry)
    assert all(map(torch.equal, found, again))


def test_policies_see_transformed_observations():
    pipeline = make_pipeline(corridor(), transforms=["obs_norm"])
    method = PGD.mix(TD3BC(hidden=(8,)))
    carry = initial_carry(method, SPEC, [0, 1])
    obs = torch.randn(2, 5, 1)
    found = policies(method, pipeline)(carry.state, obs, carry.key)
    norm = pipeline.transforms[0]
    for i in range(2):
        inner = carry.seed(i).state.inner
        wanted = method.method.act(inner, norm._apply(obs[i]), carry.key[i])
        assert torch.allclose(found[i], wanted, atol=1e-6)


def test_pools_come_from_the_policy_of_the_time(tmp_path, trained):
    pipeline = make_pipeline(corridor(), batch_size=8)
    method = PGD.mix(TD3BC(hidden=(8,)))
    seen = []

    def source(keys, policy, learned):
        actions = policy(torch.zeros(2, 3, 1), 0)
        seen.append((learned, actions))
        return PGD.source(corridor(), tmp_path)(keys, policy, learned)

    made = refresh(PGD, source, method, pipeline)
    points = list(
        train(method, pipeline, SPEC, seeds=[0, 1], n_updates=20, stop_at=[10], refresh=made)
    )
    assert [learned for learned, _ in seen] == [False, True]
    there = policies(method, pipeline)(points[0].state, torch.zeros(2, 3, 1), points[0].carry.key)
    assert torch.allclose(seen[1][1], there) and not torch.allclose(seen[0][1], there)
    pools = points[-1].state.pool
    assert pools.obs.shape == (2, 24, 1) and not torch.equal(pools.obs[0], pools.obs[1])
    assert points[-1].state.filled.tolist() == [24, 24]


def test_a_seed_alone_learns_as_in_a_stack(tmp_path, trained):
    pipeline = make_pipeline(corridor(), batch_size=8)
    method = PGD.mix(TD3BC(hidden=(8,)))
    made = refresh(PGD, PGD.source(corridor(), tmp_path), method, pipeline)

    def trained(seeds):
        return list(train(method, pipeline, SPEC, seeds=seeds, n_updates=30, refresh=made))[-1]

    both, alone = trained([0, 1]).carry.seed(1).state, trained([1]).carry.seed(0).state
    for a, b in zip(both.inner.actor, alone.inner.actor, strict=True):
        assert torch.allclose(a["w"], b["w"], atol=1e-4)


def test_what_is_no_transition_is_refused():
    data = corridor()
    with pytest.raises(UserError, match="cut into transitions; use view=nstep"):
        PGD.check(make_pipeline(data, view=Chunk(h=2)), SPEC, "toy")
    with pytest.raises(UserError, match="synthetic actions are continuous"):
        PGD.check(make_pipeline(data, view=NStep()), SPEC._replace(discrete=True), "toy")
    PGD.check(make_pipeline(data, view=NStep(n=3)), SPEC, "toy")
    long = PolicyGuidedDiffusion(length=32)
    with pytest.raises(
        UserError, match=r"synthetic.length=32: every episode of toy is shorter .*16"
    ):
        long.check(make_pipeline(data), SPEC, "toy")


@pytest.mark.parametrize(
    "length, view, needs, said",
    [
        (1, {}, (), "length=1 must be at least 2"),
        (2, {}, (), None),
        (2, {}, ("next_action",), "length=2 must be at least 3"),
        (4, {"n": 3}, ("next_action",), "length=4 must be at least 5"),
        (4, {"n": 5}, (), None),
        (4, {"n": 4, "pad": False}, (), "length=4 must be at least 5"),
        (4, {"n": 3, "pad": False}, (), None),
    ],
)
def test_sub_trajectories_without_a_transition_are_refused(length, view, needs, said):
    own = WorldModel(**{**TINY, "length": length})
    pipeline = make_pipeline(corridor(), view=NStep(**view), needs=needs, batch_size=8)
    if not said:
        return own.check(pipeline, SPEC, "toy")
    with pytest.raises(UserError, match=said):
        own.check(pipeline, SPEC, "toy")


@pytest.mark.parametrize("share, is_", [(0.01, 0), (0.99, 8)])
def test_a_share_that_leaves_nothing_of_a_minibatch_is_refused(share, is_):
    own = WorldModel(**{**TINY, "share": share})
    with pytest.raises(UserError, match=f"share={share} of batch_size=8 is {is_}: "):
        own.check(make_pipeline(corridor(), batch_size=8), SPEC, "toy")


@pytest.mark.parametrize("name, value", [("share", 2.0), ("every", 0), ("rollouts", -3)])
def test_settings_of_an_ensemble_are_held_to_their_ranges(name, value):
    with pytest.raises(UserError, match=rf"synthetic.{name}={value:g} must be"):
        WorldModel(**{**TINY, name: value})
