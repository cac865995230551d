"""Our records beside the peer's rows: per_seed.csv, parity.csv and the tables of README.md.

    python tests/parity/compare.py RECORDS ROWS_FOLDER COMMIT_OF_THE_PEER

A cell is (name, task, updates, batch): the name is an entry's label up to "(" here, the file's stem
there. It is compared on the seeds that both sides have, once there are five; those that wait are printed.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from offbench.results.record import episodes_file
from offbench.results.stats import Interval, mean_interval

HERE = Path(__file__).parents[2] / "results/parity"
CELL = ["name", "task", "updates", "batch"]
NAMES = {
    "bc": "BC", "td3_bc": "TD3+BC", "iql": "IQL", "cql": "CQL", "rebrac": "ReBRAC", "awac": "AWAC",
    "cal_ql": "Cal-QL", "dt": "DT", "sac_n": "SAC-N", "edac": "EDAC", "edac_best": "EDAC, best of 10 actions",
    "fql": "FQL", "ifql": "IFQL", "qc": "QC", "qc_fql": "QC-FQL", "qgf": "QGF",
    "gcbc": "GCBC", "gcivl": "GCIVL", "gciql": "GCIQL", "gciql_awr": "GCIQL, AWR", "qrl": "QRL", "crl": "CRL",
    "crl_awr": "CRL, AWR", "a2pr": "A2PR",
    "odice": "ODICE", "odice_semi": "ODICE, semi-gradient", "odice_true": "ODICE, true gradient",
}  # fmt: skip
SEEDS = 5  # fewer are not compared
WIDE = 10.0  # points: an interval that reaches further from 0 says little


def ours(records: Path) -> pd.DataFrame:
    """One row per seed, from the records' test episodes."""
    rows = []
    for path in sorted(records.glob("runs/**/*.json")):
        about = json.loads(path.read_text())
        spec, made = about["spec"], about["provenance"]
        if about["status"] != "ok":
            raise SystemExit(f"{path}: {about['status']}: {about['reason']}")
        test = pd.read_parquet(episodes_file(path, about["episodes"])).query("stream == 'test'")
        pipeline = spec["pipeline"]
        rows.append(
            {
                "name": made["entry"].split("(")[0],
                "task": spec["task"],
                "updates": spec["n_updates"],
                "batch": pipeline["batch_size"],
                "side": "offbench",
                "seed": spec["seed"],
                "score": test["score"].mean(),
                "episodes": len(test),
                "commit": made["commit"][:7],
                "settings": json.dumps(spec["hparams"] | pipeline["transforms"], sort_keys=True),
            }
        )
    return pd.DataFrame(rows)


def theirs(folder: Path, commit: str) -> pd.DataFrame:
    """One row per seed, from the episodes `peer.py run` writes."""
    frames = [pd.read_csv(path).assign(name=path.stem) for path in sorted(folder.glob("*.csv"))]
    rows = pd.concat(frames)
    batch = rows["settings"].str.extract(r"\bbatch_size=(\d+)")[0]
    rows["batch"] = batch.fillna(256).astype(int)  # the default of every algorithm in peer.py
    table = rows.groupby([*CELL, "seed", "settings"], as_index=False).agg(
        score=("score", "mean"), episodes=("score", "size")
    )
    return table.assign(side="CORL", commit=commit[:7])


def welch_interval(a: np.ndarray, b: np.ndarray) -> Interval:
    """95 % interval of mean(a) - mean(b) for seeds that are not paired."""
    point = float(a.mean() - b.mean())
    va, vb = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    if va + vb == 0:
        return Interval(point, point, point)
    freedom = (va + vb) ** 2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1))
    half = float(scipy_stats.t.ppf(0.975, freedom) * np.sqrt(va + vb))
    return Interval(point, point - half, point + half)


