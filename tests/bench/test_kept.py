"""Policies and states kept of finished runs: to act with, and to train on from."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from offbench.bench import kept
from offbench.bench.policy import load_policy
from offbench.cli import main
from offbench.errors import UserError
from offbench.results.store import Store
from offbench.tasks.environments import evaluation_env
from offbench.tasks.locate import load_task

HOPPER = "offbench/hopper/medium-replay-v0"
TINY = [
    "method.hidden=[16,16]",
    "batch_size=32",
    "eval.episodes=1",
    "eval.monitor_at=[]",
    "jobs=1",
    "engine=vmap",
]


def run(results, *args: str) -> int:
    own = {arg.partition("=")[0] for arg in args}
    tiny = [arg for arg in TINY if arg.partition("=")[0] not in own]
    return main(["run", *tiny, f"results={results}", *args])


def files(results) -> list:
    return sorted(results.glob("runs/*/*/*/*.safetensors"))


@pytest.mark.parametrize("keep, size", [("none", 0), ("policy", 1), ("state", 1)])
def test_what_is_kept_is_what_was_asked_for_and_never_decides_what_a_run_is(keep, size, tmp_path):
    results = tmp_path / keep
    assert (
        run(results, "method=td3_bc", f"task={HOPPER}", "n_updates=20", "seeds=[0]", f"keep={keep}")
        == 0
    )
    assert len(files(results)) == size
    record = Store(results).read(Store(results).records()[0].stem)
    assert "keep" not in record.spec.as_dict()
    if keep == "policy":  # the actor and the statistics of its observations, and nothing else
        names = load_file(files(results)[0])
        assert all(n.startswith(("state.actor[", "transforms[0]")) for n in names), sorted(names)
    if keep == "state":
        assert int(load_file(files(results)[0])["step"]) == 10  # of two minibatches each


@pytest.mark.parametrize(
    "entry, task, more",
    [
        ("td3_bc", HOPPER, []),
        pytest.param("dt", HOPPER, ["method.width=16", "view.k=4"], marks=pytest.mark.slow),
        pytest.param("iql+chunk3", HOPPER, [], marks=pytest.mark.slow),
        ("bc+dw", HOPPER, ["weight.hidden=[8]"]),
    ],
)
def test_a_loaded_policy_acts_as_the_one_that_was_evaluated(entry, task, more, tmp_path):
    """The episodes of the test stream, played again with the file alone, have the returns on record."""
    tiny = [a for a in TINY if not (entry == "dt" and a.startswith("method.hidden"))]
    args = [f"methods=[{entry}]", f"task={task}", "n_updates=20", "seeds=[3]", *more]
    assert main(["bench", *tiny, f"results={tmp_path}", *args]) == 0
    policy = load_policy(files(tmp_path)[0])
    row = Store(tmp_path).episodes(stream="test").iloc[0]
    env = evaluation_env(load_task(task))
    obs, _ = env.reset(seed=int(row["env_seed"]))
    total, reward, steps, over = 0.0, 0.0, 0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs, reward))
        total, steps, over = total + reward, steps + 1, terminated or truncated
    assert (policy.run.seed, steps) == (3, row["length"])
    assert total == pytest.approx(row["return"], rel=1e-6)


def test_a_policy_is_found_by_the_beginning_of_its_run_id_and_refuses_other_sizes(tmp_path):
    run(tmp_path, "method=bc", f"task={HOPPER}", "n_updates=5", "seeds=[0,1]")
    path = files(tmp_path)[0]
    policy = load_policy(path.stem[:8], results=tmp_path)
    assert policy.run.run_id == path.stem
    assert policy.act(np.zeros(11)).shape == (3,)
    with pytest.raises(UserError, match=r"5 observations after 1; reset\(\)"):
        policy.act(np.zeros((5, 11)))
    policy.reset()
    assert policy.act(np.zeros((5, 11))).shape == (5, 3)
    with pytest.raises(
        UserError, match=r"an observation of shape \(4,\), its policies see \(11,\)"
    ):
        policy.act(np.zeros(4))
    with pytest.raises(UserError, match="no run 'zzz'"):
        load_policy("zzz", results=tmp_path)
    with pytest.raises(UserError, match="begins 2 run ids"):
        load_policy("", results=tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="does not exist; a run keeps its policy unless keep=none"):
        load_policy(path.stem, results=tmp_path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(UserError, match="cannot be read as a kept policy"):
        load_policy(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="is not a policy that offbench kept"):
        load_policy(path)


def test_a_longer_run_goes_on_from_a_kept_state_and_ends_where_an_unbroken_one_does(
    tmp_path, capsys
):
    args = ["method=td3_bc", f"task={HOPPER}", "seeds=[0,1]"]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    run(broken, *args, "n_updates=20")
    run(broken, *args, "n_updates=50")
    run(whole, *args, "n_updates=50")
    said = capsys.readouterr().out
    assert said.count("went on from the kept state of run") >= 2
    ends = {path.stem: load_file(path) for path in files(broken)}
    for path in files(whole):
        there, here = load_file(path), ends[path.stem]
        assert there.keys() == here.keys()
        assert all(torch.equal(there[k], here[k]) for k in there)
        record = Store(broken).read(path.stem)
        assert (
            "went on from the kept state of run" in record.reason
            and "(20 updates)" in record.reason
        )
        assert record.metrics["update"].is_monotonic_increasing
        assert record.metrics["update"].iloc[0] < 20 < record.metrics["update"].iloc[-1] == 50
    a, b = (
        Store(x).episodes(run_id=[p.stem for p in files(whole)])["return"] for x in (broken, whole)
    )
    assert a.tolist() == b.tolist()


def test_a_longer_run_begins_at_0_and_says_why_where_the_schedule_follows_the_length(
    tmp_path, capsys
):
    args = ["method=iql", f"task={HOPPER}", "seeds=[0]", "keep=state"]
    run(tmp_path, *args, "n_updates=20", "method.actor_decay_steps=20")
    run(tmp_path, *args, "n_updates=40", "method.actor_decay_steps=40")
    said = " ".join(capsys.readouterr().out.split())
    assert "method.actor_decay_steps follows the length of the run: training began at 0" in said
    assert Store(tmp_path).runs(n_updates=40)["reason"].isna().all()


def test_a_longer_run_begins_at_0_and_says_why_where_the_policy_alone_was_kept(tmp_path, capsys):
    args = ["method=bc", f"task={HOPPER}", "seeds=[0]", "keep=policy"]
    run(tmp_path, *args, "n_updates=20")
    run(tmp_path, *args, "n_updates=40")
    said = " ".join(capsys.readouterr().out.split())
    assert "the policy alone was kept, so training began at 0; a run with keep=state" in said


def test_another_seed_or_setting_goes_on_from_nothing(tmp_path, capsys):
    args = ["method=bc", f"task={HOPPER}", "keep=state"]
    run(tmp_path, *args, "seeds=[0]", "n_updates=20")
    run(tmp_path, *args, "seeds=[1]", "n_updates=40")
    run(tmp_path, *args, "seeds=[0]", "n_updates=40", "method.lr=0.01")
    assert "went on" not in capsys.readouterr().out


def test_actions_of_a_loaded_policy_are_in_the_units_of_the_environment(tmp_path):
    """Recorded actions of an environment that takes [-2, 2], cloned from a table that can be learned by heart."""
    n = 400
    obs = np.eye(3, dtype=np.float32)[np.arange(n) % 3]
    action = np.float32([[-1.5], [0.5], [2.0]])[np.arange(n) % 3]
    end = np.arange(n) % 100 == 99
    path = tmp_path / "a.npz"
    np.savez(
        path,
        observations=obs,
        actions=action,
        rewards=np.arange(n, dtype=np.float32) % 7,
        terminals=np.zeros(n, bool),
        timeouts=end,
    )
    # Pendulum-v1 observes three numbers and takes a torque in [-2, 2]
    args = [
        f"task.data={path}",
        "task.env=Pendulum-v1",
        "n_updates=400",
        "method.lr=0.02",
        "engine=eager",
    ]
    run(tmp_path, "method=bc", *args, "seeds=[0]")
    policy = load_policy(files(tmp_path)[0])
    np.testing.assert_allclose(policy.act(np.eye(3))[:, 0], [-1.5, 0.5, 2.0], atol=0.1)


def test_choices_come_back_as_their_numbers(tmp_path):
    n = 300
    obs = np.eye(3, dtype=np.float32)[np.arange(n) % 3]
    end = np.arange(n) % 100 == 99
    path = tmp_path / "a.npz"
    np.savez(
        path,
        observations=obs,
        actions=np.arange(n) % 3,
        rewards=np.arange(n, dtype=np.float32) % 7,
        terminals=end,
        timeouts=np.zeros(n, bool),
    )
    args = [f"task.data={path}", "n_updates=300", "method.lr=0.01", "engine=eager"]
    tiny = [a for a in TINY if not a.startswith(("eval", "engine"))]
    args = [*tiny, f"results={tmp_path}", "method=discrete_cql", *args, "seeds=[0]"]
    assert main(["run", *args]) == 0
    made = load_policy(files(tmp_path)[0]).act(np.eye(3))
    assert made.tolist() == [0, 1, 2]


def test_sizes_tell_policy_from_state():
    from offbench.methods.td3_bc import TD3BC
    from offbench.types import Spec

    sizes = kept.sizes(TD3BC(hidden=(8,)), Spec(4, 2, 0.99, 100))
    actor = 4 * (4 * 8 + 8 + 8 * 2 + 2)
    assert sizes["policy"] == actor and sizes["state"] > 4 * actor and sizes["none"] == 0


OWN = """
import torch
from torch import nn

