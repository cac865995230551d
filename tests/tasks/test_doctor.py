"""The dataset doctor: silent on clean sets, and each defect found in a set damaged in that way."""

import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.paths import SHARED

from offbench.data.replay import Episode, from_episodes
from offbench.errors import UserError
from offbench.tasks import doctor
from offbench.tasks.doctor import Facts, Flat, defects
from offbench.tasks.embedded import data_of, manifests
from offbench.tasks.formats import arrays, d4rl
from offbench.tasks.loading import load_data
from offbench.tasks.locate import load_task

LIMIT = 100
FACTS = Facts(id="test/set-v0", max_episode_steps=LIMIT, score="return", ref_min=0.0, ref_max=50.0)


def walk(rng, steps, dims=6, at=None):
    """A smooth trajectory that starts near a corner: positions that integrate velocities."""
    state = np.concatenate([rng.normal(0, 0.05, dims // 2), rng.normal(0, 0.05, dims // 2)])
    if at is not None:
        state = at
    states, actions = [state], []
    for _ in range(steps):
        action = rng.uniform(-1, 1, dims // 2)
        position, velocity = np.split(states[-1], 2)
        velocity = 0.95 * velocity + 0.1 * action + 0.02
        states.append(np.concatenate([position + 0.1 * velocity, velocity]))
        actions.append(action)
    return np.asarray(states, np.float32), np.asarray(actions, np.float32)


def episodes(n=30, seed=0, steps=LIMIT):
    """Every third one ends by a terminal after 60 steps, the others at the limit."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        length = 60 if i % 3 == 2 else steps
        obs, action = walk(rng, length)
        terminal = np.zeros(length, bool)
        terminal[-1] = length < steps
        made.append(Episode(obs, action, obs[1:, 0].copy(), terminal))
    return made


def flat(made=None, **changes):
    """The same in D4RL's layout."""
    made = episodes() if made is None else made
    timeouts = []
    for e in made:
        ends = np.zeros(len(e.action), bool)
        ends[-1] = not e.terminal[-1]
        timeouts.append(ends)
    columns = Flat(
        np.concatenate([e.obs[:-1] for e in made]),
        np.concatenate([e.action for e in made]),
        np.concatenate([e.reward for e in made]),
        np.concatenate([e.terminal for e in made]),
        np.concatenate(timeouts),
    )
    return columns._replace(**changes)


def check(data, facts=FACTS, **changes):
    return doctor.check(data, Facts(**{**facts.__dict__, **changes}))


def named(report):
    return {f.name for f in report.findings if f.severity != "info"}


# --- clean sets -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_set_gives_no_warning_in_either_form(seed):
    made = episodes(seed=seed)
    for data in (from_episodes(made), flat(made)):
        report = check(data)
        assert named(report) == set() and report.worst == "info"
        assert report.episodes == 30 and report.rows == sum(len(e.action) for e in made)
        assert {"returns", "normalised_mean", "lengths", "action_clipping"} <= {
            f.name for f in report.findings
        }


@pytest.mark.parametrize("name", [n for n in manifests() if load_task(n).path.exists()])
def test_the_embedded_sets_are_clean(name):
    task = load_task(name)
    data, _ = load_data(task)
    report = doctor.check(data, Facts.of(task))
    assert named(report) == set()
    # a goal-conditioned task may have the data of another
    manifest = manifests()[data_of(name)][1]
    assert report.rows == manifest["rows"] and report.episodes == manifest["episodes"]
    # rewards of a goal-conditioned task are not read
    if task.goals:
        return
    assert report["returns"].numbers["mean"] == pytest.approx(manifest["returns"]["mean"], abs=1e-3)
    assert report["returns"].numbers["positive_sided_variance"] == pytest.approx(
        manifest["positive_sided_variance"], rel=1e-4
    )
    if task.score == "success":
        assert 0.3 < report["success"].numbers["share"] < 0.4


def test_a_set_that_resets_close_to_where_it_was_is_clean():
    """HalfCheetah's resets look like steps in size; only what a fit leaves tells them apart."""
    data, _ = load_data(load_task("offbench/halfcheetah/expert5-v0"))
    step = data.valid.numpy()
    ends = np.flatnonzero(~step) - 1
    timeouts = np.zeros(len(step), bool)
    timeouts[ends] = True
    terminals = np.zeros_like(timeouts)
    terminals[ends[10]], timeouts[ends[10]] = True, False  # so that there is a mark to compare with
    columns = [x.numpy()[step] for x in (data.obs, data.action, data.reward)]
    assert not doctor.continuing(Flat(*columns, terminals[step], timeouts[step])).any()


# --- defects, one at a time -----------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        dict(rewards=np.zeros(7)),
        dict(actions=np.zeros(2600, np.float32)),
        dict(observations=np.zeros(2600, np.float32)),
        dict(terminals=np.zeros((2600, 2), bool)),
        dict(timeouts=np.zeros(2599, bool)),
        dict(next_observations=np.zeros((3, 6))),
    ],
)
def test_arrays_that_do_not_go_together_are_severe(change):
    report = check(flat(**change))
    assert report["shapes"].severity == "severe" and next(iter(change)) in report["shapes"].words


def test_objects_are_severe_and_odd_numbers_a_warning():
    good = flat()
    objects = good._replace(observations=good.observations.astype(object))
    assert check(objects)["dtypes"].severity == "severe"
    report = check(good._replace(observations=good.observations.astype(np.float16)))
    assert report["dtypes"].severity == "warning" and "float16" in report["dtypes"].words


def test_images_and_choices_are_looked_at_in_their_own_way():
    good, rng = flat(), np.random.default_rng(0)
    images = rng.integers(0, 256, (2600, 4, 4, 3), dtype=np.uint8)
    choices = rng.integers(0, 7, 2600)
    report = check(good._replace(observations=images, actions=choices))
    assert named(report) == set() and report["choices"].numbers == {"max": 6}


def test_one_hot_actions_are_choices_and_never_clipped():
    """One choice of three in 96% of the rows: were they continuous, they would lie at the bound."""
    rng = np.random.default_rng(0)
    made = [
        e._replace(
            action=np.eye(3, dtype=np.float32)[rng.choice(3, len(e.action), p=[0.02, 0.96, 0.02])]
        )
        for e in episodes()
    ]
    for data in (from_episodes(made), flat(made)):
        report = check(data)
        assert named(report) == set() and "action_clipping" not in report
        assert report["choices"].numbers == {"max": 2}
    two = [e._replace(action=e.action[:, :2]) for e in made]  # some rows choose none of the two
    assert "action_clipping" in check(flat(two)) and "choices" not in check(flat(two))


def test_a_crash_is_no_reset():
    """One velocity that stops at a wall, again and again, and nothing else."""
    made = episodes(4, steps=1000)
    for e in made[:2]:
        e.obs[40, 4] -= 20 * np.abs(np.diff(e.obs[:, 4])).max()
    for data in (from_episodes(made), flat(made)):
        assert "jump_inside" not in check(data, max_episode_steps=1000)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_is_severe(name, value):
    good = flat()
    column = getattr(good, name).copy()
    column[1234] = value
    report = check(good._replace(**{name: column}))
    assert report["not_finite"].severity == "severe"
    assert report["not_finite"].numbers["first"] == 1234


def test_actions_out_of_range_are_severe():
    good = flat()
    report = check(good._replace(actions=good.actions * 1.5))
    assert report["action_range"].severity == "severe"
    assert report["action_range"].numbers["largest"] == pytest.approx(1.5, abs=0.01)


def test_actions_nearly_always_at_the_bound_are_a_warning():
    good = flat()
    actions = good.actions.copy()
    actions[:, 1] = np.sign(actions[:, 1])
    report = check(good._replace(actions=actions))
    assert named(report) == {"action_clipping"}
    assert report["action_clipping"].numbers["worst"] == 1.0


def test_dimensions_that_never_change_are_named():
    good = flat()
    obs, actions = good.observations.copy(), good.actions.copy()
    obs[:, 4], actions[:, 2] = 3.0, 0.0
    report = check(good._replace(observations=obs, actions=actions))
    found = [f for f in report.findings if f.name == "constant_dimension"]
    assert [(f.severity, f.numbers["dimensions"]) for f in found] == [
        ("warning", [2]),
        ("info", [4]),
    ]


def test_repeated_episodes_are_counted_unless_they_were_drawn_so():
    made = episodes()
    made[7] = made[20] = made[3]
    for data in (from_episodes(made), flat(made)):
        report = check(data)
        assert named(report) == {"duplicate_episodes"}
        assert report["duplicate_episodes"].numbers["episodes"] == [7, 20]
        assert named(check(data, repeats=True)) == set()


def join_up(made, n=10):
    """Every n-th episode is followed by another with no mark between (D4RL issues 77, 146)."""
    joined = []
    for i, e in enumerate(made):
        if i % n == 1 and joined:
            before = joined[-1]
            parts = [
                np.concatenate([getattr(before, k), getattr(e, k)]) for k in ("action", "reward")
            ]
            obs = np.concatenate([before.obs[:-1], e.obs])
            terminal = np.zeros(len(parts[0]), bool)
            terminal[-1] = e.terminal[-1]
            joined[-1] = Episode(obs, *parts, terminal)
        else:
            joined.append(e)
    return joined


def test_resets_that_are_not_marked_are_severe():
    made = join_up(episodes())
    for data in (from_episodes(made), flat(made)):
        report = check(data, max_episode_steps=None)
        assert named(report) == {"jump_inside"}
        jump = report["jump_inside"]
        assert jump.severity == "severe" and jump.numbers["count"] == 3
    assert jump.numbers["rows"][0] == 99


def test_time_outs_out_of_step_with_the_trajectories_are_severe():
    """As in antmaze-v0: the marks are there, but not where the ant was put back."""
    rng = np.random.default_rng(1)
    parts = [walk(rng, 100, dims=28) for _ in range(60)]
    obs = np.concatenate([o[:-1] for o, _ in parts])
    obs[:, :2] *= 20  # the maze
    timeouts = np.zeros(len(obs), bool)
    timeouts[90::101] = True
    data = Flat(
        obs, np.concatenate([a for _, a in parts]), obs[:, 0], np.zeros(len(obs), bool), timeouts
    )
    report = doctor.check(data, Facts(id="x"))
    assert "jump_inside" in {f.name for f in report.severe}
    assert report["jump_inside"].numbers["count"] >= 50


def test_an_environment_that_teleports_may_jump():
    made = join_up(episodes())
    report = check(from_episodes(made), max_episode_steps=None, teleports=True)
    assert report["jump_inside"].severity == "info"


def cut_up(made):
    """A time-out is marked in the middle of every episode that ends by a terminal."""
    data = flat(made)
    timeouts = np.zeros(len(data.terminals), bool)
    ends = np.flatnonzero(data.terminals | data.timeouts)
    inner = [int(e) - 30 for e in ends if data.terminals[e]]
    timeouts[inner] = True
    terminals = data.terminals | data.timeouts
    return data._replace(terminals=terminals, timeouts=timeouts), inner


def test_time_outs_inside_episodes_are_found_and_passed_over():
    data, inner = cut_up(episodes())
    assert np.flatnonzero(doctor.continuing(data)).tolist() == inner
    report = check(data, max_episode_steps=None)
    assert named(report) == {"timeout_inside"} and report.episodes == 30
    assert report["timeout_inside"].severity == "severe"
    assert report["timeout_inside"].numbers["count"] == len(inner)
    assert len(doctor.returns_of(data)) == 30


def test_only_the_bad_ones_of_many_time_outs_are_passed_over():
    data = flat()
    ends = np.flatnonzero(data.timeouts)
    bad = [int(e) - 50 for e in ends[::2]]
    timeouts = data.timeouts.copy()
    timeouts[bad] = True
    assert np.flatnonzero(doctor.continuing(data._replace(timeouts=timeouts))).tolist() == bad


def test_one_trajectory_cut_at_will_keeps_its_cuts():
    """maze2d: no terminal anywhere, and every time-out only marks a goal (D4RL issue 85)."""
    obs, actions = walk(np.random.default_rng(0), 3000)
    never = np.zeros(3000, bool)
    timeouts = never.copy()
    timeouts[99::100] = True
    data = Flat(obs[:-1], actions, obs[1:, 0], never, timeouts)
    assert not doctor.continuing(data).any()
    assert named(check(data)) == set() and check(data).episodes == 30


def test_time_outs_before_the_limit_are_a_warning():
    made = episodes()
    short = [e._replace(terminal=np.zeros_like(e.terminal)) for e in made]
    report = check(from_episodes(short))
    early = report["timeout_early"]
    assert named(report) == {"timeout_early"}
    assert early.numbers == {"count": 9, "shortest": 60}  # the last episode may be cut anywhere


def test_the_last_episode_may_be_unfinished():
    made = episodes(31)
    report = check(
        from_episodes(
            [*made[:-1], Episode(*(x[:41] if i == 0 else x[:40] for i, x in enumerate(made[-1])))]
        )
    )
    assert named(report) == set() and report["unfinished"].numbers == {"steps": 40}


def test_terminals_at_the_time_limit_are_found():
    made = episodes()
    ends = np.zeros(LIMIT, bool)
    ends[-1] = True
    made[0] = made[0]._replace(terminal=ends)
    assert check(from_episodes(made))["terminal_at_limit"].severity == "warning"
    made = [e if len(e.action) < LIMIT else e._replace(terminal=ends) for e in made]
    report = check(from_episodes(made))
    assert report["terminal_at_limit"].severity == "severe"
    assert report["terminal_at_limit"].numbers == {"count": 20, "of": 20}


def test_episodes_longer_than_the_limit_are_a_warning_but_in_play_data():
    data = from_episodes(episodes())
    assert named(check(data, max_episode_steps=90)) == {"too_long"}
    assert check(data, max_episode_steps=90)["too_long"].numbers["count"] == 20
    assert named(check(data, max_episode_steps=90, terminal_inside=True)) == set()


@pytest.mark.parametrize("value, severity", [(0.0, "severe"), (-1.0, "warning")])
def test_rewards_that_never_change_are_found(value, severity):
    made = [e._replace(reward=np.full(len(e.reward), value, np.float32)) for e in episodes()]
    report = check(from_episodes(made))
    assert named(report) == {"rewards_constant"}
    assert report["rewards_constant"].severity == severity
    assert "rewards_constant" not in check(from_episodes(made), goals=True)


def test_a_set_without_a_success_is_a_warning():
    made = [e._replace(reward=np.full(len(e.reward), -1.0, np.float32)) for e in episodes()]
    made[4].reward[7] = 1.0
    report = check(from_episodes(made), score="success")
    assert report["success"].numbers["share"] == pytest.approx(1 / 30)
    made[4].reward[7] = -0.5
    assert check(from_episodes(made), score="success")["success"].severity == "warning"


def test_next_observations_that_do_not_follow_are_severe():
    data = flat()
    after = np.concatenate([e.obs[1:] for e in episodes()])
    assert named(check(data._replace(next_observations=after))) == set()
    wrong = after.copy()
    wrong[55] += 1
    report = check(data._replace(next_observations=wrong))
    assert report["next_observation"].numbers["rows"] == [55]


def test_a_next_observation_taken_from_the_next_episode_is_severe():
    data = flat()
    shifted = np.concatenate([data.observations[1:], data.observations[-1:]])
    report = check(data._replace(next_observations=shifted))
    assert report["boundary_next_observation"].severity == "severe"
    assert report["boundary_next_observation"].numbers["count"] == 20


def test_returns_and_the_normalised_mean_are_those_of_whole_episodes():
    made = episodes()
    returns = np.asarray([e.reward.astype(np.float64).sum() for e in made])
    report = check(flat(made))
    numbers = report["returns"].numbers
    assert numbers["mean"] == pytest.approx(returns.mean())
    assert numbers["q25"] == pytest.approx(np.quantile(returns, 0.25))
    psv = np.mean(np.maximum(returns - returns.mean(), 0) ** 2)
    assert numbers["positive_sided_variance"] == pytest.approx(psv)
    assert report["normalised_mean"].numbers["score"] == pytest.approx(2 * returns.mean())
    np.testing.assert_allclose(doctor.returns_of(from_episodes(made)), returns, rtol=1e-6)


# --- the real file ----------------------------------------------------------------------------


def shared() -> Path:
    """The folder of material shared beside the repository."""
    named = os.environ.get("OFFBENCH_SHARED")
    return Path(named) if named else SHARED


def test_the_real_door_human_file_has_time_outs_inside_its_episodes():
    path = shared() / "data" / "d4rl" / "door-human-v0.hdf5"
    if not path.is_file():
        pytest.skip(f"{path} is not here; OFFBENCH_SHARED names the folder that holds data/d4rl")
    raw = d4rl.read(path, name="door")
    flat = Flat(raw.obs, raw.action, raw.reward, raw.terminal, raw.timeout)
    facts = Facts(
        id="d4rl/door-human-v0",
        max_episode_steps=200,
        score="return",
        ref_min=-56.512833,
        ref_max=2880.5693,
    )
    report = doctor.check(flat, facts)
    assert report.episodes == 25 and report.rows == 6729
    assert report["timeout_inside"].severity == "severe"
    assert report["timeout_inside"].numbers["count"] == 25
    assert (
        np.flatnonzero(doctor.continuing(flat)).tolist() == np.flatnonzero(flat.timeouts).tolist()
    )
    assert report["returns"].numbers["mean"] == pytest.approx(795.66, abs=0.01)
    assert report["normalised_mean"].numbers["score"] == pytest.approx(29.0, abs=0.05)
    assert (flat.terminals | flat.timeouts).sum() == 50  # what a naive split would take
    assert "jump_inside" not in report and "known_defect" in report


# --- known defects, reports, reading ----------------------------------------------------------


@pytest.mark.parametrize(
    "dataset_id, issue, severity",
    [
        ("d4rl/antmaze-medium-diverse-v0", "D4RL#77", "severe"),
        ("d4rl/antmaze-large-play-v1", "D4RL#146", "severe"),
        ("d4rl/antmaze-umaze-diverse-v2", "D4RL#199", "warning"),
        ("d4rl/walker2d-medium-replay-v2", "D4RL#162", "warning"),
        ("d4rl/hopper-medium-expert-v0", "D4RL#19", "severe"),
        ("d4rl/hopper-expert-v1", "D4RL#76", "warning"),
        ("d4rl/hopper-medium-replay-v1", "D4RL#86", "warning"),
        ("d4rl/halfcheetah-medium-v0", "D4RL#22", "info"),
        ("d4rl/maze2d-umaze-v1", "D4RL#85", "info"),
        ("d4rl/door-human-v0", "D4RL#137", "warning"),
        ("minari/D4RL/antmaze/umaze-v0", "Minari#199", "severe"),
        ("D4RL/antmaze/umaze-diverse-v1", "Minari#304", "warning"),
        ("D4RL/pointmaze/umaze-v2", "Minari#265", "warning"),
        ("mujoco/hopper/medium-v0", "Minari#323", "info"),
    ],
)
def test_a_defect_that_others_found_is_told_with_its_thread(dataset_id, issue, severity):
    found = [f for f in doctor.known_defects(dataset_id) if issue in f.words]
    assert found and {f.severity for f in found} == {severity}


@pytest.mark.parametrize(
    "dataset_id",
    [
        "d4rl/hopper-medium-v2",
        "d4rl/antmaze-umaze-v2",
        "d4rl/antmaze-large-play-v2",
        "d4rl/hopper-medium-expert-v2",
        "ogbench/cube-single-play-v0",
        "offbench/hopper/medium-replay-v0",
    ],
)
def test_sets_of_good_repute_have_no_known_defect(dataset_id):
    assert doctor.known_defects(dataset_id) == []


def test_every_known_defect_names_a_public_thread():
    for defect in defects.KNOWN_DEFECTS:
        assert all("#" in r for r in defect.reference.split(", ")), defect


def test_a_severe_set_is_warned_of_once_and_refused_when_strict():
    clean = check(flat())
    doctor.refuse(clean)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        doctor.warn_once(clean)
    for _ in range(2):
        bad = doctor.check(flat(rewards=np.zeros(2600)), Facts(id=f"test/once-v{id(object)}"))
    with pytest.warns(doctor.DataWarning, match="every reward is zero") as seen:
        for _ in range(3):
            doctor.warn_once(bad)
    assert len(seen) == 1
    with pytest.raises(UserError, match=f"{bad.id}: every reward is zero; strict=true"):
        doctor.refuse(bad)


def test_a_report_is_stored_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path))
    report = check(flat(rewards=np.zeros(2600)))
    path = doctor.save(report)
    assert path.parent == tmp_path / "reports"
    assert doctor.load(path) == report
    assert doctor.report_path("a/b") != doctor.report_path("a-b")
    for content in ("", "[]", "{}", '{"findings": [1]}'):
        path.write_text(content)
        with pytest.raises(UserError, match="no report"):
            doctor.load(path)