def bootstrap_interval(a: np.ndarray, b: np.ndarray, reps: int = 2000) -> Interval:
    """95 % percentile interval of mean(a) - mean(b), each side resampled by itself.

    Seeds are stretched by sqrt(n / (n - 1)) about their mean (Rao and Wu 1988), which gives a resample
    the variance of the seeds.
    """
    rng, means = np.random.default_rng(0), []
    for x in (a, b):
        stretched = x + (x - x.mean()) * (np.sqrt(len(x) / (len(x) - 1)) - 1)
        means.append(stretched[rng.integers(len(x), size=(reps, len(x)))].mean(-1))
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return Interval(float(a.mean() - b.mean()), float(low), float(high))


def cell(key: tuple, a: pd.DataFrame, b: pd.DataFrame) -> dict:
    """Both sides of a cell on the same seeds, and the rule: the interval of the difference contains
    0, or the difference is under 2 points."""
    assert len(set(a["episodes"]) | set(b["episodes"])) == 1, key
    assert len(set(a["settings"])) == len(set(b["settings"])) == 1, key
    x, y = a["score"].to_numpy(), b["score"].to_numpy()
    welch = welch_interval(x, y)
    boot = bootstrap_interval(x, y)
    here, there = mean_interval(x), mean_interval(y)
    agrees = welch.low <= 0 <= welch.high or abs(welch.point) < 2
    wide = max(-welch.low, welch.high) > WIDE
    return dict(zip(CELL, key)) | {
        "seeds": len(x),
        "episodes": int(a["episodes"].iloc[0]),
        "offbench": here.point,
        "offbench_low": here.low,
        "offbench_high": here.high,
        "corl": there.point,
        "corl_low": there.low,
        "corl_high": there.high,
        "difference": welch.point,
        "welch_low": welch.low,
        "welch_high": welch.high,
        "bootstrap_low": boot.low,
        "bootstrap_high": boot.high,
        "verdict": ("agrees, wide" if wide else "agrees") if agrees else "differs",
        "offbench_commit": "+".join(sorted(set(a["commit"]))),
        "corl_commit": b["commit"].iloc[0],
        "offbench_settings": a["settings"].iloc[0],
        "corl_settings": b["settings"].iloc[0],
    }


def pooled(per_seed: pd.DataFrame) -> tuple[float, float, float]:
    """Mean over cells of the differences of means, with its interval; every cell counts alike.

    Welch's with more groups: the variance is the sum of those of all means, the degrees of freedom
    Satterthwaite's.
    """
    groups = per_seed.groupby([*CELL, "side"])["score"]
    n, variance = groups.size(), groups.var(ddof=1) / groups.size()
    means = groups.mean().unstack("side")
    cells, total = len(means), float(variance.sum())
    point = float((means["offbench"] - means["CORL"]).mean())
    half = 0.0
    if total > 0:
        freedom = total**2 / float((variance**2 / (n - 1)).sum())
        half = float(scipy_stats.t.ppf(0.975, freedom)) * total**0.5 / cells
    return point, point - half, point + half


def _short(task: str) -> str:
    words = re.sub(r"offbench/|-v\d+$", "", task).replace("/", " ")
    return words.replace("expert5", "5 % expert")


def _span(point: float, low: float, high: float, sign: str = "") -> str:
    return f"{point:{sign}.1f} [{low:.1f}, {high:.1f}]"


def _rank(column: pd.Series) -> pd.Series:
    return (
        column.map({name: i for i, name in enumerate(NAMES)}) if column.name == "name" else column
    )


