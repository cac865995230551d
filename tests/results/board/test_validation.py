"""Data without an environment: training, validation metrics on held-out episodes, no ranking."""

import numpy as np
import pytest
import torch

from offbench import rng
from offbench.cli import main
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import fingerprint
from offbench.data.views import Chunk, Window
from offbench.errors import UserError
from offbench.methods.bc import BC
from offbench.methods.dt import DT
from offbench.methods.td3_bc import TD3BC
from offbench.results.store import Store
from offbench.tasks.custom import own_task
from offbench.tasks.loading import load_data
from offbench.testing.contract import fake_data
from offbench.training.held_out import Validation, split
from offbench.training.step import initial_carry, unstack

TINY = [
    "method.hidden=[8]",
    "batch_size=16",
    "n_updates=40",
    "jobs=1",
    "engine=eager",
    "seeds=[0,1]",
]


@pytest.fixture
def log(tmp_path):
    """A file of logged decisions, in units of its own."""
    generator, n = np.random.default_rng(0), 1000
    end = np.arange(n) % 50 == 49
    np.savez(
        tmp_path / "log.npz",
        observations=generator.normal(size=(n, 4)).astype(np.float32),
        actions=generator.uniform([0, -3], [50, 3], (n, 2)).astype(np.float32),
        rewards=generator.random(n).astype(np.float32),
        terminals=end & (np.arange(n) % 100 == 99),
        timeouts=end & (np.arange(n) % 100 != 99),
    )
    return tmp_path / "log.npz"


