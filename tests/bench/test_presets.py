"""Presets: every row applies somewhere, sets what exists, says its source, and has the published values."""

import csv
import inspect
import io
from collections import defaultdict

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import SHARED

from offbench.bench.hydra import conf_dir, options, read_option
from offbench.bench.plan import plan
from offbench.bench.presets import preset_table, yaml_presets
from offbench.bench.targets import locate
from offbench.data import transforms
from offbench.data.composition import MIXED
from offbench.data.replay import Episode, from_episodes, from_flat
from offbench.data.transforms import TRANSFORMS, reward_range
from offbench.errors import UserError
from offbench.tasks import registry
from offbench.tasks.formats import d4rl
from offbench.tasks.locate import load_task

CORL = SHARED / "reference/corl_hparams.csv"
TABLES = [name for name in options("method") if preset_table(name)]
ROWS = [
    (name, preset)
    for name in options("method")
    for preset in (
        *preset_table(name),
        *yaml_presets(read_option("method", name).get("presets") or ()),
    )
]
UNLISTED = tuple(  # known all the same
    f"ogbench/{name}-singletask-task1-v0"
    for name in ("cube-quadruple-play-100m", "scene-play-sparse", "puzzle-3x3-play-sparse")
)

SUITE = "suite=d4rl-gym-9"  # the protocol that CORL's numbers have; the task is given apart


def cell(method: str, task: str, *overrides: str):
    return plan([SUITE, f"methods=[{method}]", f"task={task}", *overrides], bench=True).cells[0]


def test_every_table_belongs_to_a_method():
    assert {p.stem for p in (conf_dir() / "presets").iterdir()} == set(TABLES)
    assert len(ROWS) > 50


@pytest.mark.parametrize(
    "name, preset",
    ROWS,
    ids=[f"{n}:{p.task.split()[0]}{'@' + p.by if p.by else ''}" for n, p in ROWS],
)
def test_a_row_is_used_by_a_task_and_sets_what_exists(name, preset):
    around = lambda p: (p.by, p.around)
    same = [p for n, p in ROWS if n == name and around(p) == around(preset)]
    first = lambda task: next(p for p in same if p.fits(task))
    known = {i: i for i in (*registry.ids(), *UNLISTED)} | dict(MIXED)
    tasks = [i for i, made in known.items() if preset.fits(made) and first(made) is preset]
    assert tasks, "no listed dataset reaches this row"
    task = next(i for i in tasks if load_task(i).refused is None)
    for words in preset.around:
        check_row(
            preset,
            cell("+".join(filter(None, (name, words))), task, f"preset={preset.by or 'usual'}"),
        )


def check_row(preset, made):
    locate(made.target)(**made.hparams)
    for key, value in preset.settings.items():
        if key == "transforms" or key.startswith("transforms."):
            continue
        got = {"batch_size": made.pipeline["batch_size"], "gamma": made.pipeline["gamma"]}
        got |= {"n_updates": made.n_updates} | {
            f"{group}.{k}": v
            for group, values in (("method", made.hparams), ("view", made.pipeline["view"]))
            for k, v in values.items()
        }
        want = made.n_updates if value == "${n_updates}" else value
        assert got[key] == (tuple(want) if isinstance(want, list) else coerced(want)), key
        by = f"preset={preset.by}" if preset.by else "preset"
        assert made.recorded_sources[key] == f"{by} ({preset.source})"
    for transform, options_ in made.pipeline["transforms"].items():
        assert options_.keys() <= inspect.signature(TRANSFORMS[transform]).parameters.keys()
    assert (made.tuning["how"], made.tuning["source"]) == ("task preset", preset.source)
    assert made.tuning["preset"] == preset.source and made.tuning["overridden"] == []
    assert len(preset.source) > 10 and preset.source != "no source"


def coerced(value):
    """A yaml's 3e-4 is text there."""
    return float(value) if isinstance(value, str) and value[:1].isdigit() else value


def test_a_row_adds_transforms_or_replaces_those_of_the_method():
    transforms = lambda *names: cell(*names).pipeline["transforms"]
    shift = {"reward_affine": {"shift": -1}}
    assert transforms("iql", "d4rl/antmaze-umaze-v2") == {"obs_norm": {}} | shift
    assert transforms("xql", "d4rl/antmaze-umaze-v2") == shift
    assert transforms("iql", "d4rl/kitchen-mixed-v0") == {}


