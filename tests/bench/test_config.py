"""Configuration: every yaml composes and instantiates, layers win in order, mistakes are named."""

import dataclasses
import inspect
import pickle
from fnmatch import fnmatch

import pytest

from offbench.bench.cells import Cell
from offbench.bench.hydra import compose_conf, options, read_option
from offbench.bench.plan import plan
from offbench.bench.preflight import build_method
from offbench.bench.targets import locate, option_of, parameters
from offbench.bench.values import coerce
from offbench.errors import UserError

HOPPER = "task=offbench/hopper/medium-replay-v0"


def cell(*overrides: str) -> Cell:
    return plan([HOPPER, *overrides], bench=False).cells[0]


GOALS = read_option("view", "goal")["_target_"]
GOAL_TASK = "task=offbench/pointmaze-medium-navigate-goal-v0"


@pytest.mark.parametrize("name", options("method"))
def test_every_method_yaml_composes_and_instantiates(name):
    goals = read_option("method", name)["view"]["_target_"] == GOALS
    made = cell(f"method={name}", *([GOAL_TASK] if goals else []))
    method = locate(made.target)(**made.hparams)
    assert dataclasses.asdict(method).keys() == made.hparams.keys()


@pytest.mark.parametrize("name", options("method"))
def test_a_method_yaml_holds_only_what_differs_from_its_class(name):
    """A yaml that is not named after its module is a variant of the method there, and must differ."""
    said = dict(read_option("method", name)["method"])
    target = said.pop("_target_")
    found = parameters(target)
    repeated = [k for k, v in said.items() if coerce(v, found[k][0], k) == found[k][1]]
    assert not repeated
    assert bool(said) == (target.split(".")[-2] != name)


@pytest.mark.parametrize("group", ["sampler", "view"])
def test_every_sampler_and_view_composes(group):
    for name in options(group):
        made = cell("method=bc", f"{group}={name}", *([GOAL_TASK] if name == "goal" else []))
        built = option_of(group, made.pipeline[group]["name"])
        if built:
            settings = {k: v for k, v in made.pipeline[group].items() if k != "name"}
            assert settings.keys() <= inspect.signature(built).parameters.keys()


WITH_TASKS = [name for name in options("suite") if read_option("suite", name)["tasks"]]


@pytest.mark.parametrize("name", WITH_TASKS)
def test_every_suite_plans_all_its_cells_once(name):
    p = plan([f"suite={name}"], bench=True)
    only = p.suite.get("only") or {}
    assert all(name in options("method") for name in only)
    wanted = [
        entry
        for entry in p.suite["methods"]
        for task in p.suite["tasks"]
        if any(fnmatch(task, pattern) for pattern in only.get(entry.split("+")[0], ["*"]))
    ]
    assert [c.entry for c in p.cells] == wanted
    assert {c.method for c in p.cells} == {e.split("+")[0] for e in p.suite["methods"]}
    ids = [run.run_id for c in p.cells for run in c.runs()]
    assert len(set(ids)) == len(ids)
    # a plan leaves the ranges of what offbench ships to this test
    for made in p.cells:
        build_method(made)


def test_layers_win_in_order_and_say_where_a_value_came_from():
    plain, changed = cell("method=iql"), cell("method=iql", "method.lr=0.5", "batch_size=8")
    assert (
        plain.hparams["hidden"] == (64, 64)
        and plain.recorded_sources["method.hidden"] == "suite quick"
    )
    assert (
        plain.hparams["expectile"] == 0.7
        and plain.recorded_sources["method.expectile"] == "default"
    )
    assert changed.hparams["lr"] == 0.5 and changed.recorded_sources["method.lr"] == "command line"
    assert changed.pipeline["batch_size"] == 8 and plain.pipeline["batch_size"] == 64
    assert plain.tuning["how"] == "suite" and changed.tuning["how"] == "user"
    assert plain.entry == "iql" and changed.entry == "iql(lr=0.5,batch_size=8)"