def test_a_file_alone_is_trained_on_and_the_board_ranks_nothing(log, tmp_path, capsys):
    args = [f"task.data={log}", f"results={tmp_path / 'r'}", *TINY]
    assert main(["bench", "methods=[bc,td3_bc]", *args]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no environment: 10 % of the episodes held out for validation metrics, no score" in said
    assert "no environment: not ranked by return" in said
    record = Store(tmp_path / "r").read(Store(tmp_path / "r").records()[0].stem)
    assert record.spec.env["id"] is None
    assert record.spec.protocol["episodes"] == 0 and record.spec.protocol["validation"] == 0.1
    assert {"validation/action_error", "training/action_error"} <= set(record.metrics)
    assert any(name.startswith("validation/") and "loss" in name for name in record.metrics)
    assert len(Store(tmp_path / "r").episodes()) == 0
    board = (tmp_path / "r/board/other-part.md").read_text()
    assert "| bc(" in board and "| td3_bc(" in board and "rank" not in board.replace("ranked", "")
    # a second time there is nothing to do
    assert main(["bench", "methods=[bc,td3_bc]", *args]) == 0
    assert "4 recorded, 0 to do" in capsys.readouterr().out


def test_metrics_of_held_out_rows_are_those_of_a_plain_loop(data64):
    """One seed, one method, float64: the error and the losses, by hand."""
    train, held_out = split(data64, 0.3, name="fake")
    method = TD3BC(hidden=(8,))
    pipeline = make_pipeline(train, transforms=["obs_norm"])
    state = initial_carry(method, pipeline.spec(_spec(data64)), [0, 1]).state
    state = torch.utils._pytree.tree_map(lambda x: x.double(), state)
    check = Validation(method, pipeline, held_out, discrete=False)
    found = check(state)
    batch = check.batches["validation"]
    first = torch.utils._pytree.tree_map(lambda x: x[0], batch)  # of two minibatches
    # held-out observations are normalised by what was fitted to the training episodes
    mean, std = train.obs[train.valid].mean(0), train.obs[train.valid].std(0, correction=0)
    raw = (held_out.obs[held_out.valid] - mean) / (std + 1e-3)
    gap = (first.obs[:, None] - raw[None]).abs().amax(-1).amin(1)
    assert gap.max() < 1e-9
    k_act, k_update = rng.split(rng.key(0))
    for i in (0, 1):
        own = unstack(state, i)
        made = method.act(own, first.obs, k_act)
        error = ((made - first.action) ** 2).mean()
        torch.testing.assert_close(found["validation/action_error"][i], error)
        losses = method.update(own, batch, k_update)[1]
        torch.testing.assert_close(found["validation/critic_loss"][i], losses["critic_loss"])


def _spec(data):
    from offbench.types import Spec

    return Spec(data.obs.shape[1], data.action.shape[1], 0.99, 100)


def test_a_split_is_by_episode_the_same_every_time_and_loses_nothing():
    data = fake_data()
    train, held_out = split(data, 0.25, name="fake")
    assert train.n_episodes + held_out.n_episodes == data.n_episodes
    assert held_out.n_episodes == round(0.25 * data.n_episodes)
    assert train.n_transitions + held_out.n_transitions == data.n_transitions
    again = split(data, 0.25, name="fake")
    assert [fingerprint(x) for x in again] == [fingerprint(train), fingerprint(held_out)]
    rows = {tuple(x) for x in train.obs[train.valid].tolist()}
    assert not rows & {tuple(x) for x in held_out.obs[held_out.valid].tolist()}
    one = split(data, 1e-9, name="fake")[1]
    assert one.n_episodes == 1  # at least one is held out
    with pytest.raises(UserError, match="one episode cannot be split"):
        split(one, 0.1, name="fake")


@pytest.mark.parametrize(
    "view, method",
    [
        (Chunk(h=3, pad=False), BC(hidden=(8,))),
        (Window(k=4), DT(width=8, layers=1, heads=1)),
    ],
)
def test_chunks_and_windows_are_validated_too(view, method):
    train, held_out = split(fake_data(), 0.3, name="fake")
    pipeline = make_pipeline(train, view=view, needs=getattr(method, "needs", ()))
    state = initial_carry(method, pipeline.spec(_spec(train)), [0, 1]).state
    found = Validation(method, pipeline, held_out, discrete=False)(state)
    assert all(x.shape == (2,) and x.isfinite().all() for x in found.values())
    assert found["validation/action_error"].min() > 0


def test_the_windows_a_policy_is_asked_about_do_not_show_the_action_it_is_asked_for():
    from offbench.training.held_out import _before_acting

    train, _ = split(fake_data(), 0.3, name="fake")
    pipeline = make_pipeline(train, view=Window(k=4), needs=("context",))
    context = pipeline.sample(rng.key(0)).obs
    seen, recorded = _before_acting(context)
    last = context.valid.sum(-1) - 1
    row = torch.arange(len(last))
    assert torch.equal(recorded, context.action[row, last])
    assert not seen.action[row, last].any() and seen.action.any()


def test_actions_beyond_1_are_scaled_from_the_range_that_was_recorded(log):
    task = own_task(log)
    data, spec = load_data(task)
    action = np.load(log)["actions"]
    assert task.reading.low == tuple(action.min(0).astype(float))
    assert abs(float(data.action[data.valid].min()) + 1) < 1e-6 and not spec.discrete
    assert spec.max_episode_steps == 50
    assert own_task(log, actions="unit").reading.low is None


@pytest.mark.parametrize(
    "more, message",
    [
        (["eval.episodes=5"], "there is no environment to play evaluation episodes in"),
        (["eval.validation=1.5"], "eval.validation=1.5 is not a share of the episodes in (0, 1)"),
        (["task.n_actions=3"], "actions"),
    ],
)
def test_a_mistake_is_one_line(more, message, log, tmp_path, capsys):
    args = ["run", "method=bc", f"task.data={log}", f"results={tmp_path / 'r'}", *TINY, *more]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_no_environment_can_be_said_and_zero_episodes_too(log, tmp_path):
    args = ["run", "method=bc", f"task.data={log}", f"results={tmp_path / 'r'}", *TINY]
    assert main([*args, "task.env=none", "eval.episodes=0"]) == 0


def test_with_an_environment_episodes_can_be_held_out_as_well(tmp_path, capsys):
    args = ["task=offbench/hopper/medium-replay-v0", "eval.episodes=1", "eval.validation=0.2"]
    assert main(["run", "method=bc", *args, *TINY, f"results={tmp_path}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 test episodes, 20 % of the episodes held out for validation metrics" in said
    record = Store(tmp_path).read(Store(tmp_path).records()[0].stem)
    assert "validation/action_error" in record.metrics
    assert len(Store(tmp_path).episodes(stream="test")) == 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_minari_set_that_names_no_environment_is_trained_on(tmp_path, monkeypatch, capsys):
    gymnasium, minari = pytest.importorskip("gymnasium"), pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    generator, spaces = np.random.default_rng(0), gymnasium.spaces
    n = 30

    def episode(i: int) -> EpisodeBuffer:
        end = np.arange(n) == n - 1
        return EpisodeBuffer(
            id=i,
            observations={
                "a": generator.integers(0, 2, n + 1),
                "c": generator.uniform(-1, 1, (n + 1, 3)),
            },
            actions=generator.integers(0, 8, n),
            rewards=generator.random(n).tolist(),
            terminations=end.tolist(),
            truncations=[False] * n,
        )

    minari.create_dataset_from_buffers(
        "logs/clinic-v0",
        [episode(i) for i in range(10)],
        observation_space=spaces.Dict(
            {"a": spaces.Discrete(2), "c": spaces.Box(-1, 1, (3,), np.float64)}
        ),
        action_space=spaces.Discrete(8),
    )
    folder = tmp_path / "minari/logs/clinic-v0"
    for where in (f"task.data={folder}", "task=minari/logs/clinic-v0"):
        args = ["run", "method=discrete_cql", where, f"results={tmp_path / 'r'}", *TINY]
        assert main(args) == 0, where
    records = [Store(tmp_path / "r").read(p.stem) for p in Store(tmp_path / "r").records()]
    assert {r.spec.env["id"] for r in records} == {None}
    assert all("validation/action_disagreement" in r.metrics for r in records)
    assert main(["data", "check", str(folder)]) == 0


# --- values estimated from the recorded episodes --------------------------------------------------


@pytest.fixture
def walks(tmp_path):
    """A file of walks to the left and to the right on a line; steps to the right are rewarded. Many go left."""
    generator, steps = np.random.default_rng(0), 12
    obs, action, reward, end = [], [], [], []
    for episode in range(60):
        place, way = generator.uniform(-0.3, 0.3), 1.0 if episode % 4 == 0 else -1.0
        for t in range(steps):
            moved = float(np.clip(way * 0.8 + 0.3 * generator.normal(), -1, 1))
            obs.append([place, place**2])
            action.append([moved])
            reward.append(moved)
            end.append(t == steps - 1)
            place += 0.1 * moved
    np.savez(
        tmp_path / "walks.npz",
        observations=np.array(obs, np.float32),
        actions=np.array(action, np.float32),
        rewards=np.array(reward, np.float32),
        terminals=np.zeros(len(end), bool),
        timeouts=np.array(end),
    )
    return tmp_path / "walks.npz"


FQE = ["eval.by=fqe", "eval.fqe_updates=300", "eval.fqe_hidden=[16]", "eval.fqe_gamma=0.8"]


def test_a_file_alone_is_ranked_by_what_fqe_estimates(walks, tmp_path, capsys):
    args = [f"task.data={walks}", f"results={tmp_path / 'r'}", *TINY, "n_updates=400", *FQE]
    args += ["method.lr=0.01"]
    assert main(["bench", "methods=[bc,bc+top10]", *args]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "nothing was played: ranked by the value that FQE estimates, discount 0.8" in said
    assert "values estimated from the recorded episodes (fqe)" in said and "estimated value" in said
    store = Store(tmp_path / "r")
    records = [store.read(p.stem) for p in store.records()]
    assert len(records) == 4 and {r.spec.protocol["by"] for r in records} == {"fqe"}
    found: dict[str, list[float]] = {"bc": [], "bc+top10": []}
    for record in records:
        last = record.metrics.iloc[-1]
        found[record.provenance.entry.partition("(")[0]].append(last["estimate/fqe"])
        assert last["estimate/recorded"] < 0
    # right, at 0.8 a step for ever: 4; most of the recorded go left
    assert max(found["bc"]) < 0 < min(found["bc+top10"]) and max(found["bc+top10"]) < 5
    table = (tmp_path / "r" / "board").glob("*.md")
    text = next(table).read_text()
    assert "ranked by the value" in text.splitlines()[0]
    ranks = [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| 1 ")]
    assert len(ranks) == 1 and ranks[0].startswith("bc+top10")
    # the same command finds all of them, and the board says the same
    assert main(["bench", "methods=[bc,bc+top10]", *args]) == 0
    assert "0 to do" in capsys.readouterr().out
    assert main(["board", "methods=[bc]", "--explain", *args]) == 0
    assert "says nothing of the estimator's bias" in " ".join(capsys.readouterr().out.split())


def test_estimated_and_other_runs_are_not_mixed(walks, tmp_path, capsys):
    args = [f"task.data={walks}", f"results={tmp_path / 'r'}", *TINY]
    assert main(["run", "method=bc", *args]) == 0
    assert main(["run", "method=td3_bc", *args, *FQE]) == 0
    assert main(["run", "method=td3_bc", *args, *FQE, "eval.fqe_updates=301", "label=other"]) == 0
    capsys.readouterr()
    assert main(["board", "methods=[td3_bc]", *args, *FQE, "--format", "csv"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 and "td3_bc" in rows[1]


def test_an_interrupted_estimate_leaves_no_record_and_is_made_again(walks, tmp_path):
    from offbench.bench.plan import plan
    from offbench.bench.runner import run_pack
    from offbench.bench.stacks import pack
    from offbench.bench.watch import Watch
    from offbench.errors import Interrupted

    given = [f"task.data={walks}", "method=bc", *TINY, *FQE, f"results={tmp_path}"]
    wanted = plan(given, bench=False)
    (part,) = pack(wanted.cells, max_stack=8)
    store, phases = Store(tmp_path), []
    watch = Watch(
        part, send=lambda phase, _: phases.append(phase), stop=lambda: "estimating" in phases
    )
    with pytest.raises(Interrupted):
        run_pack(part, store, wanted.settings, watch=watch)
    assert not store.records()
    assert run_pack(part, store, wanted.settings)
    assert all("estimate/fqe" in store.read(p.stem).metrics for p in store.records())


@pytest.mark.parametrize(
    "more, message",
    [
        (["eval.by=fqe", "eval.episodes=5"], "no environment to play evaluation episodes in"),
        (["eval.by=fq"], "eval.by"),
        (["eval.by=fqe", "eval.fqe_gamma=2"], "eval.fqe_gamma=2 must lie in [0, 1]"),
        (["eval.by=fqe", "eval.fqe_updates=0"], "eval.fqe_updates=0 must be at least 1"),
    ],
)
def test_a_mistake_in_an_estimate_is_one_line(more, message, walks, tmp_path, capsys):
    args = ["run", "method=bc", f"task.data={walks}", f"results={tmp_path / 'r'}", *TINY, *more]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.filterwarnings("ignore::offbench.tasks.doctor.report.DataWarning")
def test_data_without_rewards_and_policies_that_look_back_are_refused_before_training(
    walks, tmp_path, capsys
):
    arrays = dict(np.load(walks))
    np.savez(tmp_path / "none.npz", **(arrays | {"rewards": 0 * arrays["rewards"]}))
    run = ["run", f"results={tmp_path / 'r'}", *TINY, *FQE]
    assert main([*run, "method=bc", f"task.data={tmp_path / 'none.npz'}"]) == 2
    assert "every recorded reward is 0" in capsys.readouterr().err
    run = [word for word in run if not word.startswith("method.")]
    small = ["method.width=8", "method.layers=1", "method.heads=1"]
    assert main([*run, *small, "method=dt", f"task.data={walks}"]) == 2
    assert "decides by more than one observation" in capsys.readouterr().err


@pytest.mark.env
def test_with_an_environment_nothing_is_played_either(tmp_path, capsys):
    args = ["task=offbench/hopper/medium-replay-v0", *TINY, *FQE, f"results={tmp_path}"]
    assert main(["run", "method=bc", *args]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "ranked by the value that FQE estimates" in said and "held-out" not in said
    assert main(["run", "method=bc", *args, "eval.episodes=3"]) == 2
    assert "eval.by=fqe plays no episodes" in capsys.readouterr().err