@pytest.mark.parametrize(
    ("task", "n_values", "layer_norm"),
    [
        ("d4rl/hopper-medium-v2", 2, True),
        ("d4rl/antmaze-umaze-v2", 2, False),
        ("d4rl/antmaze-umaze-diverse-v2", 1, False),
        ("d4rl/antmaze-medium-diverse-v2", 2, False),
        ("d4rl/antmaze-large-play-v2", 1, False),
    ],
)
def test_odice_has_its_authors_values_and_rewards(task, n_values, layer_norm):
    made = cell("odice", task)
    assert made.hparams["n_values"] == n_values and made.hparams["layer_norm"] == layer_norm
    # 1 at the goal and 0 elsewhere become 0 and -3
    paid = {"reward_affine": {"scale": 3, "shift": -3}}
    assert made.pipeline["transforms"] == ({"reward_range": {}} if layer_norm else paid)


@pytest.mark.parametrize("version", ["v0", "v1", "v2"])
def test_rewards_of_every_antmaze_that_pays_a_goal_are_shifted(version):
    shift = {"obs_norm": {}, "reward_affine": {"shift": -1}}
    for task in (f"d4rl/antmaze-umaze-{version}", "minari/D4RL/antmaze/umaze-v1"):
        made = cell("iql", task)
        # CORL, whose settings those of v2 are, normalises observations; Kostrikov et al. do not
        corls = task == "d4rl/antmaze-umaze-v2"
        kept = shift if corls else {"reward_affine": {"shift": -1}}
        assert made.pipeline["transforms"] == kept and made.hparams["expectile"] == 0.9
        for name in ("td3_bc", "awac"):
            assert cell(name, task).pipeline["transforms"] == shift
    made = cell("iql", "ogbench/antmaze-large-navigate-singletask-task1-v0")  # -1 until the goal
    assert made.pipeline["transforms"] == {"obs_norm": {}} and made.hparams["expectile"] == 0.9


def test_the_command_line_wins_over_a_preset_and_is_said():
    made = cell("rebrac", "d4rl/pen-human-v1", "method.actor_lr=0.5", "n_updates=1000")
    assert made.hparams["actor_lr"] == 0.5 and made.hparams["critic_bc_weight"] == 0.5
    assert made.tuning["how"] == "task preset, 2 settings overridden (actor_lr, n_updates)"
    assert made.tuning["source"] == "CORL eeeeef2, configs/offline/rebrac; command line"
    same = cell("rebrac", "d4rl/pen-human-v1", "method.actor_lr=0.0003")  # what the preset says
    assert same.tuning["how"] == "task preset"


def test_iql_learns_mixtures_as_it_did_where_they_were_published():
    """Rewards scaled to a range of returns of 1000, observations as they are."""
    for env, scaled in (("hopper", True), ("walker2d", True), ("ant", False)):
        made = cell("iql+aw", f"mixed/{env}-random-expert-5-v2")
        split = {"reward_range": {"corl_compat_split": False}} if scaled else {}
        assert made.pipeline["transforms"] == split and made.hparams["actor_decay_steps"] > 0


def test_settings_for_medium_sets_are_not_options_out_as_those_of_others():
    for name in ("sac_n", "edac"):
        for kind, how in (("medium-replay", "task preset"), ("random", "default")):
            made = cell(name, f"d4rl/hopper-{kind}-v2")
            assert made.tuning["how"] == how and (made.hparams["n_critics"] > 10) == (
                kind != "random"
            )


def test_settings_of_the_paper_are_used_where_they_are_asked_for_and_differ():
    usual, paper = (
        cell("edac", "d4rl/pen-cloned-v1"),
        cell("edac", "d4rl/pen-cloned-v1", "preset=paper"),
    )
    assert not usual.hparams["max_target_backup"] and usual.hparams["actor_lr"] == 3e-4
    assert paper.hparams["max_target_backup"] and paper.hparams["actor_lr"] == 3e-5
    assert (usual.pipeline["transforms"], paper.pipeline["transforms"]) == (
        {},
        {"reward_standard": {}},
    )
    assert (usual.entry, paper.entry) == ("edac", "edac(preset=paper)")
    assert paper.tuning["how"] == "task preset" and "snu-mllab/EDAC" in paper.tuning["source"]
    same = cell("edac", "d4rl/hopper-medium-v2")
    made = plan(
        [SUITE, "methods=[edac,iql]", "task=d4rl/hopper-medium-v2", "preset=paper"], bench=True
    ).cells
    assert made[0].hparams == same.hparams  # no such row: the usual one
    assert made[1].hparams["value_first"] and made[1].pipeline["transforms"] == {
        "reward_range": {"corl_compat_split": False}
    }


