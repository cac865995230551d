"""Settings of goal-conditioned methods, held to every row of the list that OGBench's authors launch from."""

import csv
from collections import defaultdict

import pytest
from support.paths import SHARED

from offbench.bench.plan import plan
from offbench.tasks import registry

OGBENCH = SHARED / "reference/ogbench_hparams.csv"

# what agent.alpha is called here
ALPHA = {
    "gcivl": "inverse_temperature",
    "gciql": "bc_weight",
    "qrl": "bc_weight",
    "crl": "bc_weight",
}
# flags of none of the sets of states: of pixels and of discrete actions
ELSEWHERE = {
    "agent.encoder",
    "agent.p_aug",
    "agent.discrete",
    "agent.actor_loss",
    "eval_temperature",
}


def published() -> dict[str, dict[str, dict[str, str]]]:
    """Agent -> dataset of states -> flag -> value as text."""
    table: dict = defaultdict(lambda: defaultdict(dict))
    with OGBENCH.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["dataset"].startswith(("visual-", "powderworld-")):
                table[row["agent"]][row["dataset"]][row["flag"]] = row["value"]
    return table


@pytest.mark.skipif(not OGBENCH.exists(), reason="the list of OGBench is not on this machine")
@pytest.mark.parametrize("agent", ["gcbc", *ALPHA, "hiql"])
def test_planned_cells_have_ogbenchs_settings(agent):
    compared = 0
    for dataset, v in published()[agent].items():
        task = f"ogbench/{dataset}"
        assert task in registry.ids() and not v.keys() & ELSEWHERE, dataset
        made = plan([f"methods=[{agent}]", f"task={task}"], bench=True).cells[0]
        number = lambda flag, default, v=v: float(v.get(flag, default))
        want = {ALPHA[agent]: number("agent.alpha", "nan")} if agent in ALPHA else {}
        if agent == "hiql":
            want |= {
                f"{level}_inverse_temperature": number(f"agent.{level}_alpha", "nan")
                for level in ("low", "high")
            }
            assert made.pipeline["view"]["subgoal_steps"] == number("agent.subgoal_steps", 25)
        assert {k: made.hparams[k] for k in want} == want, dataset
        shares = [
            number(f"agent.actor_p_{kind}goal", x) for kind, x in (("traj", 1), ("random", 0))
        ]
        assert list(made.pipeline["view"]["actor_goals"]) == [0.0, *shares], dataset
        assert made.pipeline["gamma"] == number("agent.discount", 0.99), dataset
        assert made.pipeline["batch_size"] == 1024 and made.n_updates == 1_000_000
        # of each of five goals
        assert made.protocol["episodes"] == 5 * number("eval_episodes", "nan"), dataset
        compared += 1
    assert compared == 47
