"""Our records of goal-conditioned methods beside the rows of OGBench's agents: goals.csv and its table in README.md.

    PYTHONPATH=tests python -m parity.compare_goals RECORDS ROWS_FOLDER COMMIT_OF_OGBENCH

ROWS_FOLDER has what `ogbench_peer.py run` wrote, a file for each method, of its name. A cell is (name, task,
updates, batch), compared on the seeds that both sides have. A line of goals.csv holds the score of every seed.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from parity.compare import CELL, HERE, _short, _span, cell, ours, put

NAMES = {"gcbc": "GCBC", "gcivl": "GCIVL", "hiql": "HIQL"}
SEEDS = 4  # fewer are not compared


def theirs(folder: Path, commit: str) -> pd.DataFrame:
    """One row per seed."""
    rows = pd.concat(
        pd.read_csv(path).assign(name=path.stem) for path in sorted(folder.glob("*.csv"))
    )
    rows["batch"] = rows["settings"].map(lambda text: json.loads(text)["batch_size"])
    table = rows.groupby([*CELL, "seed", "settings", "versions"], as_index=False).agg(
        score=("score", "mean"), episodes=("score", "size")
    )
    return table.assign(side="OGBench", commit=commit[:7])


def line(key: tuple, here: pd.DataFrame, there: pd.DataFrame) -> dict[str, Any]:
    """A cell's line of goals.csv; the sides' rows in the order of their seeds."""
    made = {k.replace("corl", "ogbench"): v for k, v in cell(key, here, there).items()}
    scores = {
        f"{side}_scores": " ".join(f"{x:g}" for x in part["score"].round(3))
        for side, part in (("offbench", here), ("ogbench", there))
    }
    seeds = " ".join(map(str, here["seed"]))
    return made | {"seed_numbers": seeds} | scores | {"versions": there["versions"].iloc[0]}


def table(goals: pd.DataFrame) -> list[str]:
    lines = [
        "| method | data | updates | batch | seeds | offbench | OGBench | difference | |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for r in goals.itertuples():
        values = (
            _span(r.offbench, r.offbench_low, r.offbench_high),
            _span(r.ogbench, r.ogbench_low, r.ogbench_high),
            _span(r.difference, r.welch_low, r.welch_high, "+"),
        )
        about = f"{NAMES[r.name]} | {_short(r.task)} | {r.updates:,} | {r.batch} | {r.seeds}"
        lines.append(f"| {about} | {' | '.join(values)} | {r.verdict} |")
    return lines


def main(records: Path, folder: Path, commit: str) -> None:
    both = pd.concat([ours(records), theirs(folder, commit)])
    assert not both.duplicated([*CELL, "side", "seed"]).any()
    lines = []
    for key, part in both.groupby(CELL):
        sides = [part[part["side"] == side].sort_values("seed") for side in ("offbench", "OGBench")]
        common = set(sides[0]["seed"]) & set(sides[1]["seed"])
        if len(common) < SEEDS:
            print("waits:", *key, [len(side) for side in sides])
            continue
        lines.append(line(key, *(side[side["seed"].isin(common)] for side in sides)))
    goals = pd.DataFrame(lines).round(3)
    goals.to_csv(HERE / "goals.csv", index=False)
    text = (HERE / "README.md").read_text()
    (HERE / "README.md").write_text(put(text, "goals", table(goals)))
    print("\n".join(table(goals)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