def test_presets_can_be_compared_and_switched_off():
    made = plan(
        [SUITE, "method=rebrac", "task=d4rl/hopper-medium-v2", "preset=usual,paper"],
        bench=False,
    ).cells
    assert [c.entry for c in made] == ["rebrac", "rebrac(preset=paper)"]
    made += (cell("rebrac", "d4rl/hopper-medium-v2", "preset=none"),)
    assert [c.hparams["critic_bc_weight"] for c in made] == [0.01, 0.001, 0.01]
    maze = [cell("rebrac", "d4rl/antmaze-umaze-v2", f"preset={p}") for p in ("usual", "none")]
    assert [c.pipeline["gamma"] for c in maze] == [0.999, 0.99]
    assert [c.tuning["how"] for c in made] == ["task preset", "task preset", "default"]


def test_settings_of_a_paper_that_nothing_asked_for_has_are_refused():
    with pytest.raises(
        UserError, match=r"^preset=paper: no row of these .* rebrac \(d4rl/hopper-expert-v2"
    ):
        cell("td3_bc", "d4rl/hopper-medium-v2", "preset=paper")
    with pytest.raises(UserError, match="unknown value 'papr': did you mean 'paper'"):
        cell("rebrac", "d4rl/hopper-medium-v2", "preset=papr")


@pytest.mark.parametrize("name", ["iql", "xql"])
def test_the_actors_rate_decays_over_the_whole_run_however_long(name):
    """As in the authors' codes and CORL's, whose runs have one length."""
    for n in (1_000_000, 50_000):
        made = cell(name, "d4rl/hopper-medium-v2", f"n_updates={n}")
        assert made.hparams["actor_decay_steps"] == n
    fixed = cell(name, "d4rl/hopper-medium-v2", "n_updates=50000", "method.actor_decay_steps=7")
    assert fixed.hparams["actor_decay_steps"] == 7


def test_a_task_without_a_row_has_the_methods_own_settings():
    made = cell("rebrac", "offbench/hopper/medium-replay-v0")
    assert made.hparams["actor_bc_weight"] == 0.01 and made.tuning["how"] != "task preset"


# --- against CORL's own configuration files


def published() -> dict[tuple[str, str], dict[str, str]]:
    """(algorithm, dataset) -> key -> value as text."""
    table = defaultdict(dict)
    if CORL.exists():
        with CORL.open(newline="") as file:
            for row in csv.DictReader(file):
                stage = (
                    "finetune" if row["algo"] == "cal_ql" else "offline"
                )  # of which it is the first part
                if row["stage"] == stage and row["algo"] in EXPECTED:
                    table[row["algo"], row["dataset"]][row["key"]] = row["value"]
    return {k: v for k, v in table.items() if f"d4rl/{k[1]}" in registry.ids()}


def number(v, key, default=None):
    return float(v.get(key) or default)


def reward(v, dataset) -> dict:
    """What `normalize_reward` means: antmaze shifted by -1, locomotion scaled by the range of returns."""
    if v.get("normalize_reward") != "True":
        return {}
    shift = {"reward_affine": {"shift": -1}}
    return shift if "antmaze" in dataset else {"reward_range": {"corl_compat_split": True}}


def bc(v, dataset):
    return {}, {"obs_norm": {}}, {"batch_size": number(v, "batch_size")}


def td3_bc(v, dataset):
    hparams = {
        "alpha": number(v, "alpha"),
        "policy_noise": number(v, "policy_noise"),
        "noise_clip": number(v, "noise_clip"),
        "polyak_rate": number(v, "tau"),
    }
    own = {"batch_size": number(v, "batch_size"), "gamma": number(v, "discount")}
    return hparams, {"obs_norm": {}} | reward(v, dataset), own


def iql(v, dataset):
    assert v["vf_lr"] == v["qf_lr"] == v["actor_lr"] and v["normalize"] == "True"
    hparams = {
        "expectile": number(v, "iql_tau"),
        "inverse_temperature": number(v, "beta"),
        "polyak_rate": number(v, "tau"),
        "lr": number(v, "vf_lr"),
        "deterministic": v["iql_deterministic"] == "True",
        "actor_dropout": number(v, "actor_dropout", 0),
        "actor_decay_steps": 1_000_000,  # its actor's rate always decays, over all updates
        "value_first": False,
    }
    own = {"batch_size": number(v, "batch_size"), "gamma": number(v, "discount")}
    return hparams, {"obs_norm": {}} | reward(v, dataset), own