def test_a_setting_may_be_that_of_another_once_all_layers_are_said():
    refers = "method.actor_decay_steps=${n_updates}"
    for n in (4000, 70):
        made = cell("method=iql", refers, f"n_updates={n}")
        spelt = cell("method=iql", f"method.actor_decay_steps={n}", f"n_updates={n}")
        assert made.hparams["actor_decay_steps"] == n
        assert made.runs()[0].run_id == spelt.runs()[0].run_id
    both = cell(
        "method=iql",
        "eval.episodes=7",
        "eval.monitor_at=[0.5]",
        "eval.monitor_episodes=${eval.episodes}",
    )
    assert both.protocol["monitor_episodes"] == 7
    with pytest.raises(
        UserError, match=r"actor_decay_steps=\$\{n_update\}.*did you mean 'n_updates'"
    ):
        cell("method=iql", "method.actor_decay_steps=${n_update}")
    with pytest.raises(UserError, match="must be a whole number"):
        cell("method=iql", "method.actor_decay_steps=${method.hidden}")


def test_an_entry_composes_a_method_with_a_sampler_and_a_view():
    p = plan([HOPPER, "methods=[iql+aw+nstep3,bc+top10]"], bench=True)
    first, second = p.cells
    assert first.pipeline["view"] == {"name": "nstep", "n": 3}
    assert first.pipeline["sampler"]["name"] == "aw"
    assert second.pipeline["sampler"] == {
        "name": "top",
        "fraction": 0.1,
        "by": "trajectories",
    }
    spelt = cell("method=iql", "sampler=aw", "view=nstep", "view.n=3")
    assert (
        spelt.runs()[0].run_id == first.runs()[0].run_id
    )  # the same run, however it was asked for


def test_a_choice_sweep_makes_one_row_per_value():
    p = plan([HOPPER, "method=iql", "method.expectile=0.7,0.9"], bench=False)
    assert [c.entry for c in p.cells] == ["iql(expectile=0.7)", "iql(expectile=0.9)"]


def test_every_setting_that_changes_a_result_changes_the_run_id():
    base = cell("method=iql").runs()[0].run_id
    for change in (
        "method.expectile=0.8",
        "batch_size=128",
        "gamma=0.9",
        "n_updates=10",
        "sampler=aw",
        "view.n=2",
        "transforms={}",
        "eval.episodes=3",
        "eval.envs=3",
        "seeds=[7]",
    ):
        assert cell("method=iql", change).runs()[0].run_id != base, change
    for same in (
        "jobs=1",
        "results=elsewhere",
        "logger=wandb",
        "engine=vmap",
        "label=mine",
        "method.expectile=0.70",
    ):
        assert cell("method=iql", same).runs()[0].run_id == base, same


def test_a_cell_travels_to_another_process():
    made = cell("method=iql", "sampler=aw")
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("overrides", "labels"),
    [
        (["methods=[td3_bc,iql]", "method.alpha=1"], ["td3_bc(alpha=1)", "iql"]),
        (["methods=[td3_bc,bc+top10]", "sampler.fraction=0.2"],
         ["td3_bc", "bc+top10(sampler.fraction=0.2)"]),
        (["methods=[td3_bc,td3_bc+chunk5]", "view.n=3"], ["td3_bc(view.n=3)", "td3_bc+chunk5"]),
        (["methods=[td3_bc,td3_bc+pgd]", "synthetic.every=5"],
         ["td3_bc", "td3_bc+pgd(synthetic.every=5)"]),
        # both ways to write a sweep: an entry without the setting is planned once
        (["methods=[td3_bc,iql]", "method.alpha=[1,2]"],
         ["td3_bc(alpha=1)", "td3_bc(alpha=2)", "iql"]),
        (["methods=[td3_bc,iql]", "method.alpha=1,2", "method.expectile=0.6,0.8"],
         ["td3_bc(alpha=1)", "iql(expectile=0.6)", "iql(expectile=0.8)", "td3_bc(alpha=2)"]),
        (["methods=[offbench.methods.iql.IQL,bc]", "method.expectile=0.8"],
         ["IQL(expectile=0.8)", "bc"]),
    ],
)  # fmt: skip
def test_a_setting_that_only_some_entries_have_is_theirs_alone(overrides, labels):
    cells = plan([*overrides, "task=offbench/hopper/medium-replay-v0"], bench=True).cells
    assert [cell.entry for cell in cells] == labels
    key = overrides[1].partition("=")[0]
    assert {key in cell.overrides for cell in cells} == {True, False}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["methods=[td3_bc,iql]", "method.alhpa=1"], "did you mean 'method.alpha'"),
        (["methods=[td3_bc,bc+top10]", "sampler.share=1"], "unknown setting 'sampler.share'"),
        # asked for twice is still a mistake
        (["methods=[iql,iql,td3_bc]", "method.alpha=1"], "iql on .* is asked for twice"),
        # one run cannot be two rows, and two runs not one
        (
            ["methods=[iql,iql+nstep1]", "task=d4rl/hopper-medium-v2"],
            r"iql and iql\+nstep1 .* same runs",
        ),
        (["methods=[bc]", "label=x,y"], "x and y on .* are the same runs under two names"),
        (["methods=[bc]", "n_updates=100,200"], "n_updates=100 and n_updates=200 under one label"),
        (["methods=[bc,iql]", "label=mine"], "mine on .* as the label of several entries"),
        (["methods=[bc]", "label=iql+aw"], r"label=iql\+aw: iql is another method than bc"),
        (["methods=[bc]", "label='bc '"], "label='bc ' begins or ends with a space"),
        (["transforms=[[obs_norm]]"], r"\['obs_norm'\] in a list must be a name"),
        (["transforms=[{obs_norm: {eps: 1}}]"], "in a list must be a name; options are written"),
        (["transforms=[obs_norm,obs_norm]"], "has obs_norm twice"),
        (["methods=[td3_bc]", "method=iql"], r"method=iql or methods=\[td3_bc\]: give one of them"),
        (["methd=iql"], "unknown setting 'methd'; did you mean 'method'"),
        (["gamma=null"], "gamma=null must be a number"),
    ],
)
def test_entries_and_their_settings_are_told_apart(overrides, message):
    with pytest.raises(UserError, match=message):
        plan([*overrides, "task=offbench/hopper/medium-replay-v0"], bench=True)