def scores(table: pd.DataFrame) -> list[str]:
    lines = [
        "| method | data | updates | batch | seeds | offbench | CORL | difference | |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for r in table.sort_values(["name", "task", "batch"], key=_rank).itertuples():
        values = (
            _span(r.offbench, r.offbench_low, r.offbench_high),
            _span(r.corl, r.corl_low, r.corl_high),
            _span(r.difference, r.welch_low, r.welch_high, "+"),
        )
        about = f"{NAMES[r.name]} | {_short(r.task)} | {r.updates:,} | {r.batch} | {r.seeds}"
        lines.append(f"| {about} | {' | '.join(values)} | {r.verdict} |")
    return lines


def summary(table: pd.DataFrame, per_seed: pd.DataFrame) -> list[str]:
    holds = (table["welch_low"] <= 0) & (0 <= table["welch_high"])
    wide = table["verdict"].str.endswith("wide").sum()
    differs = (table["verdict"] == "differs").sum()
    lines = [
        f"{len(table)} cells: {holds.sum()} intervals of the difference contain 0 (of intervals that are right 95 times in "
        f"100, {0.95 * len(table):.0f} would), {differs} differ by the rule, {wide} reach further than {WIDE:.0f} points from 0.",
        "",
        "| method | cells | mean of their differences |",
        "|---|---:|---:|",
    ]
    for name in sorted(set(per_seed["name"]), key=list(NAMES).index):
        part = per_seed[per_seed["name"] == name]
        cells = part.groupby(CELL).ngroups
        lines.append(f"| {NAMES[name]} | {cells} | {_span(*pooled(part), '+')} |")
    return [*lines, f"| all | {len(table)} | {_span(*pooled(per_seed), '+')} |"]


def updates(table: pd.DataFrame) -> list[str]:
    lines = [
        "| method | code of | data | updates | largest difference | largest change |",
        "|---|---|---|---:|---:|---:|",
    ]
    # hierarchies over goals are told of in words
    table = table.rename(columns={"algorithm": "name"}).query("name in @NAMES")
    keys = ["name", "reference", "task", "updates"]
    largest = table.groupby(keys, as_index=False).max(numeric_only=True)
    for r in largest.sort_values(["name", "task"], key=_rank).itertuples():
        code = r.reference.rsplit(" ", 1)[0]
        about = f"{NAMES[r.name]} | {code} | {_short(r.task)} | {r.updates}"
        lines.append(f"| {about} | {r.largest_difference:.0e} | {r.largest_change:.1g} |")
    return lines


def put(text: str, name: str, lines: list[str]) -> str:
    """The text with what is between `<!-- NAME -->` and `<!-- end -->` replaced."""
    begin, end = f"<!-- {name} -->\n", "<!-- end -->"
    head, rest = text.split(begin)
    return head + begin + "\n".join([*lines, ""]) + end + rest.split(end, 1)[1]


def main(records: Path, folder: Path, commit: str) -> None:
    both = pd.concat([ours(records), theirs(folder, commit)])
    assert not both.duplicated([*CELL, "side", "seed"]).any()
    rows, kept = [], []
    for key, part in both.groupby(CELL):
        seeds = {side: set(part.loc[part["side"] == side, "seed"]) for side in ("offbench", "CORL")}
        common = seeds["offbench"] & seeds["CORL"]
        if len(common) < SEEDS or seeds["offbench"] != seeds["CORL"]:
            print("waits:", *key, {side: len(s) for side, s in seeds.items()})
        if len(common) >= SEEDS:
            part = part[part["seed"].isin(common)].sort_values(["side", "seed"])
            kept.append(part)
            rows.append(cell(key, part[part["side"] == "offbench"], part[part["side"] == "CORL"]))
    table, per_seed = pd.DataFrame(rows).round(3), pd.concat(kept)
    table.to_csv(HERE / "parity.csv", index=False)
    columns = [*CELL, "side", "seed", "score", "episodes", "commit", "settings"]
    per_seed[columns].round(3).to_csv(HERE / "per_seed.csv", index=False)
    text = (HERE / "README.md").read_text()
    text = put(text, "updates", updates(pd.read_csv(HERE / "same_updates.csv")))
    text = put(text, "scores", scores(table))
    text = put(text, "summary", summary(table, per_seed))
    (HERE / "README.md").write_text(text)
    print("\n".join(scores(table) + [""] + summary(table, per_seed)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