def awac(v, dataset):
    hparams = {
        "temperature": number(v, "awac_lambda"),
        "polyak_rate": number(v, "tau"),
        "lr": number(v, "learning_rate"),
        "hidden": (int(v["hidden_dim"]),) * 3,
    }
    own = {"batch_size": number(v, "batch_size"), "gamma": number(v, "gamma")}
    return hparams, {"obs_norm": {}} | reward(v, dataset), own


def rebrac(v, dataset):
    assert v["actor_ln"] == "False" and v["critic_ln"] == "True" and v["normalize_q"] == "True"
    assert v["actor_n_hiddens"] == v["critic_n_hiddens"] and v["normalize_states"] == "False"
    hparams = {
        "actor_bc_weight": number(v, "actor_bc_coef"),
        "critic_bc_weight": number(v, "critic_bc_coef"),
        "actor_lr": number(v, "actor_learning_rate"),
        "critic_lr": number(v, "critic_learning_rate"),
        "policy_noise": number(v, "policy_noise"),
        "noise_clip": number(v, "noise_clip"),
        "polyak_rate": number(v, "tau"),
        "hidden": (int(v["hidden_dim"]),) * int(v["critic_n_hiddens"]),
    }
    hundred = {"reward_affine": {"scale": 100}} if v["normalize_reward"] == "True" else {}
    return hparams, hundred, {"batch_size": number(v, "batch_size"), "gamma": number(v, "gamma")}


def cql(v, dataset):
    assert (
        v["bc_steps"] == "0" and v["cql_clip_diff_max"] == "inf" and v["orthogonal_init"] == "True"
    )
    lagrange = v["cql_lagrange"] == "True"
    hparams = {
        "conservative_weight": number(v, "cql_alpha"),
        "n_actions": number(v, "cql_n_actions"),
        "softmax_temperature": number(v, "cql_temp"),
        "importance_sampling": v["cql_importance_sample"] == "True",
        "clip_diff_min": None
        if v["cql_clip_diff_min"] == "-inf"
        else number(v, "cql_clip_diff_min"),
        "lagrange": lagrange,
        "calibrated": False,
        "max_target_backup": v["cql_max_target_backup"] == "True",
        "entropy_backup": v["backup_entropy"] == "True",
        "polyak_rate": number(v, "soft_target_update_rate"),
        "actor_lr": number(v, "policy_lr"),
        "critic_lr": number(v, "qf_lr"),
        "critic_hidden": None if v["q_n_hidden_layers"] == "3" else (256,) * 5,
    } | ({"target_gap": number(v, "cql_target_action_gap")} if lagrange else {})
    transforms = {"obs_norm": {}} if v["normalize"] == "True" else {}
    if v["normalize_reward"] == "True":
        affine = {"scale": number(v, "reward_scale"), "shift": number(v, "reward_bias")}
        scaled = {"reward_range": {"corl_compat_split": True}}
        transforms |= {"reward_affine": affine} if "antmaze" in dataset else scaled
    own = {"batch_size": number(v, "batch_size"), "gamma": number(v, "discount")}
    return hparams, transforms, own


def cal_ql(v, dataset):
    hparams, transforms, own = cql(v, dataset)
    sparse = v["is_sparse_reward"] == "True"
    return hparams | {"calibrated": True, "sparse_rewards": sparse}, transforms, own


def sac_n(v, dataset):
    assert v["actor_learning_rate"] == v["alpha_learning_rate"] and v["normalize_reward"] == "False"
    hparams = {
        "n_critics": number(v, "num_critics"),
        "diversity_weight": number(v, "eta") if "eta" in v else None,
        "polyak_rate": number(v, "tau"),
        "actor_lr": number(v, "actor_learning_rate"),
        "critic_lr": number(v, "critic_learning_rate"),
        "hidden": (int(v["hidden_dim"]),) * 3,
    }
    return hparams, {}, {"batch_size": number(v, "batch_size"), "gamma": number(v, "gamma")}


def dt(v, dataset):
    """Locomotion is usually as in the authors' code: CORL's batches, loss and activation are preset=corl."""
    hparams = {
        "width": number(v, "embedding_dim"),
        "layers": number(v, "num_layers"),
        "heads": number(v, "num_heads"),
        "dropout": number(v, "residual_dropout"),
        "warmup": number(v, "warmup_steps"),
        "weight_decay": number(v, "weight_decay"),
        "max_grad_norm": number(v, "clip_grad"),
    }
    view = {
        "name": "window",
        "k": number(v, "seq_len"),
        "target_return": yaml.safe_load(v["target_returns"])[0],
        "return_scale": number(v, "reward_scale"),
    }
    hparams |= {"lr": number(v, "learning_rate"), "loss_over": "window", "activation": "gelu"}
    own = {"view": view, "batch_size": number(v, "batch_size")}
    return hparams, {"obs_norm": {"eps": 1e-6}}, own