class Cloner:
    def __init__(self, obs_dim, action_dim, lr: float = 1e-2):
        self.actor = nn.Sequential(nn.Linear(obs_dim, 8), nn.ReLU(), nn.Linear(8, action_dim), nn.Tanh())
        self.optimiser = torch.optim.Adam(self.actor.parameters(), lr)

    def train_step(self, batch):
        loss = (self.actor(batch.obs) - batch.action).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return {"loss": loss.item()}

    def act(self, obs):
        return self.actor(obs)
"""


def test_a_pytorch_class_of_ones_own_is_kept_by_its_state_dicts(tmp_path, monkeypatch):
    (tmp_path / "own_cloner.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    args = ["method._target_=own_cloner.Cloner", f"task={HOPPER}", "n_updates=30", "seeds=[0,1]"]
    assert (
        main(
            ["run", *TINY[1:4], "jobs=1", f"results={tmp_path / 'r'}", "eval.validation=0.2", *args]
        )
        == 0
    )
    path = files(tmp_path / "r")[1]
    policy = load_policy(path, allow_code=True)
    episodes = Store(tmp_path / "r").episodes(run_id=policy.run.run_id)
    env = evaluation_env(load_task(HOPPER))
    obs, _ = env.reset(seed=int(episodes["env_seed"].iloc[0]))
    total, over = 0.0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs))
        total, over = total + reward, terminated or truncated
    assert total == pytest.approx(episodes["return"].iloc[0], rel=1e-6)
    curves = Store(tmp_path / "r").read(policy.run.run_id).metrics
    assert curves["validation/action_error"].iloc[-1] < curves["validation/action_error"].iloc[0]
