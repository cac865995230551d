"""Builds `conf/published/scores.csv` from the collected facts of `shared/reference/published_scores.csv`:

    python tests/support/published.py FACTS OUT

Scores, spreads and seeds are as they were collected. Added are a short name of the source, the task's id and
our entry; left out is what is no score of a dataset (`LEFT_OUT`).
"""

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

COLUMNS = ("source", "task", "entry", "method", "score", "std", "seeds", "steps", "note")

Row = Mapping[str, str]

# why a fact is not shipped: reason -> (part of the source, of the method, of the dataset, of the note), regular expressions
LEFT_OUT: Mapping[str, Sequence[tuple[str, str, str, str]]] = {
    "no score: regret": [("", "", "", "^REGRET")],
    "no score: raw game score": [("", "", "^atari-", "")],
    "after training online": [
        ("", "", "", "end of ONLINE stage"),
        ("", "", "", "after fine-tuning"),
    ],
    "a mean over datasets": [("", "", "^AVG", "")],
    "superseded by its authors": [("^CORL README older", "", "", "")],
    "an unfinished run": [("", "", "", "^unfinished run")],
    "imitation of a single trajectory": [("", "", r"\(IL, ", "")],
    "of -v0 data under the name of -v2": [("diffuser", "MOPO|MBOP|MOReL", "", "")],
    "two datasets have the same five scores, so one is a mistake": [
        (
            "^third-party",
            "^(SAC-off|BC|BEAR|BRAC-[pv])",
            "^walker2d-medium-(replay|expert)-v0$",
            "",
        ),
    ],
    "no source is named": [("^paper snippet", "", "", "")],
    "another copy of a row that is shipped": [
        ("diffuser", "^TT|^DT", "", ""),
        ("^fuyw", "", "", ""),
        ("OfflineRL-Lib", "^IQL paper", "", ""),
        ("OfflineRL-Lib", "^DT paper", "^(halfcheetah|hopper|walker2d)-medium-v2", ""),
    ],
}

# short name -> (part of the source, of the method, of the note), regular expressions; the first that fits
SOURCES: Mapping[str, tuple[str, str, str]] = {
    "corl": ("^CORL README", "", "^last checkpoint"),
    "corl-best": ("^CORL README", "", "^BEST"),
    "corl-finetune": ("^CORL README", "", "end of OFFLINE"),
    "rebrac-2023": ("^ReBRAC", "", ""),
    "harness-2023": ("^harness", "", ""),
    "d3rlpy-official": ("official-code reruns", "", ""),
    "d3rlpy-best": ("^d3rlpy", "", "^BEST"),
    "d3rlpy": ("^d3rlpy", "", ""),
    "offlinerl-kit": ("^OfflineRL-Kit", "", ""),
    "jax-corl": ("^JAX-CORL", "", ""),
    "inac-2023": ("^OfflineRL-Lib", "^InAC paper", ""),
    "xql-2023": ("^OfflineRL-Lib", "^XQL paper", ""),
    "dt-2021": ("^OfflineRL-Lib|^min-decision", "^DT .?paper", ""),
    "awac-2020": ("^OfflineRL-Lib", "^AWAC paper", ""),
    "td3bc-2021": ("^OfflineRL-Lib", r"^TD3\+BC paper", ""),
    "offlinerl-lib": ("^OfflineRL-Lib", "", ""),
    "robomimic": ("^robomimic", "", ""),
    "min-dt": ("^min-decision", "", ""),
    "iql-2021": ("diffuser|^third-party", "", "IQL paper Table 1"),
    "diffuser-2022": ("diffuser", "", ""),
    "tt-2021": ("trajectory-transformer", "", ""),
    "tap-2023": ("latentplan", "", ""),
    "d4rl-2020": ("^third-party", "", "^D4RL paper maze2d"),
    "compiled-v0": ("^third-party", "", ""),
    "ogbench-2024": ("^OGBench paper", "", ""),
    "ota-2025": ("^OTA", "", ""),
    "qam-2026": ("^QAM", "", ""),
    "saw": ("^SAW", "", ""),
    "s2aw": ("^S2AW", "", ""),
    "qso-2026": ("^QSO", "", ""),
    "ogbench-rerun": ("^independent OGBench", "", ""),
    "alps": ("^ALPS", "", ""),
    "rapo-2026": ("^RAPO", "", ""),
    "a2pr-2024": ("^A2PR paper", "", ""),
    "odice-2024": ("^ODICE", "", ""),
}

_ENTRIES = {
    "BC": "bc",
    "10% BC": "bc+top10",
    "TD3+BC": "td3_bc",
    "TD3-BC": "td3_bc",
    "AWAC": "awac",
    "CQL": "cql",
    "IQL": "iql",
    "ReBRAC": "rebrac",
    "ReBRAC (OGBench single-task)": "rebrac",
    "SAC-N": "sac_n",
    "EDAC": "edac",
    "DT": "dt",
    "Cal-QL": "cal_ql",
    "XQL": "xql",
    "O-DICE": "odice",
} | {
    f"{method} + {theirs} sampling": f"{ours}{sampler}"
    for method, ours in {"CQL": "cql", "IQL": "iql", "TD3+BC": "td3_bc"}.items()
    for theirs, sampler in {"uniform": "", "AW": "+aw", "Top-10%": "+top10"}.items()
}

# where a collected name says where the number was read
_READ_IN = re.compile(
    r"^d3rlpy | OfflineRL-Lib\b| paper\b| \((compiled|paper, second-hand|min-DT|IQL Table 1, third-hand)\)"
)

# what a printed name says beside the method
_VARIANT = re.compile(r" \((official code|paper args|CORL args|consistent|tuned)\)")