EXPECTED = {
    "bc": bc,
    "td3_bc": td3_bc,
    "iql": iql,
    "awac": awac,
    "rebrac": rebrac,
    "cql": cql,
    "cal_ql": cal_ql,
    "sac_n": sac_n,
    "edac": sac_n,
    "dt": dt,
}
COMPARED = {"sac_n": 30, "edac": 30, "dt": 30, "cal_ql": 10}  # datasets; of the others at least 39


@pytest.mark.skipif(not CORL.exists(), reason="the table of CORL's settings is not on this machine")
@pytest.mark.parametrize("algo", EXPECTED)
def test_planned_cells_have_corls_settings(algo):
    gym = ("halfcheetah", "hopper", "walker2d")
    by_name = {(a, d) for a, d in published() if a == "dt" and d.startswith(gym)}
    compared = 0
    for (name, dataset), v in published().items():
        if name != algo:
            continue
        hparams, transforms, own = EXPECTED[algo](v, dataset)
        made = cell(
            algo, f"d4rl/{dataset}", *(["preset=corl"] if (algo, dataset) in by_name else [])
        )
        assert {k: made.hparams[k] for k in hparams} == hparams, dataset
        assert made.pipeline["transforms"] == transforms, dataset
        view = own.pop("view", {})
        assert {k: made.pipeline["view"][k] for k in view} == view, dataset
        assert {k: made.pipeline[k] for k in own} == own, dataset
        compared += 1
    assert compared >= COMPARED.get(algo, 39)


# --- against the lists that other authors publish

FQL = {  # seohongpark/fql 719d0441, README: alpha, aggregation, discount
    "ogbench/antmaze-large-navigate-singletask-task1-v0": (10, "min", 0.99),
    "ogbench/antmaze-giant-navigate-singletask-task1-v0": (10, "min", 0.995),
    "ogbench/humanoidmaze-medium-navigate-singletask-task1-v0": (30, "mean", 0.995),
    "ogbench/antsoccer-arena-navigate-singletask-task4-v0": (10, "mean", 0.995),
    "ogbench/cube-double-play-singletask-task2-v0": (300, "mean", 0.99),
    "ogbench/scene-play-singletask-task2-v0": (300, "mean", 0.99),
    "ogbench/puzzle-4x4-play-singletask-task4-v0": (1000, "mean", 0.99),
    "d4rl/antmaze-umaze-v2": (10, "mean", 0.99),
    "d4rl/antmaze-medium-diverse-v2": (10, "mean", 0.99),
    "d4rl/antmaze-large-play-v2": (3, "mean", 0.99),
    "d4rl/pen-human-v1": (10000, "min", 0.99),
    "d4rl/pen-expert-v1": (3000, "min", 0.99),
    "d4rl/door-cloned-v1": (30000, "min", 0.99),
    "d4rl/hammer-human-v1": (30000, "min", 0.99),
    "d4rl/hammer-cloned-v1": (10000, "min", 0.99),
    "d4rl/relocate-human-v1": (10000, "min", 0.99),
    "d4rl/relocate-expert-v1": (30000, "min", 0.99),
}


@pytest.mark.parametrize("task", FQL)
def test_fql_has_its_authors_settings(task):
    made = cell("fql", task)
    got = made.hparams["distill_weight"], made.hparams["q_aggregate"], made.pipeline["gamma"]
    assert got == FQL[task] and made.tuning["how"] == "task preset"
    shift = {"reward_affine": {"shift": -1}} if task.startswith("d4rl/antmaze") else {}
    assert made.pipeline["transforms"] == shift  # by their envs/d4rl_utils.py
    ifql = cell("ifql", task)
    assert (ifql.pipeline["gamma"], ifql.pipeline["transforms"]) == (FQL[task][2], shift)


# --- what only published numbers need


LIMIT = 7  # of the step counter, 1000 in CORL


