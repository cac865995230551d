"""DoC and its rivals where luck looks like skill: `python tests/luck_and_skill.py`, half an hour of one core.

    tables  two arms that pay 1 with probability p and 1 - p; the data pull the better one with probability
            `share`, 1,000 times. With tables, 20 data sets for each p and share.
    bandit  two of these with the library's DoC and DT, five data sets and two seeds of training.
    lake    gymnasium's FrozenLake-v1: tests/frozen_lake.py.

Writes results/luck/{tables,bandit,frozenlake}.csv, and {bandit,frozenlake}_means.csv with 95 % intervals over
data sets (Student's t). Columns: `entry` (doc; no_constraint: DoC without the information term; their_sign:
DoC whose z climbs on the information, as in the authors' code; dt: asked for the return 1; average: DT on
returns averaged over the steps of the same observation and action, asked for the largest, as ESPER (Paster et
al., 2022) with one cluster for each; bc), `better_arm` the probability of the better arm, `information`
I(r; z | a) in nats from the encoder's own densities and the known p.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student

from offbench import rng
from offbench.data.pipeline import Pipeline, make_pipeline
from offbench.data.replay import Episode, ReplayData, from_episodes
from offbench.data.views import Window
from offbench.methods.doc import DoC, Gaussian  # noqa: F401
from offbench.methods.dt import DT
from offbench.training.loop import train
from offbench.training.step import unstack
from offbench.types import Context, Spec

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
    data: torch.Tensor, weight: float, *, climbs: bool = False, updates: int = 1000
) -> dict[str, torch.Tensor]:
    """DoC of N data sets (N, arm, reward) at once, all expectations exact; `arms` (N, arm) and `information` (N,).

    Tables q[a, r, z], pi[z, a], V[z, r] and e[a, r, z], a z for each a and r. Of a hundred z of the prior, the
    mean of q, the one of the largest V acts. `climbs`: q climbs on the information, as e does.
    """
    (n, n_arms, n_r), generator = data.shape, torch.Generator().manual_seed(0)
    n_z, sign = n_arms * n_r, -1 if climbs else 1
    start = lambda *shape: torch.randn(n, *shape, generator=generator).double().requires_grad_()
    q, policy, value = start(n_arms, n_r, n_z), start(n_z, n_arms), start(n_z, n_r)
    energy = start(n_arms, n_r, n_z)
    groups = [{"params": [q, policy, value]}, {"params": [energy], "lr": 0.3}]
    opt = torch.optim.Adam(groups, 0.03)
    rho = data.sum(1)  # (N, reward)
    for _ in range(updates):
        joint = data[..., None] * q.softmax(-1)  # (N, a, r, z)
        arms = joint.sum(2).mT  # (N, z, a)
        rewards = joint.sum(1).mT  # (N, z, r)
        other = ((rho[:, None, :, None] + 1e-12).log() + energy).logsumexp(2, keepdim=True)
        told = (joint * (energy - other)).sum((1, 2, 3))
        known = (arms * policy.log_softmax(-1)).sum((1, 2))
        known = known + (rewards * value.log_softmax(-1)).sum((1, 2))
        opt.zero_grad()
        (sign * weight * told - known).sum().backward()
        # the energy climbs
        energy.grad.mul_(-sign)
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
        pulled = policy.softmax(-1).gather(1, order[..., None].expand(-1, -1, n_arms))  # (N, z, a)
        pulls_of = data.sum(2)[:, :, None, None].clamp(min=1e-12)
        given = joint.sum(2, keepdim=True) * pulls_of.reciprocal()  # p(z | a)
        ratio = q.softmax(-1) / given.clamp(min=1e-12)
        information = (joint * ratio.clamp(min=1e-12).log()).sum((1, 2, 3))
    arms = (chosen[..., None] * pulled).sum(1) / chosen.sum(1, keepdim=True)
    return {"arms": arms, "information": information}


def of_tables(seeds: int = 20) -> pd.DataFrame:
    """Rows of tables.csv: means over data sets."""
    rows = []
    cases = [(p, share) for p in (0.6, 0.7, 0.8, 0.9) for share in (0.05, 0.1, 0.3, 0.5)]
    data = torch.stack([counts(*case, seed) for case in cases for seed in range(seeds)])
    learned = {
        "doc": tables(data, 3.0),
        "no_constraint": tables(data, 0.0),
        "their_sign": tables(data, 1.0, climbs=True),
    }
    found = {
        entry: {"better_arm": x["arms"][:, 1], "information": x["information"]}
        for entry, x in learned.items()
    }
    found["dt"] = {"better_arm": data[:, 1, 1] / data[..., 1].sum(1)}
    paid = data[..., 1] / data.sum(2)
    found["average"] = {"better_arm": (paid[:, 1] > paid[:, 0]).double()}
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


def averaged(pipeline: Pipeline) -> Pipeline:
    """Returns-to-go are the mean over steps of the same observation and action, and the largest is asked for.

    Actions are one-hot: the ends of episodes, without one, are of no step's kind.
    """
    data, view = pipeline.data, pipeline.view
    _, kind = torch.cat([data.obs, data.action], 1).unique(dim=0, return_inverse=True)
    add = lambda x: torch.zeros(len(kind)).index_add(0, kind, x)[kind]
    mean = add(view.to_go) / add(torch.ones_like(view.to_go))
    return pipeline._replace(view=view._replace(to_go=mean, target_return=float(mean.max())))


def better_arm(method: Any, state: Any, asked: float = 1.0, n: int = 200) -> float:
    """How often the better arm is pulled."""
    return float(method.act(state, one_step(0, n, asked), rng.key(9))[:, 1].mean())


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


def trained(
    method: Any, p: float, share: float, updates: int, seeds: list[int], data_set: int = 0,
    average: bool = False,
) -> tuple[Any, float]:  # fmt: skip
    """The stacked states of all seeds, and what they are to be asked for."""
    data, view = pulls(p, share, data_set), Window(1, 1.0)
    pipeline = make_pipeline(data, view=view, batch_size=64, needs=method.needs)
    pipeline = averaged(pipeline) if average else pipeline
    (point,) = train(method, pipeline, BANDIT, seeds=seeds, n_updates=updates, backend="eager")
    return point.state, pipeline.view.target_return


def trained_on_pulls(
    method: Any, p: float, share: float, updates: int, seeds: list[int], data_set: int = 0,
    average: bool = False,
) -> list[dict]:  # fmt: skip
    """A row for each seed of training."""
    states, asked = trained(method, p, share, updates, seeds, data_set, average)
    rows = []
    for i, seed in enumerate(seeds):
        state = unstack(states, i)
        row = {"p": p, "share": share, "data_set": data_set, "seed": seed, "updates": updates}
        row["better_arm"] = better_arm(method, state, asked)
        if isinstance(method, DoC):
            row["information"] = information(method, state, p)
        rows.append(row)
    return rows


def on_the_bandit(data_sets: int = 5, updates: int = 600) -> pd.DataFrame:
    """Rows of bandit.csv."""
    methods = METHODS | {"average": METHODS["dt"]}
    return pd.DataFrame(
        {"entry": entry} | row
        for p, share in ((0.7, 0.1), (0.9, 0.3))
        for entry, method in methods.items()
        for i in range(data_sets)
        for row in trained_on_pulls(method, p, share, updates, [0, 1], i, entry == "average")
    )


def means(table: pd.DataFrame, measured: list[str]) -> pd.DataFrame:
    """Over data sets, of each the mean over seeds, with 95 % intervals; `least` and `largest` of all runs."""
    by = [c for c in table if c not in (*measured, "data_set", "seed")]
    made = []
    for setting, runs in table.groupby(by, dropna=False, sort=False):
        for name in measured:
            if runs[name].isna().all():
                continue
            of_sets = runs.groupby("data_set", dropna=False)[name].mean()
            n, mean = len(of_sets), of_sets.mean()
            half = student.ppf(0.975, n - 1) * of_sets.std() / n**0.5 if n > 1 else np.nan
            row = dict(zip(by, setting, strict=True)) | {"measured": name, "mean": mean}
            row |= {"low": mean - half, "high": mean + half, "data_sets": n, "runs": len(runs)}
            made.append(row | {"least": runs[name].min(), "largest": runs[name].max()})
    return pd.DataFrame(made)


def main() -> None:
    """Trains and writes the tables."""
    parser = argparse.ArgumentParser(description="DoC and its rivals where luck looks like skill")
    parser.add_argument("parts", nargs="*", default=["tables", "bandit", "lake"])
    parser.add_argument("--to", type=Path, default=HERE)
    args = parser.parse_args()

    def write(name: str, table: pd.DataFrame) -> None:
        to = args.to / f"{name}.csv"
        table.to_csv(to, index=False, float_format="%.4g", lineterminator="\n")

    if "tables" in args.parts:
        write("tables", of_tables())
    if "bandit" in args.parts:
        table = on_the_bandit()
        write("bandit", table), write("bandit_means", means(table, ["better_arm", "information"]))
    if "lake" in args.parts:
        import frozen_lake

        table = frozen_lake.rows()
        write("frozenlake", table), write("frozenlake_means", means(table, ["success", "over_dt"]))


if __name__ == "__main__":
    main()
