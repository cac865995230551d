"""DoC learns what an action is worth on average, where DT follows the luck in its data.

A bandit: the arm that the data pull nine times in ten pays 1 with probability 0.3, the other with 0.7. Of the
rewards of 1 four in five came from the worse arm. FrozenLake and more bandits: tests/luck_and_skill.py.
"""

import dataclasses

import luck_and_skill as study
import numpy as np
import pytest
import torch
from support.mutants import mutated
from torch.utils._pytree import tree_map

from offbench.methods.doc import DoC
from offbench.training.step import unstack

P, SHARE, SEEDS = 0.7, 0.1, [0, 1]
TABLES = torch.stack([study.counts(P, SHARE, seed) for seed in range(5)])


def test_with_tables_it_finds_the_better_arm_and_keeps_no_luck():
    found = study.tables(TABLES, 3.0)
    assert (found["better_arm"] > 0.9).all()
    assert (found["information"] < 0.01).all()


def test_with_tables_and_no_constraint_it_follows_luck():
    found = study.tables(TABLES, 0.0)
    assert (found["information"] > 0.3).all()
    assert (found["better_arm"] < 0.9).any()


def test_dt_pulls_the_arm_that_was_lucky_more_often():
    """The likelihood of its choice is the posterior: 0.07 / (0.07 + 0.27) for the better arm."""
    data = study.pulls(P, SHARE)
    won = (data.reward > 0) & data.valid
    posterior = float(data.action[won][:, 1].mean())
    method = study.METHODS["dt"]
    state = study.trained(method, P, SHARE, 300, SEEDS)
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


@pytest.mark.slow
def test_the_lake_is_gymnasium_s_and_its_best_policy_is_known():
    data = study.walks(20)
    assert data.obs.shape[1] == 16 and data.action.shape[1] == 4 and data.n_episodes == 20
    assert (data.obs.sum(1) == 1).all() and set(data.reward[data.valid].tolist()) <= {0.0, 1.0}