def test_run_says_where_several_methods_go():
    with pytest.raises(UserError, match=r"offbench bench; offbench run takes one, method=NAME"):
        plan(["methods=[td3_bc,iql]"], bench=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=iqll"], "unknown method 'iqll': did you mean 'iql'"),
        (["method=iql", "method.expectil=0.9"], "did you mean 'method.expectile'"),
        (["method=iql", "expectile=0.9"], "did you mean 'method.expectile'"),
        (["method=bc", "method.expectile=0.9"], "unknown setting 'method.expectile'"),
        (["method=iql", "sampler=awe"], "unknown sampler 'awe': did you mean 'aw'"),
        (["method=iql", "view=chunks"], "unknown view 'chunks': did you mean 'chunk'"),
        (["method=iql", "suite=quik"], "unknown suite 'quik': did you mean 'quick'"),
        (["method=iql", "task=hopper"], "unknown task 'hopper'"),
        (["method=iql", "method.lr=fast"], "method.lr='fast' must be a number"),
        (
            ["method=iql", "method.hidden=64"],
            "method.hidden=64 must be a list of whole numbers, as in method.hidden=[64]",
        ),
        (
            ["method=iql", "seeds=0,1,2"],
            "seeds=0,1,2 is a sweep of 3, and not a list: seeds=[0,1,2]",
        ),
        (["methods=bc,iql"], "is a sweep of 2, and not a list: methods=[bc,iql]"),
        (["method=iql", "logger=[wandb,wandb]"], "logger=[wandb,wandb] has duplicates"),
        (["method=iql", "logger=[wandb,none]"], "none is no logger beside others"),
        (
            ["method=bc", "transforms.obs_norm.eps=-1"],
            "transforms.obs_norm.eps=-1 must be at least 0",
        ),
        (
            ["method=bc", "transforms={reward_range: {scale: 0}}"],
            "transforms.reward_range.scale=0 must be above 0",
        ),
        (
            ["method=bc", "task=mix@.5:offbench/hopper/medium-v0:offbench/halfcheetah/expert5-v0"],
            "offbench/hopper/medium-v0 in Hopper-v5, offbench/halfcheetah/expert5-v0 in HalfCheetah-v5",
        ),
        (["method=iql", "method.hidden=[64,1.5]"], "method.hidden[1]=1.5 must be a whole number"),
        (["method=iql", "batch_size=0"], "batch_size=0 must be at least 1"),
        (["method=iql", "gamma=1.5"], "gamma=1.5 must lie in [0, 1]"),
        (["method=iql", "seeds=[]"], "seeds must name at least one seed"),
        (["method=iql", "seeds=[1,1]"], "seeds=[1, 1] has duplicates"),
        (["method=iql", "seeds=3"], "seeds=3 must be a list of whole numbers"),
        (["method=iql", "seeds=[-1]"], "a seed is a whole number >= 0"),
        (["method=iql", "n_updates=0"], "n_updates=0 must be at least 1"),
        (["method=iql", "eval.episodes=0"], "eval.episodes=0 must be at least 1"),
        (["method=iql", "eval.monitor_at=[1.5]"], "1.5 is not a fraction of training"),
        (["method=iql", "engine=fast"], "unknown value 'fast'"),
        (["method=iql", "logger=tensorbord"], "logger='tensorbord' must be 'none' or 'wandb'"),
        (["method=iql", "eval.monitor_at=[0.5,0.2]"], "eval.monitor_at=[0.5, 0.2] must ascend"),
        (["method=iql", "eval.monitor_at=[0.5]", "eval.monitor_episodes=0"], "must be at least 1"),
        (
            ["method=iql", "eval.monitor_at=[0.2,0.5]", "eval.monitor_episodes=[1,2,3]"],
            "must be one number, or one for each of eval.monitor_at=[0.2, 0.5]",
        ),
        (["method=iql", "sink=wandb"], "setting 'sink' is now called 'logger'"),
        (
            ["method=iql", "transforms=[obs_nrm]"],
            "unknown transform 'obs_nrm': did you mean 'obs_norm'",
        ),
        (["method=iql", "suite.tasks=[]"], "a published suite is not edited"),
        (["method=iql", "+method.x=1"], "settings are replaced"),
        (["method=iql", "nonsense"], "cannot read 'nonsense'"),
        (["seeds=[0]"], "method= is missing: "),
        (["method=iql", "method.lr=-1"], "method.lr=-1 must be above 0"),
        (["method=iql", "method.expectile=1.5"], "method.expectile=1.5 must be in (0, 1)"),
        (
            ["method=cgq", "method.anchor_expectile=2"],
            "method.anchor_expectile=2 must be in (0, 1)",
        ),
        (["method=dqc", "method.backup_quantile=1"], "method.backup_quantile=1 must be in (0, 1)"),
        (["method=iql", "method.expectile=[0.7,1]"], "method.expectile=1 must be in (0, 1)"),
        (["method=rebrac", "method.polyak_rate=2"], "method.polyak_rate=2 must be in (0, 1]"),
        (
            ["method=bc", "method.hidden=[64,0]"],
            "method.hidden=(64,0) must be widths of at least 1",
        ),
        (["method=sac_n", "method.n_critics=0"], "n_critics=0 must be at least 1"),
        (["method=qc", "method.n_proposals=0"], "method.n_proposals=0 must be at least 1"),
        (
            ["method=dt", "method.heads=3"],
            "must be a multiple of method.heads=3",
        ),
        (
            ["method=bc", "weight=dw", "weight.temperature=0"],
            "weight.temperature=0 must be above 0",
        ),
        (["method=bc", "transforms.obs_norm.epsilon=1"], "unknown option of transforms.obs_norm"),
        (["method=bc", "transforms={obs_norm: 3}"], "transforms.obs_norm=3 must be its options"),
        (
            ["method=bc", "transforms.reward_affine.scale=two"],
            "transforms.reward_affine.scale='two' must be a number",
        ),
        (["method=bc", "precision=bf16", "engine=vmap"], "precision=bf16 needs a traced engine"),
        (["method=bc", "task=data.hdf5"], "task.data=data.hdf5 task.env=HalfCheetah-v5"),
        (["method=iql+aw+rw"], "'iql+aw+rw' names two samplers, aw and rw"),
        (["method=iql+nstep3+chunk5"], "names two views, nstep3 and chunk5"),
        (["method._target_=nowhere.Method"], "no module named 'nowhere'"),
        (["method._target_=offbench.methods.iql.IQLL"], "did you mean 'IQL'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(overrides, message):
    base = [] if any(o.startswith("task=") for o in overrides) else [HOPPER]
    with pytest.raises(UserError) as error:
        plan([*base, *overrides], bench=False)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_entries_of_a_bench_that_do_not_exist_are_named():
    for entry, message in (("iql+awe", "did you mean 'aw'"), ("ikl", "unknown method 'ikl'")):
        with pytest.raises(UserError, match=message):
            plan([f"methods=[{entry}]"], bench=True)
    with pytest.raises(UserError, match="asked for twice"):
        plan(["methods=[bc,bc]"], bench=True)


def test_null_switches_a_transform_off_on_the_command_line_and_in_a_preset():
    assert cell("method=iql").pipeline["transforms"] == {"obs_norm": {}}
    assert cell("method=iql", "transforms.obs_norm=null").pipeline["transforms"] == {}
    made = plan(["method=cql", "task=d4rl/antmaze-umaze-v2"], bench=False).cells[0]
    assert made.pipeline["transforms"] == {"reward_affine": {"scale": 10.0, "shift": -5.0}}


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        (["transforms=[obs_norm]"], "bc"),
        (["transforms={obs_norm: {}}"], "bc"),
        (["transforms.obs_norm={}"], "bc"),
        (["method.lr=1e-3", "batch_size=64", "gamma=0.99", "precision=float32"], "bc"),
        (["transforms=[]"], "bc(transforms=[])"),
        (["method.lr=3e-4"], "bc(lr=0.0003)"),  # its yaml's; the suite has another
        (["transforms=[obs_norm]", "method.lr=0.5"], "bc(lr=0.5)"),
    ],
)
def test_a_setting_that_changes_nothing_is_not_in_the_label(settings, label):
    made = cell("method=bc", *settings)
    assert made.entry == label
    assert (made.runs()[0].run_id == run_id()) == (label == "bc")


