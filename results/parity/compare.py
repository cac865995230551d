"""Our records beside the peer's rows: per_seed.csv and parity.csv.

    python results/parity/compare.py RECORDS ROWS_FOLDER COMMIT_OF_THE_PEER

A cell is (name, task, updates): the name is an entry's label up to "(" here, the file's stem there.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from offbench.stats import mean_interval, unpaired_difference

HERE = Path(__file__).parent
CELL = ["name", "task", "updates"]


def ours(records: Path) -> pd.DataFrame:
    """One row per seed, from the records' test episodes."""
    rows = []
    for path in sorted(records.glob("runs/**/*.json")):
        about = json.loads(path.read_text())
        spec, made = about["spec"], about["provenance"]
        if about["status"] != "ok":
            raise SystemExit(f"{path}: {about['status']}: {about['reason']}")
        test = pd.read_parquet(path.with_suffix(".parquet")).query("stream == 'test'")
        pipeline = spec["pipeline"]
        settings = spec["hparams"] | pipeline["transforms"] | {"batch_size": pipeline["batch_size"]}
        rows.append(
            {
                "name": made["entry"].split("(")[0],
                "task": spec["task"],
                "updates": spec["n_updates"],
                "side": "offbench",
                "seed": spec["seed"],
                "score": test["score"].mean(),
                "episodes": len(test),
                "train_s": made["train_s"] / made["pack"],
                "commit": made["commit"][:7],
                "settings": json.dumps(settings, sort_keys=True),
            }
        )
    return pd.DataFrame(rows)


def theirs(folder: Path, commit: str) -> pd.DataFrame:
    frames = [pd.read_csv(path).assign(name=path.stem) for path in sorted(folder.glob("*.csv"))]
    keys = [*CELL, "seed", "train_seconds", "settings"]
    table = (
        pd.concat(frames)
        .groupby(keys, as_index=False)
        .agg(score=("score", "mean"), episodes=("score", "size"))
    )
    return table.rename(columns={"train_seconds": "train_s"}).assign(side="CORL", commit=commit[:7])


def cell(key: tuple, a: pd.DataFrame, b: pd.DataFrame) -> dict:
    x, y = a["score"].to_numpy(), b["score"].to_numpy()
    assert set(a["seed"]) == set(b["seed"]) and set(a["episodes"]) == set(b["episodes"])
    if np.ptp(x) == 0 and np.ptp(y) == 0:
        low = high = x.mean() - y.mean()
    else:
        low, high = scipy_stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    boot = unpaired_difference([x], [y], rng=np.random.default_rng(0), rescale=True)
    ours_ci, peer_ci = mean_interval(x), mean_interval(y)
    agrees = low <= 0 <= high or abs(x.mean() - y.mean()) < 2
    return dict(zip(CELL, key)) | {
        "seeds": len(x),
        "episodes": int(a["episodes"].iloc[0]),
        "offbench": x.mean(),
        "offbench_low": ours_ci.low,
        "offbench_high": ours_ci.high,
        "corl": y.mean(),
        "corl_low": peer_ci.low,
        "corl_high": peer_ci.high,
        "difference": x.mean() - y.mean(),
        "welch_low": low,
        "welch_high": high,
        "bootstrap_low": boot.low,
        "bootstrap_high": boot.high,
        "verdict": "agrees" if agrees else "differs",
        "offbench_s_per_1000": 1000 * a["train_s"].mean() / key[2],
        "corl_s_per_1000": 1000 * b["train_s"].mean() / key[2],
        "offbench_commit": "+".join(sorted(set(a["commit"]))),
        "corl_commit": b["commit"].iloc[0],
        "offbench_settings": a["settings"].iloc[0],
        "corl_settings": b["settings"].iloc[0],
    }


def main(records: Path, folder: Path, commit: str) -> None:
    both = pd.concat([ours(records), theirs(folder, commit)])
    both = both.sort_values([*CELL, "side", "seed"], ignore_index=True)
    columns = [*CELL, "side", "seed", "score", "episodes", "train_s", "commit", "settings"]
    both[columns].round(3).to_csv(HERE / "per_seed.csv", index=False)
    rows = []
    for key, part in both.groupby(CELL):
        a, b = part[part["side"] == "offbench"], part[part["side"] == "CORL"]
        if len(a) and len(a) == len(b):
            rows.append(cell(key, a, b))
    table = pd.DataFrame(rows).round(3)
    table.to_csv(HERE / "parity.csv", index=False)
    print(table.iloc[:, :16].to_string(index=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
