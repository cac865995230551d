"""DoC and DT where luck looks like skill: `python tests/luck_and_skill.py`, a few minutes of one core.

    bandit  two arms that pay 1 with probability p and 1 - p; the data pull the better one with
            probability `share`, 1,000 times. With tables (20 data sets for each p and share) and with the
            library's DoC and DT (one data set, seeds of training): how often each pulls the better arm.
    lake    gymnasium's FrozenLake-v1, slippery, 4x4. 100 episodes of the best policy with four actions in
            ten at random, as the authors' data are said to be; success of DoC and DT.

Writes results/luck/{tables,bandit,lake}.csv. Columns: `entry` (doc; no_constraint: DoC without the
information term; dt: asked for the return 1; bc), `better_arm` the probability of the better arm,
`information` I(r; z | a) in nats from the encoder's own densities and the known p, `success` the share of
100 episodes that reach the goal.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.func import vmap

from offbench import rng
from offbench.data.pipeline import Pipeline, make_pipeline
from offbench.data.replay import Episode, ReplayData, from_episodes
from offbench.data.views import Window
from offbench.methods.doc import DoC, Gaussian  # noqa: F401
from offbench.methods.dt import DT
from offbench.training.loop import train
from offbench.training.step import unstack
from offbench.types import Context, Policy, Spec, TimeStep

HERE = Path(__file__).resolve().parents[1] / "results/luck"
PULLS = 1000
SMALL = {"width": 16, "layers": 1, "dropout": 0.0, "lr": 3e-3, "warmup": 20, "actions": "discrete"}
METHODS: dict[str, Any] = {
    "doc": DoC(**SMALL, latent_dim=8, past=1, energy_lr=1e-2),
    "no_constraint": DoC(**SMALL, latent_dim=8, past=1, energy_lr=1e-2, energy_weight=0.0),
    "dt": DT(**SMALL),
}

# --- the bandit, with tables


def counts(p: float, share: float, seed: int) -> torch.Tensor:
    """(arm, reward) shares of a data set; arm 1 is the better one."""
    draw = np.random.default_rng(seed)
    arm = (draw.random(PULLS) < share).astype(int)
    reward = (draw.random(PULLS) < np.where(arm == 1, p, 1 - p)).astype(int)
    return torch.tensor(np.bincount(2 * arm + reward, minlength=4) / PULLS).reshape(2, 2)


def tables(
    data: torch.Tensor, weight: float, updates: int = 1000, energy_lr: float = 0.1
) -> dict[str, torch.Tensor]:
    """DoC of N data sets (N, arm, reward) at once, all expectations exact; `better_arm` and `information` (N,).

    Tables q[a, r, z], pi[z, a], V[z, r] and e[a, r, z] of four z. Of a hundred z of the prior, the mean of q,
    the one of the largest V acts.
    """
    n, generator = len(data), torch.Generator().manual_seed(0)
    start = lambda *shape: torch.randn(n, *shape, generator=generator).double().requires_grad_()
    q, policy, value, energy = start(2, 2, 4), start(4, 2), start(4, 2), start(2, 2, 4)
    groups = [{"params": [q, policy, value]}, {"params": [energy], "lr": 0.3}]
    opt = torch.optim.Adam(groups, 0.03)
    rho = data.sum(1)  # (N, reward)
    for _ in range(updates):
        joint = data[..., None] * q.softmax(-1)  # (N, a, r, z)
        arms = joint.sum(2).mT  # (N, z, a)
        rewards = joint.sum(1).mT  # (N, z, r)
        other = ((rho[:, None, :, None] + 1e-12).log() + energy).logsumexp(2, keepdim=True)
        told = (joint * (energy - other)).sum((1, 2, 3))
        known = arms * policy.log_softmax(-1) + rewards * value.log_softmax(-1)
        opt.zero_grad()
        (weight * told - known.sum((1, 2))).sum().backward()
        # the energy climbs
        energy.grad.neg_()
        opt.step()
    with torch.no_grad():
        joint = data[..., None] * q.softmax(-1)
        prior = joint.sum((1, 2))  # (N, z)
        worth = value.softmax(-1)[..., 1]
        # the best of a hundred is z unless none of them is as good as z
        order = worth.argsort(-1, descending=True)
        below = 1 - prior.gather(1, order).cumsum(1).clamp(max=1)
        never = torch.cat([torch.ones(n, 1).double(), below**100], 1)
        chosen = (never[:, :-1] - never[:, 1:]).clamp(min=0)
        pulled = policy.softmax(-1)[..., 1].gather(1, order)
        given = joint.sum(2, keepdim=True) * data.sum(2)[:, :, None, None].reciprocal()  # p(z | a)
        ratio = q.softmax(-1) / given.clamp(min=1e-12)
        information = (joint * ratio.clamp(min=1e-12).log()).sum((1, 2, 3))
    return {"better_arm": (chosen * pulled).sum(1) / chosen.sum(1), "information": information}


def of_tables(seeds: int = 20) -> pd.DataFrame:
    """Rows of tables.csv: means over data sets."""
    rows = []
    cases = [(p, share) for p in (0.6, 0.7, 0.8, 0.9) for share in (0.05, 0.1, 0.3, 0.5)]
    data = torch.stack([counts(*case, seed) for case in cases for seed in range(seeds)])
    found = {"doc": tables(data, 3.0), "no_constraint": tables(data, 0.0)}
    found["dt"] = {"better_arm": data[:, 1, 1] / data[..., 1].sum(1)}
    found["bc"] = {"better_arm": data[:, 1].sum(1)}
    for entry, columns in found.items():
        for i, (p, share) in enumerate(cases):
            part = {k: x[i * seeds : (i + 1) * seeds] for k, x in columns.items()}
            row = {"entry": entry, "p": p, "share": share, "data_sets": seeds}
            row |= {name: float(x.mean()) for name, x in part.items()}
            rows.append(row | {"least": float(part["better_arm"].min())})
    return pd.DataFrame(rows)


# --- the bandit, with the library's methods

BANDIT = Spec(obs_dim=1, action_dim=2, gamma=1.0, max_episode_steps=1, discrete=True)


def pulls(p: float, share: float, seed: int = 0) -> ReplayData:
    """Episodes of one step."""
    draw, made = np.random.default_rng(seed), []
    obs, end = np.ones((2, 1), np.float32), np.array([True])
    for _ in range(PULLS):
        arm = int(draw.random() < share)
        paid = draw.random() < (p if arm else 1 - p)
        made.append(Episode(obs, np.eye(2, dtype=np.float32)[[arm]], np.float32([paid]), end))
    return from_episodes(made)


def one_step(arm: int, n: int, asked: float = 1.0) -> Context:
    """n windows of one step at which `arm` was pulled."""
    one = torch.ones(n, 1)
    action = torch.eye(2)[arm].expand(n, 1, 2)
    return Context(one[..., None], action, asked * one, (0 * one).long(), one > 0)


def better_arm(method: Any, state: Any, n: int = 200) -> float:
    """How often the better arm is pulled."""
    return float(method.act(state, one_step(0, n), rng.key(9))[:, 1].mean())


def information(method: DoC, state: Any, p: float, n: int = 2000) -> float:
    """The larger I(r; z | a) of the two arms: E log q(z | a, r) / (sum over r' of P(r' | a) q(z | a, r'))."""
    found = []
    for arm, chance in enumerate((1 - p, p)):
        context, r = one_step(arm, n), (torch.arange(n) < n * chance).float()[:, None]
        of = lambda r, context=context: method._encoded(state.params, context, r)
        drawn = of(r)
        z = drawn.mean + drawn.log_std.exp() * rng.normal(rng.key(3), tuple(drawn.mean.shape))

        def density(g: Any, z: torch.Tensor = z) -> torch.Tensor:
            return -(0.5 * ((z - g.mean) / g.log_std.exp()) ** 2 + g.log_std).sum((1, 2))

        paid, not_paid = density(of(torch.ones_like(r))), density(of(torch.zeros_like(r)))
        mixed = torch.logaddexp(paid + np.log(chance), not_paid + np.log(1 - chance))
        found.append(float((torch.where(r[:, 0] > 0, paid, not_paid) - mixed).mean()))
    return max(found)


def trained(method: Any, p: float, share: float, updates: int, seeds: list[int]) -> Any:
    """The stacked states of all seeds."""
    view = Window(1, 1.0)
    pipeline = make_pipeline(pulls(p, share), view=view, batch_size=64, needs=method.needs)
    (point,) = train(method, pipeline, BANDIT, seeds=seeds, n_updates=updates, backend="vmap")
    return point.state


def trained_on_pulls(
    method: Any, p: float, share: float, updates: int, seeds: list[int]
) -> list[dict]:
    """A row for each seed of training."""
    states, rows = trained(method, p, share, updates, seeds), []
    for i, seed in enumerate(seeds):
        state = unstack(states, i)
        row = {"p": p, "share": share, "seed": seed, "better_arm": better_arm(method, state)}
        if isinstance(method, DoC):
            row["information"] = information(method, state, p)
        rows.append(row)
    return rows


# --- FrozenLake

LAKE = Spec(obs_dim=16, action_dim=4, gamma=1.0, max_episode_steps=100, discrete=True)


def lakes(n: int) -> list[Any]:
    import gymnasium

    return [gymnasium.make("FrozenLake-v1", is_slippery=True) for _ in range(n)]


def best_actions(env: Any) -> np.ndarray:
    """(16,) those of the largest value, discounted by 0.99."""
    model, v = env.unwrapped.P, np.zeros(16)
    for _ in range(1000):
        ahead = lambda s, a, v=v: sum(
            p * (r + 0.99 * v[t] * (not end)) for p, t, r, end in model[s][a]
        )
        q = np.array([[ahead(s, a) for a in range(4)] for s in range(16)])
        v = q.max(1)
    return q.argmax(1)


def one_hot(number: int, n: int) -> np.ndarray:
    return (np.arange(n) == number).astype(np.float32)


def walks(n: int = 100, epsilon: float = 0.4, seed: int = 0) -> ReplayData:
    """Episodes of the best policy, with a share of actions at random."""
    (env,), draw, made = lakes(1), np.random.default_rng(seed), []
    best = best_actions(env)
    for i in range(n):
        s, _ = env.reset(seed=1000 * seed + i)
        obs, actions, rewards, end, cut = [one_hot(s, 16)], [], [], False, False
        while not (end or cut):
            a = int(draw.integers(4)) if draw.random() < epsilon else int(best[s])
            s, r, end, cut, _ = env.step(a)
            obs.append(one_hot(s, 16)), actions.append(one_hot(a, 4)), rewards.append(r)
        ends = np.arange(len(rewards)) == (len(rewards) - 1 if end else -1)
        made.append(Episode(np.stack(obs), np.stack(actions), np.float32(rewards), ends))
    return from_episodes(made)


def successes(method: Any, state: Any, pipeline: Pipeline, n: int, episodes: int) -> np.ndarray:
    """(n,) share of episodes in which each of n seeds' policies reaches the goal; all meet the same ice."""
    act = lambda s, step, c, key: (vmap(method.act)(s, step.obs, key[:, 0]), c)
    policy = pipeline.policy(Policy(lambda n, e: None, act))
    envs = [lakes(episodes) for _ in range(n)]
    place = np.array([[env.reset(seed=10**6 + i)[0] for i, env in enumerate(row)] for row in envs])
    alive, reached = np.ones((n, episodes), bool), np.zeros((n, episodes))
    reward, memory = torch.zeros(n, episodes), policy.init(n, episodes)
    for t in range(LAKE.max_episode_steps):
        obs = torch.eye(16)[torch.from_numpy(place)]
        key = rng.split(rng.fold(rng.key(7), t), n)[:, None].expand(n, episodes)
        step = TimeStep(obs, reward, torch.full((n, episodes), t == 0))
        action, memory = policy.act(state, step, memory, key)
        for i, j in zip(*np.nonzero(alive), strict=True):
            s, r, end, cut, _ = envs[i][j].step(int(action[i, j].argmax()))
            place[i, j], alive[i, j] = s, not (end or cut)
            reached[i, j] += r
        if not alive.any():
            break
    return reached.mean(1)


def on_the_lake(
    updates: int, seeds: list[int], episodes: int, chosen: tuple[str, ...] = ("doc", "dt")
) -> list[dict]:
    """Rows of lake.csv; a data set for all seeds of training."""
    data, rows = walks(), []
    larger = {"width": 32, "layers": 1}
    entries = {
        "doc": (replace(METHODS["doc"], **larger, past=4), Window(12, 1.0)),
        "no_constraint": (replace(METHODS["no_constraint"], **larger, past=4), Window(12, 1.0)),
        "dt": (replace(METHODS["dt"], **larger), Window(4, 1.0, target_return=1.0)),
    }
    for entry, (method, view) in entries.items():
        if entry not in chosen:
            continue
        pipeline = make_pipeline(data, view=view, batch_size=32, needs=method.needs)
        for point in train(
            method, pipeline, LAKE, seeds=seeds, n_updates=updates, backend="vmap",
            stop_at=[updates // 2, updates],
        ):  # fmt: skip
            got = successes(method, point.state, pipeline, len(seeds), episodes)
            for seed, success in zip(seeds, got, strict=True):
                row = {"entry": entry, "update": point.update, "seed": seed, "success": success}
                rows.append(row)
    return rows


def main() -> None:
    """Trains and writes the tables."""
    parser = argparse.ArgumentParser(description="DoC and DT where luck looks like skill")
    parser.add_argument("parts", nargs="*", default=["tables", "bandit", "lake"])
    parser.add_argument("--to", type=Path, default=HERE)
    args = parser.parse_args()
    made = {}
    if "tables" in args.parts:
        made["tables"] = of_tables()
    if "bandit" in args.parts:
        rows = [
            {"entry": entry} | row
            for entry, method in METHODS.items()
            for row in trained_on_pulls(method, 0.7, 0.1, 600, [0, 1, 2])
        ]
        made["bandit"] = pd.DataFrame(rows)
    if "lake" in args.parts:
        made["lake"] = pd.DataFrame(on_the_lake(600, [0, 1, 2, 3, 4], 50))
    for name, table in made.items():
        table.to_csv(args.to / f"{name}.csv", index=False, float_format="%.4g", lineterminator="\n")


if __name__ == "__main__":
    main()
