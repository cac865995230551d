"""Kept policies played again: the episodes of an evaluation, controls of fixed lengths, returns without a time limit."""

from dataclasses import dataclass

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from support.records import spec as run_spec
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.bench.played import Decisions, controls, decision, discounted, longer, play
from offbench.bench.policy import Loaded
from offbench.cli import main
from offbench.data.pipeline import Pipeline
from offbench.data.transforms import RewardAffine
from offbench.data.views import Chunk, ChunkMemory, NStep
from offbench.errors import UserError
from offbench.methods.bc import BC
from offbench.methods.qc import QC
from offbench.results.store import Store
from offbench.rollout import PlayedStep, Values, evaluate, make_policy
from offbench.tasks.task import Task
from offbench.training.reweighting import DensityWeights
from offbench.training.step import stack
from offbench.types import Plan, Policy, Spec

GAMMA, H = 0.9, 3
SPEC = Spec(obs_dim=1, action_dim=1, gamma=GAMMA, max_episode_steps=12)
CHUNKS = Chunk(H, GAMMA)


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Draws a chunk of H steps; it is worth their sum."""

    def init(self, key, spec):
        return {"scale": torch.tensor(0.8)}

    def act(self, state, obs, key):
        return state["scale"] * (2 * rng.uniform(key, (len(obs), H)) - 1)

    def value(self, state, obs, action):
        return state["scale"] * (obs[:, 0] + action.sum(-1))


class Adaptive(Fixed):
    """Executes the prefix of largest sum, or one of the length that it is asked for."""

    def act(self, state, obs, key):
        chunk = super().act(state, obs, key)
        return Plan(chunk, chunk.cumsum(-1).argmax(-1) + 1)

    def act_for(self, state, obs, key, length):
        chunk = super().act(state, obs, key)
        return Plan(chunk, torch.full((len(obs),), length))

    def value(self, state, obs, plan):
        return (
            state["scale"] * obs[:, 0]
            + plan.action.cumsum(-1).gather(-1, plan.length[:, None] - 1)[:, 0]
        )


class Sees(Fixed):
    """Says of every decision at which place it was made."""

    def value(self, state, obs, action):
        return obs[:, 0]


ADAPTIVE, FIXED = Adaptive(), Fixed()


class Walk(gymnasium.Env):
    """Steps of the action's size and a drift; -1 a step; ends beyond 1.5, or after `own` steps."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, drift: float = 0.12, own: int = 10_000):
        self.drift, self.own = drift, own

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.t = self.np_random.uniform(-2, 1), 0
        return np.array([self.place], np.float32), {"distance": 1.5 - self.place}

    def step(self, action):
        self.place, self.t = self.place + 0.3 * float(action[0]) + self.drift, self.t + 1
        ends = self.place > 1.5
        info = {"success": ends, "distance": 1.5 - self.place}
        return np.array([self.place], np.float32), -1.0, ends, self.t >= self.own and not ends, info


gymnasium.register("Walk-v0", Walk, max_episode_steps=12)


def task(**kwargs) -> Task:
    return Task(
        id="walk",
        family="own",
        env="Walk-v0",
        env_kwargs=kwargs,
        max_episode_steps=12,
        score="success",
    )


def loaded(method=ADAPTIVE, view=CHUNKS, kind: str = "state") -> Loaded:
    """An untrained policy, as read from its file; rewards are 2 r + 1 in its data."""
    pipeline = Pipeline(None, None, view, (RewardAffine(2.0, 1.0),))
    state = stack([method.init(rng.key(3), view.spec(SPEC))])
    return Loaded(kind, run_spec(seed=3), method, pipeline, state, SPEC, None)


def own(rows: pd.DataFrame, control: int | None = None) -> pd.DataFrame:
    return rows[rows["control"].isna() if control is None else rows["control"] == control]


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return play(loaded(), task(), episodes=12)