_STEPS = {
    "1M offline": "1M",
    "1M (IL 500k)": "1M",
    "1M (SAC-RND: not stated)": "1M",
    "500 epochs x 1000": "500k",
}

_GOAL_CONDITIONED = ("ogbench-2024", "ota-2025", "saw", "s2aw", "qso-2026", "ogbench-rerun", "alps")


def reason_left_out(row: Row) -> str | None:
    """Why a fact is not shipped; None for one that is."""
    for reason, patterns in LEFT_OUT.items():
        for pattern in patterns:
            texts = (row["source"], row["method"], row["dataset"], row["note"])
            if all(re.search(p, text) for p, text in zip(pattern, texts, strict=True)):
                return reason
    return None


def source_of(row: Row) -> str:
    """The short name of a fact's source."""
    texts = row["source"], row["method"], row["note"]
    return next(
        name
        for name, pattern in SOURCES.items()
        if all(re.search(p, text) for p, text in zip(pattern, texts, strict=True))
    )


def task_of(dataset: str) -> str:
    """The id of a dataset's task.

    >>> task_of("hopper-random-medium-1%-v2"), task_of("hopper-medium-v2")
    ('mixed/hopper-random-medium-1-v2', 'd4rl/hopper-medium-v2')
    >>> task_of("scene-play-singletask-v0")  # a mean over the five tasks, not the default one
    'ogbench/scene-play-singletask-task*-v0'
    """
    if "%" in dataset:
        return f"mixed/{dataset.replace('%', '')}"
    ours = r"(visual-)?(pointmaze|antmaze|humanoidmaze|antsoccer|cube|scene|puzzle|powderworld)-"
    d4rl = r"antmaze-(umaze|(medium|large)-(play|diverse))"
    if re.match(ours, dataset) and not re.match(d4rl, dataset):
        return f"ogbench/{dataset.replace('singletask-v0', 'singletask-task*-v0')}"
    return f"d4rl/{dataset}"


def entry_of(method: str, source: str) -> str:
    """Our entry for a method, or its name in lower case."""
    plain = _VARIANT.sub("", method)
    if source in _GOAL_CONDITIONED:
        # OGBench's goal-conditioned tasks: its QC or IQL is not ours of a single task
        return f"{method.lower()} (goal-conditioned)" if plain in ("QC", "DQC") else method.lower()
    return _ENTRIES.get(plain, plain.lower())


def steps_of(row: Row) -> str:
    """Updates, where several methods have one text: those of the row's method.

    >>> steps_of({"steps": "see repo run_example (EDAC 3M, others 1M)", "method": "EDAC"})
    '3M'
    """
    text, method = row["steps"], row["method"]
    if "EDAC 3M" in text:
        return "3M" if method == "EDAC" else "1M"
    if "DT 100k" in text:
        return "100k" if method.startswith("DT") else "1M"
    # the file says 1M of all methods of IQL's table, which trained its own alone
    if method == "SAC-RND" or ("IQL paper Table 1" in row["note"] and method[:3] != "IQL"):
        return ""
    return _STEPS.get(text, text)


def _note(row: Row, source: str) -> str:
    """What is said of a single row; what holds for all rows of a source is in `sources.yaml`."""
    note = row["note"]
    if source == "rebrac-2023":
        found = re.search(r"; (.*); std ddof=0", note)
        return (
            found[1].replace("actor BC weight (0.4 = 1/2.5)", "BC weight, 0.4 = 1/2.5, ")
            if found
            else ""
        )
    if source == "iql-2021":
        third = "third-party copy, " if "third-party" in note else ""
        swapped = "the two medium values may be swapped" if "swapped" in note else ""
        return (third + ("there named -v2; " if third else "") + swapped).strip(" ;,")
    if source == "harness-2023":
        return (
            "CQL on antmaze and kitchen v0"
            if "CQL v0" in note and "antmaze" in row["dataset"]
            else ""
        )
    kept = {
        "d3rlpy": r"success %, .*",
        "offlinerl-lib": r"target return \d+",
        "qam-2026": r"mean over 5 tasks.*",
        "diffuser-2022": r"compiled there[^;]*|.*standard error",
        "tt-2021": r"compiled table.*",
        "tap-2023": r"ant rows.*|adroit -v0/-v1 data",
        "s2aw": r"rerun by these authors",
        "rapo-2026": None,
        "a2pr-2024": r"disagrees.*",
    }.get(source)
    found = re.search(kept, note) if kept else None
    return found[0] if found else ""


def table(facts: Iterable[Row]) -> list[dict[str, str]]:
    """The shipped rows, in the order of sources, tasks and methods as collected."""
    rows = []
    for row in facts:
        if reason_left_out(row):
            continue
        source, method = source_of(row), _READ_IN.sub("", row["method"])
        note, seeds = _note(row, source), row["seeds"]
        if "memory" in seeds:
            note, seeds = "; ".join(filter(None, [note, "number of seeds not verified"])), ""
        rows.append(
            {
                "source": source,
                "task": task_of(row["dataset"]),
                "entry": entry_of(method, source),
                "method": method,
                "score": row["score"],
                "std": row["std"],
                "steps": steps_of(row),
                "seeds": seeds,
                "note": note,
            }
        )
    order = list(SOURCES)
    return sorted(rows, key=lambda row: order.index(row["source"]))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def to_csv(rows: Iterable[Row]) -> str:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue()


if __name__ == "__main__":
    collected = read(Path(sys.argv[1]))
    Path(sys.argv[2]).write_text(to_csv(table(collected)), encoding="utf-8")
    for why, n in Counter(reason_left_out(row) or "shipped" for row in collected).items():
        print(n, why)