def corls_returns(reward, terminal, timeout) -> list[float]:
    """Row by row: what d4rl makes of a file, then what CORL makes of that."""
    kept = [  # without the step at which an episode times out, and without the last row
        (r, d) for r, d, t in zip(reward[:-1], terminal[:-1], timeout[:-1], strict=True) if not t
    ]
    returns, total, length = [], 0.0, 0
    for r, d in kept:
        total, length = total + r, length + 1
        if d or length == LIMIT:
            returns.append(total)
            total, length = 0.0, 0
    return returns


@given(
    episodes=st.lists(
        st.tuples(st.integers(1, LIMIT), st.sampled_from(["terminal", "timeout", "cut"])),
        min_size=2,
        max_size=20,
    ),
    seed=st.integers(0, 9),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_corls_returns_are_those_of_its_loop_over_the_file(episodes, seed):
    """Random files: episodes that end, that time out, and that are cut short without a mark."""
    longest = {"timeout": (LIMIT, LIMIT), "cut": (1, LIMIT - 1), "terminal": (1, LIMIT)}
    lengths = [int(np.clip(n, *longest[how])) for n, how in episodes]
    n = sum(lengths)
    rng = np.random.default_rng(seed)
    last = np.cumsum(lengths) - 1
    terminal, timeout = np.zeros(n, bool), np.zeros(n, bool)
    terminal[last] = [how == "terminal" for _, how in episodes]
    timeout[last] = [how == "timeout" for _, how in episodes]
    reward = rng.integers(1, 100, n).astype(np.float32)
    obs = rng.random((n, 1), np.float32)
    after = np.concatenate([obs[1:], obs[:1]])
    after[last] = 2.0  # which leads nowhere in the file, as in the replay sets
    raw = d4rl.Raw(obs, np.zeros((n, 1), np.float32), reward, terminal, timeout, after)
    end = d4rl.boundaries(raw, None, name="x").end
    data = from_flat(*raw[:4], end, next_obs=after[end], name="random")
    want = corls_returns(reward.tolist(), terminal.tolist(), timeout.tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "_CORL_STEPS", LIMIT)
        if want:
            assert transforms._corl_returns(data).tolist() == want
        else:
            with pytest.raises(UserError, match="corl_compat_split needs a terminal"):
                transforms._corl_returns(data)


def test_corls_range_is_that_of_its_pieces():
    rng = np.random.default_rng(0)
    one = lambda n, end: Episode(
        rng.random((n + 1, 1)),
        np.zeros((n, 1)),
        rng.random(n),
        np.arange(n) == (n - 1 if end else n),
    )
    data = from_episodes([one(700, False), one(1000, False), one(40, True), one(900, False)])
    returns = transforms._corl_returns(data)
    got = reward_range(data, corl_compat_split=True)
    assert got.scale == pytest.approx(1000 / float(returns.max() - returns.min()), rel=1e-5)
    assert got.scale != pytest.approx(reward_range(data).scale, rel=1e-3)


def test_corls_range_of_short_episodes_that_never_end_is_refused(data):
    endless = data._replace(terminal=torch.zeros_like(data.terminal))
    with pytest.raises(UserError, match="corl_compat_split needs a terminal"):
        reward_range(endless, corl_compat_split=True)


def test_cells_of_a_table_are_numbers_and_not_text():
    """`3e-4` is text in yaml, `0.0003` a number."""
    for name, preset in [(n, p) for n in TABLES for p in preset_table(n)]:
        for key, value in preset.settings.items():
            assert (
                isinstance(value, int | float | bool | dict)
                or value == "${n_updates}"
                or key
                in (
                    "method.weight_init",
                    "method.activation",
                    "method.loss_over",
                    "method.high_actor",
                )
                or (key == "view.actor_goals" and sum(value) == 1)
            ), (name, preset.task, key)
    assert yaml.safe_load("3e-4") == "3e-4"


def test_the_plan_shows_a_row_for_its_tasks_with_its_source():
    from rich.console import Console

    from offbench.cli import plan as cli

    console = Console(width=500, record=True, file=io.StringIO())
    cli._print_values(plan(["suite=d4rl-antmaze", "methods=[rebrac,bc]"], bench=True), console)
    text = console.export_text()
    lines = [x.rstrip() for x in text.splitlines() if "actor_bc_weight" in x]
    assert len(lines) == 3 and all("preset [1]" in line for line in lines)
    assert "\n[1] preset (CORL eeeeef2, configs/offline/rebrac)\n" in text
    medium = "rebrac on d4rl/antmaze-medium-play-v2, d4rl/antmaze-medium-diverse-v2"
    assert next(line for line in lines if " 0.001 " in line).endswith(medium)