def test_the_policy_plays_the_episodes_of_an_evaluation_bit_for_bit(rows):
    policy = make_policy(ADAPTIVE, loaded().pipeline)
    state = loaded().state
    frame = evaluate(policy, state, task(), seeds=[3], episodes=12, stream="played")
    assert frame["terminated"].nunique() == 2
    by_episode = own(rows).groupby("episode")
    for want, (_, mine) in zip(frame.to_dict("records"), by_episode, strict=True):
        assert mine["steps"].eq(want["length"]).all() and mine["score"].eq(want["score"]).all()
        assert mine["success"].eq(want["success"]).all() and len(mine) == want["plans"]
        # of the last chunk, the part that the episode had room for
        executed = np.minimum(mine["length"], want["length"] - mine["step"])
        assert np.bincount(executed, minlength=H + 1)[1:].tolist() == want["chunk_lengths"]
        first = mine.iloc[0]
        assert first["step"] == 0 and first["value"] == want["start_value"]
        if want["terminated"]:
            assert first["discounted_return"] == pytest.approx(want["discounted_return"], rel=1e-12)
    assert own(rows)["length"].nunique() > 1


def test_a_control_always_executes_its_length(rows):
    assert set(rows["control"].dropna()) == {1, 2, 3}
    for control in (1, 2, 3):
        mine = own(rows, control)
        assert (mine["length"] == control).all()
        for _, episode in mine.groupby("episode"):
            steps = range(0, int(episode["steps"].iloc[0]), control)
            assert episode["step"].tolist() == list(steps)


def test_the_distance_is_that_of_the_state_in_which_a_decision_was_made(rows):
    """A policy that values a place as its distance to the goal."""
    mine = play(loaded(Sees()), task(), episodes=4, n_envs=2)
    assert mine["distance"].to_numpy(float) == pytest.approx(1.5 - mine["value"], abs=1e-5)
    assert mine["distance"].nunique() == len(mine) > 10
    starts = [own(rows, c).query("step == 0")["distance"].tolist() for c in (None, 1, 2, 3)]
    assert starts[0] == starts[1] == starts[2] == starts[3]


def test_what_goes_on_beyond_the_time_limit_is_in_the_returns_and_nowhere_else():
    """Nobody arrives: a reward of -1 for ever, -10 in all, of which 12 steps alone have -7.2."""
    rows = play(loaded(FIXED), task(drift=-0.5), episodes=3, n_envs=3)
    assert (rows["step"] < 12).all() and (rows["steps"] == 12).all() and (rows["score"] == 0).all()
    assert ((rows["left_out"] > 0) & (rows["left_out"] < 0.01)).all()
    assert rows["discounted_return"].to_numpy() == pytest.approx(-10, rel=0.01)


def test_an_episode_that_its_environment_breaks_off_has_a_return_that_is_cut_short():
    rows = play(loaded(FIXED), task(drift=-0.5, own=20), episodes=2, n_envs=2)
    # nor has a policy that does not choose its lengths any controls
    assert rows["control"].isna().all() and (rows["length"] == H).all()
    for row in rows.to_dict("records"):
        n = 20 - row["step"]
        assert row["left_out"] == pytest.approx(GAMMA**n)
        assert row["discounted_return"] == pytest.approx(-sum(GAMMA**k for k in range(n)))


def test_discounted_returns_are_the_sums_of_what_follows():
    rewards = np.random.default_rng(0).normal(size=30).tolist()
    for t, found in enumerate(discounted(rewards, GAMMA)):
        want = sum(GAMMA ** (k - t) * rewards[k] for k in range(t, 30))
        assert found == pytest.approx(want, rel=1e-12)


def test_a_decision_is_made_where_a_chunk_begins():
    values = Values(torch.tensor([[0.5, 7.0]]))
    plan = Plan(torch.zeros(1, 2, 3, 1), torch.tensor([[3, 1]]))
    memory = lambda left: ChunkMemory(values, plan, torch.tensor([left]), torch.zeros(1, 2, 3))
    assert decision(memory([2, 0]), (0, 0)) == (3, 0.5) and decision(memory([1, 0]), (0, 0)) is None
    assert decision(memory([0, 0]), (0, 1)) == (1, 7.0)
    assert decision(values, (0, 1)) == (1, 7.0)