def damage(path: Path, how: str) -> Path:
    good = flat()
    if how.endswith("npz"):
        columns = {
            "observations": good.observations,
            "actions": good.actions,
            "terminals": good.terminals,
        }
        if how == "objects npz":
            columns["observations"] = np.asarray([{}] * 3, object)
        if how == "keys npz":
            del columns["actions"]
        np.savez(path, **columns)
        if how == "not an npz":
            path.write_bytes(b"\x80\x04K\x01.")  # a pickle
        if how == "cut npz":
            path.write_bytes(path.read_bytes()[:50_000])
        if how == "header npz":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(
                    "observations.npy",
                    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 9)}",
                )
                archive.writestr("actions.npy", b"")
                archive.writestr("terminals.npy", b"")
        return path
    import h5py

    with h5py.File(path, "w") as file:
        file["observations"] = good.observations
        if how == "group hdf5":
            file.create_group("actions")
            file["rewards"] = file["terminals"] = good.rewards
        if how == "link hdf5":
            file["actions"] = h5py.ExternalLink("/etc/passwd", "/x")
            file["rewards"] = file["terminals"] = good.rewards
    if how == "empty hdf5":
        path.write_bytes(b"")
    if how == "cut hdf5":
        path.write_bytes(path.read_bytes()[:9_000])
    return path


@pytest.mark.parametrize(
    "how",
    [
        "objects npz",
        "keys npz",
        "not an npz",
        "cut npz",
        "header npz",
        "keys hdf5",
        "group hdf5",
        "link hdf5",
        "empty hdf5",
        "cut hdf5",
    ],
)
def test_a_damaged_file_ends_in_one_line(tmp_path, how):
    path = damage(tmp_path / f"x.{how.split()[-1]}", how)
    with pytest.raises(UserError) as error:
        arrays.load(path, name=str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)
