"""How noise in ACSAC's critics favours lengths of chunks, where the truth is known: `python tests/simulate_chunk_bias.py`.

Writes results/chunk_bias/ in a minute and a half of one core, the same bytes each time. The operator, its noise and the
corridor on which all is known are those of tests/support/chunk_bias.py. A step to success costs 1, so sigma, the
standard deviation of the noise, is in steps.

equal_lengths.csv: a corridor without end on which all lengths are truly equal. For each H (h), n and number of
critics the shares of the lengths in the maxima, their mean, and `slope`, by how much V is too high for each step
to the goal, in sigmas. Neither depends on sigma. On the corridor below, which ends and has a discount, shares
differ from these by less than 0.05, and with up to four critics by less than 0.012.

The setting in other files: h, n, critics, sigma, Polyak rate of the target (1: none), growth (noise of length k is
sigma * k ** growth), double (chosen by one set of critics, valued by another).

corridor.csv: for each zone and length, means over the states of the zone: the shares `exact` (without noise;
empty in `far`, where all are equal), `chosen` (in bootstrapped maxima) and `executed` (by the policy; of the
online critics where targets are averaged); how much too high Q of this length is after `one_backup` of the exact
values, and at the `fixed_point`.

policies.csv: value_bias (how much V of the start is too high) and the expected steps to success of the policy that
chooses by the noisy critics among all prefixes (steps) and among those of one length (steps_1 to steps_7). Sigma 0
are exact critics.

propagation.csv: sweeps over all states with exact critics, from values that are `start` everywhere: 0 is too high
where a step costs 1, -100 = -1 / (1 - gamma) the least that is possible. value_bias of all lengths (H = 5), of one and
of five steps alone; mean_length in `far` if the critics had noise 0.2 at that sweep. With a reward of 0 until
success and 1 for it instead, all values are 1 + V / 100, and 0 is the least that is possible.

simulated.csv: value_bias, and mean lengths chosen and executed in each zone, by simulation and by quadrature.
Distinct proposals are 16 or 32 of each chunk; shared are one, so that chunks which begin alike share values.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from support.chunk_bias import (
    GAMMA,
    Setting,
    backup,
    choices,
    corridor,
    equal_lengths,
    over,
    solve,
    steps_to_success,
    sweeps,
    tables,
    updates,
)

HERE = Path(__file__).resolve().parents[1] / "results/chunk_bias"
# by number of critics; of Okabe and Ito's palette, told apart by everyone
COLOURS = {1: "#D55E00", 2: "#0072B2", 4: "#009E73", 10: "#CC79A7"}
CRITICS = tuple(COLOURS)
BASE = Setting()
SETTINGS = [
    *(BASE._replace(sigma=s, critics=k) for s in (0.05, 0.1, 0.2, 0.4, 0.8) for k in CRITICS),
    *(BASE._replace(n=n) for n in (1, 2, 8, 32)),
    *(BASE._replace(h=h) for h in (1, 3, 7)),
    *(BASE._replace(rate=rate) for rate in (0.05, 0.005)),
    *(BASE._replace(growth=growth) for growth in (-0.5, 0.5)),
    *(BASE._replace(double=True, critics=k) for k in (1, 2)),
]
SIMULATED = [
    *((BASE._replace(critics=k), "tables, distinct") for k in CRITICS),
    *((BASE._replace(critics=k), "tables, shared") for k in CRITICS),
    *((BASE._replace(rate=rate), "updates") for rate in (1.0, 0.05)),
]


def measured(setting: Setting) -> tuple[pd.DataFrame, dict[str, float]]:
    """Rows of corridor.csv and of policies.csv."""
    mdp, noiseless = corridor(setting.h), setting._replace(sigma=0.0)
    exact, value = solve(mdp, noiseless), solve(mdp, setting)
    exact_q, q = backup(mdp, exact), backup(mdp, value)
    once = [setting.choose(one[None], mdp.chance).value[0] for one in exact_q]
    executed = choices(mdp, setting, q, online=True)
    of_state = {
        "exact": choices(mdp, noiseless, exact_q).sum(1),
        "chosen": choices(mdp, setting, q).sum(1),
        "executed": executed.sum(1),
        "one_backup": over(mdp, np.array(once), exact),
        "fixed_point": over(mdp, value, exact),
    }
    rows = []
    for zone, states in mdp.zones.items():
        found = pd.DataFrame({what: table[states].mean(0) for what, table in of_state.items()})
        if zone == "far":
            found["exact"] = np.nan
        found.insert(0, "zone", zone), found.insert(1, "length", range(1, setting.h + 1))
        rows.append(found)
    policy = {"value_bias": (value - exact)[-1], "steps": steps_to_success(mdp, executed)}
    for k in range(1, setting.h + 1):
        share = choices(mdp, setting, q, online=True, only=k)
        policy[f"steps_{k}"] = steps_to_success(mdp, share)
    return pd.concat(rows), policy


def simulated(setting: Setting, how: str) -> pd.DataFrame:
    """Rows of simulated.csv."""
    mdp, rng, length = corridor(setting.h), np.random.default_rng(0), np.arange(1, setting.h + 1)
    if how == "updates":
        value, chosen, executed = updates(mdp, setting, rng, n=400, details=16)
    else:
        n, details = (200, 0) if how == "tables, shared" else (12, 32)
        each, chosen = tables(mdp, setting, rng, n, details)
        value, executed = each.mean(0), chosen
    exact, noisy = solve(mdp, setting._replace(sigma=0.0)), solve(mdp, setting)
    q = backup(mdp, noisy)
    shares = {
        "chosen": chosen,
        "executed": executed,
        "chosen_quadrature": choices(mdp, setting, q).sum(1),
        "executed_quadrature": choices(mdp, setting, q, online=True).sum(1),
    }
    rows = pd.DataFrame({"zone": list(mdp.zones)})
    rows["value_bias"], rows["value_bias_quadrature"] = (value - exact)[-1], (noisy - exact)[-1]
    for name, share in shares.items():
        rows[name] = [(share[states] @ length).mean() for states in mdp.zones.values()]
    return rows.assign(**setting._asdict(), how=how)[[*setting._fields, "how", *rows]]


def equal_table() -> pd.DataFrame:
    """equal_lengths.csv."""
    rows = []
    for h, n, critics in product((1, 3, 5, 7), (1, 2, 4, 8, 32), CRITICS):
        slope, share = equal_lengths(h, n, critics)
        row = {"h": h, "n": n, "critics": critics, "slope": slope}
        row["mean_length"] = share @ np.arange(1, h + 1)
        rows.append(row | {f"share_{k}": x for k, x in enumerate(share, 1)})
    return pd.DataFrame(rows)


def propagation(n_sweeps: int = 50) -> pd.DataFrame:
    """propagation.csv."""
    mdp, length, tables = corridor(BASE.h), np.arange(1, BASE.h + 1), []
    exact, far = solve(mdp, BASE._replace(sigma=0.0)), mdp.zones["far"]
    for start in (0.0, -1 / (1 - GAMMA)):
        of = {only: sweeps(mdp, BASE.n, start, n_sweeps, only) for only in (0, 1, BASE.h)}
        found = pd.DataFrame({"start": round(start), "sweep": range(1, n_sweeps + 1)})
        for only, name in ((0, "value_bias"), (1, "value_bias_1"), (BASE.h, "value_bias_5")):
            found[name] = (of[only] - exact)[:, -1]
        q = [backup(mdp, value, far) for value in of[0]]
        found["mean_length"] = [(choices(mdp, BASE, x).sum(1) @ length).mean() for x in q]
        tables.append(found)
    return pd.concat(tables)


def draw(path: Path) -> None:
    """Shares where lengths are equal, mean lengths on the way, and by how much V is too high."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    (shares, lengths), (values, sweeping) = figure.subplots(2, 2)
    mdp, length = corridor(BASE.h), np.arange(1, BASE.h + 1)
    # the two states of a stage of luck have one place
    place = np.array([max(s // 2, s - 3) for s in range(len(mdp.reward))]) + 1
    of_place = lambda x: pd.Series(x).groupby(place).mean()
    for critics, colour in COLOURS.items():
        setting = BASE._replace(critics=critics)
        label = f"{critics} critic" + "s" * (critics > 1)
        share = equal_lengths(setting.h, setting.n, critics)[1]
        shares.plot(length, 100 * share, "o-", color=colour, label=label)
        over = solve(mdp, setting) - solve(mdp, setting._replace(sigma=0.0))
        values.plot(of_place(over), color=colour, label=label)
    for sigma, critics, style in ((0.05, 2, "--"), (0.2, 2, "-"), (0.8, 2, ":"), (0.2, 10, "-")):
        setting = BASE._replace(sigma=sigma, critics=critics)
        share = choices(mdp, setting, backup(mdp, solve(mdp, setting))).sum(1)
        label = f"noise {sigma:g}, {critics} critics"
        lengths.plot(of_place(share @ length), style, color=COLOURS[critics], label=label)
    exact = BASE._replace(sigma=0.0)
    share = choices(mdp, exact, backup(mdp, solve(mdp, exact))).sum(1)
    first = place[mdp.zones["far"][0]]
    last = place[mdp.zones["middle"][-1]]
    lengths.plot(of_place(share @ length).loc[2:last], "k", label="exact values")
    for ends, label in (((first, place[-1]), "exact: all equal"), ((0.8, 1.2), None)):
        lengths.fill_between(ends, 1, BASE.h, color="0.9", label=label)
    for start, way in propagation().groupby("start"):
        style = "-" if start else "--"
        for name, label, colour, width in (
            ("value_bias_1", "1 step", "0.7", 5),
            ("value_bias_5", "5 steps", "#56B4E9", 3),
            ("value_bias", "all lengths", "k", 1.5),
        ):
            label = label if start else None
            sweeping.plot(way["sweep"], way[name], style, color=colour, lw=width, label=label)
    sweeping.set(xlabel="sweep (dashed: from values of 0, solid: of -100)", ylim=(-80, 30))
    sweeping.set(ylabel="V too high by [steps]", title="Without noise: V at the start, by sweeps")
    shares.set_xticks(length)
    shares.axhline(100 / BASE.h, color="0.6", linestyle=":")
    for axes in (values, sweeping):
        axes.axhline(0, color="0.6", linestyle=":")
    shares.set(xlabel="length", ylabel="chosen [%]", title="Where all lengths are equal")
    lengths.set(ylabel="mean chosen length", title="Luck in 1-3, waiting in 4-13, neither from 14")
    values.set(ylabel="V too high by [steps]", title="How much V is too high, noise 0.2")
    for axes in (lengths, values):
        axes.set_xlabel("place in the corridor (1: last before success)")
        axes.invert_xaxis()
    for axes in (shares, lengths, values, sweeping):
        axes.legend(frameon=False, fontsize=8, loc="upper right")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"N = {BASE.n} proposals of H = {BASE.h} steps", fontsize=10)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    """Writes tables and picture."""
    parser = argparse.ArgumentParser(description="which lengths noise in ACSAC's critics favours")
    parser.add_argument("--to", type=Path, default=HERE)
    to = parser.parse_args().to
    to.mkdir(parents=True, exist_ok=True)
    write = lambda rows, name: pd.DataFrame(rows).to_csv(
        to / name, index=False, float_format="%.4g", lineterminator="\n"
    )
    write(equal_table(), "equal_lengths.csv")
    lines, policies = [], []
    for setting in SETTINGS:
        rows, policy = measured(setting)
        lines.append(rows.assign(**setting._asdict())[[*setting._fields, *rows.columns]])
        policies.append(setting._asdict() | policy)
    exact = BASE._replace(sigma=0.0)
    policies.insert(0, exact._asdict() | measured(exact)[1])
    write(propagation(), "propagation.csv")
    write(pd.concat(lines), "corridor.csv")
    write(policies, "policies.csv")
    write(pd.concat([simulated(*case) for case in SIMULATED]), "simulated.csv")
    draw(to / "chunk_bias.png")


if __name__ == "__main__":
    main()