def test_success_and_score_are_those_within_the_time_limit():
    """At any step of it where success is the score; else at the last."""
    for score, want in (("success", True), ("return", False)):
        kind = Task(id="x", family="own", env="Walk-v0", max_episode_steps=2, score=score)
        told = Decisions(Policy(lambda n, e: (), lambda *x: x, gamma=GAMMA), kind)
        for t, success in enumerate((True, False, True)):
            memory = Values(torch.tensor([[1.0 + t]]))
            info = {"success": success}
            told(PlayedStep((0, 0), 4, t, memory, None, 10.0, info, False, t == 2))
        frame = told.frame()
        assert frame["step"].tolist() == [0, 1] and frame["success"].tolist() == [want] * 2
        assert frame["score"].tolist() == [100.0 if score == "success" else 20.0] * 2
        assert frame["steps"].tolist() == [2, 2] and frame["value"].tolist() == [1.0, 2.0]
        assert frame["left_out"].tolist() == pytest.approx([GAMMA**3, GAMMA**2])


def test_a_policy_without_chunks_decides_at_every_step():
    one = QC(hidden=(8,), n_proposals=2, flow_steps=1)
    rows = play(loaded(one, NStep(1, GAMMA)), task(), episodes=2)
    assert rows["control"].isna().all() and (rows["length"] == 1).all()
    for _, episode in rows.groupby("episode"):
        assert episode["step"].tolist() == list(range(episode["steps"].iloc[0]))


def test_controls_reach_through_learned_weights():
    wrapped = DensityWeights(method=ADAPTIVE, hidden=(4,))
    assert list(controls(loaded(wrapped))) == [1, 2, 3]
    state, obs = wrapped.init(rng.key(0), CHUNKS.spec(SPEC)), torch.ones(3, 1)
    found = wrapped.act_for(state, obs, rng.key(1), 2)
    want = ADAPTIVE.act_for(state.inner, obs, rng.key(1), 2)
    assert torch.equal(found.action, want.action) and found.length.tolist() == [2, 2, 2]
    with pytest.raises(AttributeError):
        _ = DensityWeights(method=BC()).act_for


def test_what_has_no_values_and_what_did_not_keep_them_is_refused():
    with pytest.raises(UserError, match="says no values of its decisions"):
        play(loaded(BC(hidden=(8,))), task(), episodes=1)
    lacking = loaded(FIXED, kind="policy")
    state = tree_map(lambda x: torch.full_like(x, torch.nan), lacking.state)
    with pytest.raises(UserError, match=r"only the policy was kept.*keep=state"):
        play(lacking._replace(state=state), task(), episodes=1)


def test_the_later_limit_is_the_environments():
    assert longer(task(own=5), 44).env_kwargs == {"own": 5, "max_episode_steps": 56}


# --- the command ----------------------------------------------------------------------------

HOPPER = "offbench/hopper/medium-replay-v0"


@pytest.mark.env
@pytest.mark.slow
def test_diagnose_plays_what_was_kept_once_and_draws_it(tmp_path, capsys):
    tiny = ["method.hidden=[16,16]", "method.width=16", "method.heads=1", "view.h=2"]
    settings = ["methods=[acsac]", f"task={HOPPER}", "n_updates=10", "seeds=[0]", "batch_size=16"]
    settings += [*tiny, "eval.episodes=1", "eval.monitor_at=[]", f"results={tmp_path}"]
    assert main(["bench", *settings, "engine=vmap", "jobs=1"]) == 0
    capsys.readouterr()
    assert main(["diagnose", *settings]) == 0
    assert "offbench diagnose --play 20" in capsys.readouterr().out
    assert main(["diagnose", "--play", "2", *settings]) == 0
    said = capsys.readouterr().out
    assert "1 run played 2 episodes each" in said and "decisions.csv" in said
    (path,) = tmp_path.glob("decisions/*/*/*/*.parquet")
    table = pd.read_parquet(path)
    assert set(table["control"].dropna()) == {1, 2} and set(table["episode"]) == {0, 1}
    before = path.stat().st_mtime_ns
    assert main(["diagnose", "--play", "2", *settings]) == 0
    assert path.stat().st_mtime_ns == before
    assert "offbench diagnose --play" not in capsys.readouterr().out
    Store(tmp_path).records()[0].with_suffix(".safetensors").unlink()
    capsys.readouterr()
    assert main(["diagnose", "--play", "2", *settings]) == 2
    heard = capsys.readouterr()
    assert "its policy was not kept" in heard.out and heard.err.count("\n") == 1
    assert "no run here keeps a policy" in heard.err
