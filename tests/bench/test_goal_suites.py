"""OGBench's goal-conditioned suites: every method has the published value on every set, and its source."""

import pytest

from offbench.bench import devices
from offbench.bench.hydra import options
from offbench.bench.plan import plan
from offbench.bench.suites import home_of
from offbench.results.published.scores import published_scores
from offbench.tasks.locate import load_task

# sizes of the five suites, in which a set is once
SUITES = {"pointmaze": 8, "antmaze": 11, "humanoidmaze": 6, "antsoccer": 4, "manipulation": 18}
# the weight of an actor's loss on (pointmaze, antmaze, humanoidmaze, explore, antsoccer, play, noisy):
# seohongpark/ogbench 1d41409, impls/hyperparameters.sh
WEIGHTS = {
    "gcivl": ("inverse_temperature", (10,) * 7),
    "gciql": ("bc_weight", (0.003, 0.3, 0.1, 0.01, 0.1, 1.0, 0.03)),
    "qrl": ("bc_weight", (0.0003, 0.003, 0.001, 0.001, 0.003, 0.3, 0.03)),
    "crl": ("bc_weight", (0.03, 0.1, 0.1, 0.003, 0.3, 3.0, 0.1)),
    "hiql": ("low_inverse_temperature", (3, 3, 3, 10, 3, 3, 3)),
    "ota": ("high_inverse_temperature", (3, 3, 3, 10, 3, 3, 3)),
}
FAMILIES = ("pointmaze", "antmaze", "humanoidmaze", "explore", "antsoccer", "play", "noisy")
HERE = [name for name in WEIGHTS if name in options("method")]


def family(name: str) -> str:
    """The kind of a set that decides its settings."""
    by_data = [kind for kind in ("explore", "play", "noisy") if f"-{kind}-" in name]
    return next(iter(by_data), name.removeprefix("ogbench/").split("-")[0])


@pytest.fixture(scope="module")
def cells():
    chosen = f"methods=[{','.join(['gcbc', *HERE])}]"
    plans = [plan([f"suite=ogbench-goal-{name}", chosen], bench=True) for name in SUITES]
    return [cell for one in plans for cell in one.cells]


def test_the_protocol_is_ogbenchs(cells):
    assert len(cells) == 47 * (1 + len(HERE)) and sum(SUITES.values()) == 47
    for cell in cells:
        assert cell.task.goals and cell.task.task_ids == (1, 2, 3, 4, 5)
        assert (cell.seeds, cell.n_updates) == (tuple(range(8)), 1_000_000)
        assert cell.pipeline["batch_size"] == 1024 and cell.hparams["hidden"] == (512, 512, 512)
        # 50 of each task after 800k, 900k and 1M updates
        assert cell.protocol["episodes"] == 5 * 50
        assert cell.protocol["monitor_at"][-2:] == [0.8, 0.9]
        assert cell.protocol["monitor_episodes"][-2:] == [250, 250]


def test_every_set_has_the_published_settings_and_their_source(cells):
    for cell in cells:
        name, view = cell.task.id, cell.pipeline["view"]
        sources = cell.recorded_sources
        if cell.entry == "gcbc":
            assert view["actor_goals"] == (0.0, 1.0, 0.0)
            continue
        setting, values = WEIGHTS[cell.entry]
        assert cell.hparams[setting] == values[FAMILIES.index(family(name))], name
        assert "hyperparameters.sh" in sources[f"method.{setting}"]
        long = "humanoidmaze" in name or "giant" in name
        assert cell.pipeline["gamma"] == (0.995 if long else 0.99), name
        random = 0.5 if "-stitch-" in name else 1.0 if "-explore-" in name else 0.0
        assert view["actor_goals"] == (0.0, 1 - random, random), name
        if cell.entry in ("hiql", "ota"):
            arm = family(name) in ("play", "noisy")
            assert view["subgoal_steps"] == (100 if "humanoid" in name else 10 if arm else 25)
            assert (
                cell.hparams["low_inverse_temperature"] == cell.hparams["high_inverse_temperature"]
            )
        assert cell.tuning["how"] == "task preset" and cell.tuning["overridden"] == []


@pytest.mark.parametrize("entry", HERE)
def test_regenerated_sets_have_the_settings_of_the_published_one(entry):
    for name in ("pointmaze-medium-navigate", "pointmaze-medium-stitch", "cube-single-play"):
        ours, theirs = (
            plan([f"methods=[{entry}]", "suite=other", f"task={task}"], bench=True).cells[0]
            for task in (f"offbench/{name}-goal-v0", f"ogbench/{name}-v0")
        )
        assert (ours.hparams, ours.pipeline) == (theirs.hparams, theirs.pipeline), name
        assert "on OGBench's set of that name" in ours.tuning["source"]


def test_a_goal_set_has_the_protocol_of_its_suite():
    assert home_of("ogbench/antmaze-giant-navigate-v0") == "ogbench-goal-antmaze"
    assert home_of("ogbench/cube-double-play-100m-v0") == "ogbench-goal-manipulation"
    assert home_of("ogbench/antmaze-giant-navigate-singletask-v0") == "ogbench-singletask"
    assert home_of("offbench/pointmaze-medium-stitch-goal-v0") == "quick-goal"


def test_published_scores_stand_beside_every_column(cells):
    names = sorted({cell.task.id for cell in cells})
    table = published_scores(names)
    table = table[table["source"] == "ogbench-2024"]
    assert set(table["task"]) == set(names)
    assert set(table["entry"]) == {"gcbc", "gcivl", "gciql", "qrl", "crl", "hiql"}


@pytest.mark.env
def test_the_work_of_an_update_is_counted_where_the_data_are_not_here():
    """Observations once and goals once: in the environment a goal stands beside each observation."""
    args = [
        "suite=ogbench-goal-antmaze",
        "task=ogbench/antmaze-giant-navigate-v0",
        "methods=[gcbc]",
    ]
    cell = plan(args, bench=True).cells[0]
    data, spec = (
        devices.shape_of(cell) if load_task(cell.task.id).sha256 else devices._made_up(cell)
    )
    assert spec.obs_dim == data.obs.shape[1] == 29
    # sub-goals of a hundred steps fit into the made-up episodes
    assert int(data.episode.bincount().max()) > 101
    work = devices.work_of(cell)
    forward = 2 * 1024 * (58 * 512 + 2 * 512 * 512 + 512 * 8)
    # forward, and twice that backward but for the first layer's input
    assert 2.5 * forward < work.flops < 3.1 * forward