def test_a_setting_that_changes_one_task_of_several_is_in_the_label_of_all():
    changed = plan(["methods=[iql]", "method.expectile=0.9"], bench=True)  # the pointmaze has it
    assert {c.entry for c in changed.cells} == {"iql(expectile=0.9)"}
    both = f"{HOPPER},offbench/pointmaze-medium-navigate-v0"
    swept = plan([both, "method=iql", "method.expectile=0.9"], bench=False)
    assert {c.entry for c in swept.cells} == {"iql(expectile=0.9)"} and len(swept.cells) == 2


def test_a_target_return_is_left_to_the_data_preset_or_swept():
    assert cell("method=dt").pipeline["view"]["target_return"] is None
    preset = plan(["task=d4rl/hopper-medium-v2", "method=dt"], bench=False).cells[0]
    assert preset.pipeline["view"]["target_return"] == 3600.0
    assert preset.pipeline["view"]["return_scale"] == 0.001
    swept = plan([HOPPER, "method=dt", "view.target_return=[1800,3600]"], bench=False).cells
    assert [c.pipeline["view"]["target_return"] for c in swept] == [1800.0, 3600.0]
    assert len({c.entry for c in swept}) == 2


# --- what makes two runs one


def run_id(*overrides: str) -> str:
    return cell("method=bc", *overrides).runs()[0].run_id


