"""Pick and place in the plane: its dynamics, its starts and ends, and the play data made in it."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from offbench import evaluation_env, load_data, load_task, recipes
from offbench.recipes import RECIPES
from offbench.recipes import pick_and_place as recipe
from offbench.recipes.store import data_digest, minari_root, versions
from offbench.tasks import embedded
from offbench.tasks import pick_and_place as game

TASK = "offbench/pick-and-place-play-v0"


def state(hand, at, jaw=0.0, held=False) -> game.State:
    return game.State(np.array(hand), np.array(at), np.array(jaw), np.array(held))


def act(before: game.State, *actions) -> game.State:
    for action in actions:
        before = game.advance(before, np.array(action))
    return before


CLOSE, OPEN = (0.0, 0.0, 1.0), (0.0, 0.0, -1.0)


def test_the_hand_moves_by_its_speed_and_stays_in_the_square():
    moved = act(state((0.0, 0.0), (0.5, 0.5)), (1.0, -0.5, 0.0))
    assert np.allclose(moved.hand, (game.SPEED, -game.SPEED / 2))
    # actions beyond the bounds are clipped, and so is the place
    assert np.allclose(act(state((0.99, 0.0), (0.5, 0.5)), (9.0, 0.0, 0.0)).hand, (1.0, 0.0))
    assert np.allclose(moved.object, (0.5, 0.5)) and not moved.held


def test_a_jaw_takes_the_object_only_where_it_closes_around_it():
    near, beside = state((0.0, 0.0), (0.09, 0.0)), state((0.0, 0.0), (0.15, 0.0))
    taken = act(near, CLOSE, CLOSE)
    assert taken.held and np.allclose(taken.object, taken.hand)
    carried = act(taken, (1.0, 0.0, 0.0))
    assert np.allclose(carried.object, carried.hand) and carried.hand[0] == game.SPEED
    pushed = act(beside, CLOSE, CLOSE)
    assert not pushed.held and np.allclose(pushed.object, (0.15 + game.PUSH, 0.0))
    # a jaw that is closed already takes nothing
    assert not act(near._replace(jaw=np.array(1.0)), CLOSE).held


def test_an_object_that_is_let_go_of_in_motion_slides_on():
    holding = state((0.0, 0.0), (0.0, 0.0), jaw=1.0, held=True)
    assert np.allclose(act(holding, OPEN, OPEN).object, (0.0, 0.0))
    away = (1.0, 0.0, -1.0)
    # two steps until the jaw is open; the second of them and the slide after it
    slid = act(holding, away, away)
    assert not slid.held
    assert np.allclose(slid.object, (game.SPEED * (1 + game.SLIDE), 0.0))


def test_dynamics_of_many_hands_are_those_of_one():
    rng = np.random.default_rng(0)
    many = game.start(rng, (7,))
    many = many._replace(object=many.hand + rng.uniform(-0.05, 0.05, (7, 2)))
    actions = rng.uniform(-1.0, 1.0, (60, 7, 3))
    actions[..., 2] += 0.3 * np.sin(np.arange(60))[:, None]
    last = many
    for a in actions:
        last = game.advance(last, a)
    for i in range(7):
        one = act(game.State(*(x[i] for x in many)), *actions[:, i])
        assert all(np.array_equal(x, y[i]) for x, y in zip(one, last))
    assert last.obs.shape == (7, 10) and last.obs.dtype == np.float32


def make() -> gymnasium.Env:
    return gymnasium.make(recipe.ENV)


def test_starts_differ_by_seed_and_no_object_starts_at_the_goal():
    env = make()
    first, again, other = (env.reset(seed=seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert env.observation_space.contains(first)
    many = game.start(np.random.default_rng(0), (20_000,))
    away = np.linalg.norm(many.object - game.GOAL, axis=-1)
    assert away.min() > 3 * game.TOLERANCE and not many.solved.any()


def test_success_is_a_terminal_and_the_time_limit_is_not():
    env = make()
    env.reset(seed=0)
    env.unwrapped.state = state(game.GOAL, game.GOAL, jaw=1.0, held=True)
    _, reward, terminal, cut, info = env.step(np.array(OPEN, np.float32))
    # at the goal, but in the hand still
    assert (reward, terminal, cut, info["success"]) == (-1.0, False, False, False)
    _, reward, terminal, cut, info = env.step(np.array(OPEN, np.float32))
    assert (reward, terminal, cut, info["success"]) == (0.0, True, False, True)
    assert info["distance"] == pytest.approx(0.0)
    env.unwrapped.state = state(game.GOAL, (0.6, -0.4))
    assert env.step(np.array(OPEN, np.float32))[4]["distance"] == pytest.approx(1.0)
    env.reset(seed=0)
    ends = [env.step(np.zeros(3, np.float32))[2:4] for _ in range(game.MAX_EPISODE_STEPS)]
    assert ends == [(False, False)] * (game.MAX_EPISODE_STEPS - 1) + [(False, True)]


def test_an_oracle_solves_it_and_random_actions_do_not():
    assert recipe.solved_share(0.0, 50) == 1.0
    assert recipe.solved_share(None, 50) == 0.0


def collect(seed: int, root, episodes: int = 6, steps: int = 300):
    return recipe.play(episodes=episodes, steps=steps, seed=seed, root=root)


def test_play_data_are_a_function_of_the_seed(tmp_path):
    one, again, other = (data_digest(collect(s, tmp_path).episodes) for s in (3, 3, 4))
    assert one == again != other


def test_play_data_obey_the_dynamics_and_their_rewards_the_goal(tmp_path):
    made = collect(3, tmp_path)
    assert made.env == RECIPES[TASK].env and made.terminal_inside
    for e in made.episodes:
        hand, at, (jaw, held) = (
            e.observations[:, :2],
            e.observations[:, 2:4],
            e.observations[:, 4:6].T,
        )
        before = game.State(hand[:-1], at[:-1], jaw[:-1], held[:-1] > 0.5)
        after = game.advance(before, e.actions)
        # observations are rounded to float32
        assert np.isclose(after.obs, e.observations[1:], atol=1e-5).mean() > 0.999
        solved = game.State(hand[1:], at[1:], jaw[1:], held[1:] > 0.5).solved
        assert (e.terminations == solved).mean() > 0.999
        assert np.array_equal(e.rewards, e.terminations.astype(np.float32) - 1)
        assert e.truncations[-1] and not e.truncations[:-1].any()


def test_what_is_near_is_seen_in_detail():
    seen = state((0.0, 0.0), (0.1, -0.9)).obs[6:]
    assert np.allclose(seen, (0.1 / game.NEAR, -1.0, 1.0, 1.0))


def test_the_script_remembers_what_no_observation_shows(tmp_path):
    """In one state it does different things, and each time again the same."""
    rng = np.random.default_rng(0)
    n = 400
    same = game.State(np.zeros((n, 2)), np.zeros((n, 2)), np.ones(n), np.ones(n, bool))
    script = recipe.Script(n, rng)
    script.phase[:] = recipe.CARRY
    first = script.act(same)[:, :2]
    second = script.act(same)[:, :2]
    assert first.std(0).min() > 0.3
    assert np.corrcoef(first[:, 0], second[:, 0])[0, 1] > 0.8


def test_a_set_that_was_made_is_a_task_with_its_environment(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    small = replace(RECIPES[TASK], options={"episodes": 3, "steps": 50, "seed": 1})
    monkeypatch.setattr(recipes, "RECIPES", {TASK: small})
    recipes.make(TASK, tmp_path)
    monkeypatch.setenv("OFFBENCH_DATASETS", str(tmp_path))
    task = load_task(TASK)
    data, spec = load_data(task)
    assert data.n_transitions == 150 and spec.obs_dim == 10 and spec.action_dim == 3
    assert evaluation_env(task).spec.max_episode_steps == game.MAX_EPISODE_STEPS
    with minari_root(tmp_path / "minari"):
        env = minari.load_dataset(TASK).recover_environment()
    assert isinstance(env.unwrapped, game.PickAndPlace)


@pytest.mark.slow
def test_the_whole_set_has_the_checksum_of_its_manifest(tmp_path):
    _, facts = embedded.manifests()[TASK]
    if versions()["numpy"] != facts["versions"]["numpy"]:
        pytest.skip("another numpy than the set was made with")
    made = recipe.play(**RECIPES[TASK].options, root=tmp_path)
    assert data_digest(made.episodes) == facts["data_sha256"]
