"""DoC learns what an action is worth on average, where DT follows the luck in its data.

A bandit: the arm that the data pull nine times in ten pays 1 with probability 0.3, the other with 0.7. Of the
rewards of 1 four in five came from the worse arm. More bandits: tests/luck_and_skill.py; FrozenLake:
tests/frozen_lake.py.
"""

import dataclasses

import frozen_lake as lake
import luck_and_skill as study
import numpy as np
import pandas as pd
import pytest
import torch
from support.mutants import mutated
from torch.utils._pytree import tree_map

from offbench.data.pipeline import make_pipeline
from offbench.data.replay import discounted_to_go
from offbench.data.views import Window
from offbench.methods.doc import DoC
from offbench.training.step import unstack

P, SHARE, SEEDS = 0.7, 0.1, [0, 1]
TABLES = torch.stack([study.counts(P, SHARE, seed) for seed in range(5)])


def test_with_tables_it_finds_the_better_arm_and_keeps_no_luck():
    found = study.tables(TABLES, 3.0)
    assert (found["arms"][:, 1] > 0.9).all()
    assert torch.allclose(found["arms"].sum(1), torch.ones(5).double())
    assert (found["information"] < 0.01).all()


@pytest.mark.parametrize("broken", [{"weight": 0.0}, {"weight": 1.0, "climbs": True}], ids=str)
def test_with_tables_and_no_constraint_or_the_authors_sign_it_follows_luck(broken):
    found = study.tables(TABLES, **broken)
    assert (found["information"] > 0.3).all()
    assert (found["arms"][:, 1] < 0.9).any()


def test_dt_pulls_the_arm_that_was_lucky_more_often():
    """The likelihood of its choice is the posterior: 0.07 / (0.07 + 0.27) for the better arm."""
    data = study.pulls(P, SHARE)
    won = (data.reward > 0) & data.valid
    posterior = float(data.action[won][:, 1].mean())
    method = study.METHODS["dt"]
    state, asked = study.trained(method, P, SHARE, 300, SEEDS)
    assert asked == 1
    for i in range(len(SEEDS)):
        one = unstack(state, i)
        assert study.better_arm(method, one) == 0
        logits = method._actions(one.params, study.one_step(0, 1))[0, 0]
        assert abs(logits.softmax(-1)[1] - posterior) < 0.1


def test_doc_pulls_the_better_arm_and_its_latent_tells_no_reward():
    rows = study.trained_on_pulls(study.METHODS["doc"], P, SHARE, 450, SEEDS)
    assert all(row["better_arm"] > 0.9 and row["information"] < 0.02 for row in rows)