@pytest.mark.parametrize(
    "setting",
    [
        "precision=bf16",
        "precision=tf32",
        "transforms=[]",
        "transforms.obs_norm.eps=0.1",
        "view.n=2",
        "sampler=aw",
        "weight=dw",
        "batch_size=8",
        "gamma=0.9",
        "n_updates=7",
        "method.lr=0.5",
        "eval.episodes=2",
        "seeds=[1]",
    ],
)
def test_what_changes_a_result_changes_its_name(setting):
    assert run_id(setting) != run_id()


@pytest.mark.parametrize(
    "setting", ["engine=eager", "jobs=1", "data=host", "max_stack=1", "precision=float32"]
)
def test_how_a_result_is_computed_does_not(setting):
    assert run_id(setting) == run_id()


def test_the_order_of_two_reward_transforms_is_part_of_the_name():
    shift, scale = "reward_affine: {shift: -1}", "reward_range: {}"
    both = lambda a, b: run_id(f"transforms={{{a}, {b}}}")
    assert both(shift, scale) != both(scale, shift)
    norm = "obs_norm: {}"  # of observations: before or after is the same
    assert both(norm, shift) == both(shift, norm)


def test_how_own_data_are_scored_is_part_of_the_name():
    from offbench.tasks.locate import load_task

    path = load_task("offbench/hopper/medium-replay-v0").path
    own = lambda *more: plan(["method=bc", f"task.data={path}", *more], bench=False).cells[0]
    others = ("task.ref_max=5000", "task.score=success", "task.max_episode_steps=50")
    ids = [own(*more).runs()[0].run_id for more in ([], *([x] for x in others))]
    assert len(set(ids)) == 4


@pytest.mark.parametrize("group", ["method", "sampler", "view", "weight", "synthetic", "suite"])
def test_a_file_that_is_read_without_hydra_says_what_hydra_composes(group):
    for name in options(group):
        composed = compose_conf(f"{group}={name}")
        assert read_option(group, name) == (composed if group == "method" else composed[group]), (
            name
        )
