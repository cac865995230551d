"""Returns imagined in a learned model, held to exact values of small MDPs without chance."""

import inspect
import sys
import types

import numpy as np
import pytest
import torch
from support.mdps import greedy, random_mdp, random_policy, table_policy, walks

from offbench import rng
from offbench.ope import model as module
from offbench.ope.fqe import FQE
from offbench.types import Policy, TimeStep

GAMMA = 0.8
SMALL = FQE(gamma=GAMMA, n_updates=2000, hidden=(32,), lr=1e-2, batch_size=64)
CHOICES = ([0, 1, 2, 0], [2, 2, 1, 1])
UNIFORM = np.full((4, 3), 1 / 3)


def deviation(code=module, *, terminals: bool = True, steps: int = 40) -> float:
    """The largest difference of imagined returns and exact values, over policies and starts."""
    mdp = random_mdp(3, terminals=terminals)
    data, starts = walks(mdp, UNIFORM, 200, 6)
    model, worst = code.fit_model(data, SMALL), 0.0
    for choices in CHOICES:
        policy, state = table_policy(np.array(choices)[:, None])
        how = {"gamma": GAMMA, "key": rng.key(0), "steps": steps}
        found = code.imagined_returns(model, policy, state, data, **how)
        assert found.shape == (len(starts),)
        want = mdp.start_values(greedy(choices), GAMMA, starts)
        worst = max(worst, float(np.abs(found.numpy() - want).max()))
    return worst


@pytest.mark.parametrize("terminals", [False, True])
def test_imagined_returns_are_the_values(terminals):
    assert deviation(terminals=terminals) < 1e-2


MUTANTS = {
    "ends are not imagined": ("(gamma * (1 - end))", "gamma"),
    "nothing is discounted": ("(gamma * (1 - end))", "(1 - end)"),
    "the action is not seen": ("batch.action], -1)", "0 * batch.action], -1)"),
    "the state stays": ("following = obs + self", "following = obs + 0 * self"),
    "the last reward alone": ("total = total + worth", "total = worth"),
    "another's step": ("flatten(1, 2)[:, :r]", "flatten(1, 2)[:, :r].roll(1, 1)"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_found(name):
    old, new = MUTANTS[name]
    source = inspect.getsource(module)
    assert source.count(old) == 1
    mutant = types.ModuleType("mutant")
    sys.modules["mutant"] = mutant
    try:
        exec(source.replace(old, new), mutant.__dict__)
        assert deviation(mutant) > 0.2
    finally:
        del sys.modules["mutant"]


@pytest.mark.parametrize("n", [1, 4, 5, 13])
def test_a_sub_trajectory_is_dealt_to_one_member_and_comes_back(n):
    class Members(module.Model):
        """Member m adds m + 1 and the action to the state."""

        def step(self, obs, action):
            shift = torch.arange(1.0, 6.0)[:, None, None]
            assert obs.shape == (5, 2 * -(-n // 5), 1)
            return obs + shift + action, obs[..., 0], action[..., 0]

    obs, action = torch.arange(0, 20.0 * n, 10).view(2, n, 1), torch.rand(2, n, 1)
    following, paid, end = module.follow(Members(*4 * [None]), obs, action)
    assert torch.equal(paid, obs[..., 0]) and torch.equal(end, action[..., 0])
    members = (following - obs - action)[..., 0].round().long()
    each = -(-n // 5)
    assert members.tolist() == 2 * [[i // each + 1 for i in range(n)]]


def test_what_is_imagined_stays_in_the_recorded_range_and_repeats():
    data, _ = walks(random_mdp(0), random_policy(1), 37, 5)
    model = module.fit_model(data, FQE(n_updates=30, hidden=(8,), batch_size=32))
    seen = []

    def act(state, step: TimeStep, memory, key):
        seen.append(step)
        assert memory == len(seen) - 1
        return 100 * torch.ones(1, step.obs.shape[1], 3), memory + 1

    policy = Policy(lambda n, e: 0, act)
    how = {"gamma": 0.9, "key": rng.key(0), "steps": 7}
    once = module.imagined_returns(model, policy, None, data, **how)
    assert len(seen) == 7 and len(once) == 37
    assert all(bool(step.first.all()) == (t == 0) for t, step in enumerate(seen))
    every = torch.cat([step.obs for step in seen], 1)
    assert (every >= data.obs.amin(0)).all() and (every <= data.obs.amax(0)).all()
    paid = torch.cat([step.reward for step in seen[1:]])
    assert (paid >= data.reward.min()).all() and (paid <= data.reward.max()).all()
    seen.clear()
    assert torch.equal(module.imagined_returns(model, policy, None, data, **how), once)