BROKEN = {
    "constraint dropped": ('self.energy_weight * metrics["inf', '0.0 * metrics["inf'),
    "encoder climbs with the energy": ('+ self.energy_weight * metrics["inf',
                                       '- self.energy_weight * metrics["inf'),
    "value does not see z": ('nets.mlp(state.params["value"], given)',
                             'nets.mlp(state.params["value"], 0 * given)'),
    "the smallest value": ("given).argmax(1", "given).argmin(1"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_learning_finds_what_is_broken(name):
    broken = mutated(DoC, *BROKEN[name])(**dataclasses.asdict(study.METHODS["doc"]))
    rows = study.trained_on_pulls(broken, P, SHARE, 450, SEEDS)
    # without the constraint some seeds keep no luck either
    assert not all(row["better_arm"] > 0.9 and row["information"] < 0.02 for row in rows)


def test_the_information_of_a_latent_is_what_its_densities_say():
    """An encoder that tells a reward by four deviations keeps the entropy of the reward, one that does not nothing."""
    method = study.METHODS["doc"]
    state = method.init(study.rng.key(0), study.BANDIT._replace(context=1))
    nothing = tree_map(torch.zeros_like, state.params["encoder"])
    state.params["encoder"] = nothing
    assert abs(study.information(method, state, P)) < 1e-6
    entropy = -(0.7 * np.log(0.7) + 0.3 * np.log(0.3))
    told = dataclasses.replace(method)
    mean = lambda r: study.Gaussian(8 * r[..., None], torch.zeros(len(r), 1, 1))
    object.__setattr__(told, "_encoded", lambda params, context, r: mean(r))
    assert abs(study.information(told, state, P) - entropy) < 1e-3


# --- returns averaged over the steps of the same observation and action


def test_averaged_returns_are_those_of_the_same_observation_and_action():
    data = lake.walks(lake.AUTHORS._replace(episodes=30), 0)
    pipeline = study.averaged(make_pipeline(data, view=Window(4, 1.0)))
    kinds = data.obs.argmax(1), data.action.argmax(1)
    for row in data.valid.nonzero().squeeze(1)[::17]:
        same = [k == k[row] for k in kinds]
        same = same[0] & same[1] & data.valid
        won = discounted_to_go(data, 1.0)[same]
        assert abs(pipeline.view.to_go[row] - won.mean()) < 1e-6
    data = study.pulls(P, SHARE)
    pipeline = study.averaged(make_pipeline(data, view=Window(1, 1.0)))
    better = data.valid & (data.action[:, 1] > 0)
    assert abs(pipeline.view.target_return - data.reward[better].mean()) < 1e-6


def test_dt_on_averaged_returns_pulls_the_better_arm():
    rows = study.trained_on_pulls(study.METHODS["dt"], P, SHARE, 100, SEEDS, average=True)
    assert all(row["better_arm"] == 1 for row in rows)


# --- the lake


def test_the_lake_is_gymnasium_s():
    import gymnasium

    table = gymnasium.make("FrozenLake-v1", is_slippery=True).unwrapped.P
    on = lake.ice(1 / 3)
    assert np.allclose(on.moves.sum(-1), 1)
    assert np.nonzero(on.ends)[0].tolist() == [5, 7, 11, 12, 15]
    for s, a, t in ((0, 2, 1), (14, 1, 15), (6, 0, 5)):
        assert np.isclose(on.moves[s, a, t], sum(p for p, to, *_ in table[s][a] if to == t))


def test_chances_of_the_goal_are_those_of_episodes():
    acting = lake.behaviour(lake.AUTHORS)
    places, _, _ = lake.walked(lake.AUTHORS._replace(episodes=20_000), 0)
    reached = (places[-1] == lake.GOAL).mean()
    assert abs(lake.values(acting, lake.ice(1 / 3))[0] - reached) < 0.008
    # the best policy's within 100 steps
    assert abs(lake.values(lake.greedy(acting), lake.ice(1 / 3))[0] - 0.74) < 0.005


def test_counts_are_those_of_the_episodes():
    case = lake.AUTHORS._replace(episodes=40)
    data, counts = lake.walks(case, 3), lake.counted(case, 3)
    assert counts.sum() == data.n_transitions and data.n_episodes == 40
    won = discounted_to_go(data, 1.0)
    for s, a in ((0, 0), (4, 0), (14, 1)):
        here = (data.obs[:, s] > 0) & (data.action[:, a] > 0) & data.valid
        assert counts[s, a].tolist() == [(here & (won == r)).sum() for r in (0, 1)]


def test_policies_of_counts():
    """An arm taken twice with one success, one taken seven times with two, one not, one once in vain."""
    steps = np.array(
        [[[1, 1], [5, 2], [0, 0], [1, 0]], [[2, 0], [0, 0], [1, 0], [0, 0]], np.zeros((4, 2))]
    )
    made = lake.policies(steps)
    assert np.allclose(made["bc"], [[0.2, 0.7, 0, 0.1], [2 / 3, 0, 1 / 3, 0], [0.25] * 4])
    # what was never asked for successfully is cloned
    assert np.allclose(made["dt"], [[1 / 3, 2 / 3, 0, 0], [2 / 3, 0, 1 / 3, 0], [0.25] * 4])
    assert np.allclose(made["average"], [[1, 0, 0, 0], [2 / 3, 0, 1 / 3, 0], [0.25] * 4])
    doc = lake.bandits(steps, 3.0)
    assert doc[0, 0] > 0.9 and np.allclose(doc[2], 0.25) and np.allclose(doc.sum(-1), 1)


def test_means_and_intervals_are_over_data_sets():
    rows = [("a", i, seed, 10.0 * i + seed) for i in range(3) for seed in (0, 2)]
    table = pd.DataFrame(rows, columns=["entry", "data_set", "seed", "success"])
    (row,) = study.means(table, ["success"]).to_dict("records")
    assert row["mean"] == 11 and row["data_sets"] == 3 and row["runs"] == 6
    # Student's t of two degrees of freedom, standard deviation 10
    assert np.isclose(row["high"] - row["mean"], 4.302653 * 10 / 3**0.5)
    assert (row["least"], row["largest"]) == (0, 22)


def test_what_is_over_dt_is_paired_by_data_set():
    case = lake.AUTHORS._asdict() | {"form": "networks", "acts": "greedy", "update": 5.0}
    made = [("dt", 1.0, 0, 0.1), ("dt", 1.0, 0, 0.3), ("dt", 0.5, 0, 0.9), ("dt", 1.0, 1, 0.5),
            ("doc", None, 0, 0.6), ("doc", None, 1, 0.6)]  # fmt: skip
    names = ("entry", "asked", "data_set", "success")
    table = lake.beside_dt(pd.DataFrame([case | dict(zip(names, x, strict=True)) for x in made]))
    assert np.allclose(table.over_dt, [-0.1, 0.1, 0.7, 0, 0.4, 0.1])
    row = {"form": "limit", "entry": "data", "asked": None, "success": 0.1} | dict.fromkeys(
        ["acts", "update", "data_set"]
    )
    assert lake.beside_dt(pd.DataFrame([case | row, table.iloc[0].to_dict()])).over_dt.isna()[0]


@pytest.mark.slow
def test_networks_are_measured_on_the_lake():
    case = lake.AUTHORS._replace(episodes=20)
    rows = pd.DataFrame(lake.of_networks(case, 0, [0, 1], [5, 10]))
    sizes = {"average": 8, "doc": 4, "dt": 8, "no_constraint": 4}
    assert rows.groupby("entry").size().to_dict() == sizes
    assert rows.success.between(0, 1).all()
