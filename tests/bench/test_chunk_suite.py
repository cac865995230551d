"""The suite of action chunking gives every method the published value for every domain, and says whose it is."""

import pytest

from offbench.bench.plan import plan

DOMAINS = ("cube-single", "cube-double", "cube-triple", "scene", "puzzle-3x3", "puzzle-4x4")
# one value for all domains, or one for each; section 3 and table 3 of the papers named in conf/method
PUBLISHED = {
    "acsac": {"method.n_proposals": 4, "view.h": 5, "view.pad": True, "gamma": 0.99},
    "qc": {
        "method.n_proposals": (32, 32, 32, 32, 64, 32),
        "view.h": 5,
        "method.q_aggregate": "mean",
    },
    "qc_fql": {"method.distill_weight": (300, 300, 100, 300, 300, 3000), "view.h": 5},
    "bfn": {"method.n_proposals": 4, "view.n": 1},
    "bfn+nstep5": {"method.n_proposals": 4, "view.n": 5, "view.rewards_after_terminal": True},
    "fql": {"method.distill_weight": (300, 300, 300, 300, 100, 1000), "view.n": 1},
    "fql_n": {
        "method.distill_weight": (100, 100, 100, 100, 100, 1000),
        "view.n": 5,
        "view.rewards_after_terminal": True,
    },
    "dqc": {
        "method.backup_quantile": (0.9, 0.9, 0.9, 0.9, 0.9, 0.7),
        "method.policy_chunk": 1,
        "gamma": 0.999,
        "view.h": 5,
    },
    "iql": {"method.expectile": 0.9, "method.inverse_temperature": (1, 0.3, 0.3, 10, 10, 3)},
    "rebrac": {
        "method.actor_bc_weight": (1, 0.1, 0.1, 0.1, 0.1, 0.3),
        "method.critic_bc_weight": (0, 0, 0, 0, 0, 0.01),
    },
    "cgq": {
        "method.distill_weight": (100, 100, 100, 100, 100, 300),
        "method.anchor_expectile": (0.95,) * 5 + (0.5,),
        "view.h": (5,) * 5 + (10,),
    },
}
FROM_PRESETS = {("qc", "puzzle-3x3"), *((m, "puzzle-4x4") for m in ("cgq", "dqc", "fql_n"))} | {
    (m, d) for m in ("fql", "qc_fql", "iql", "rebrac") for d in DOMAINS
}
WHOSE = {  # a word of the source of each value that no paper has for every domain
    ("qc_fql", "cube-single"): "carried over from cube-double here",
    ("qc_fql", "cube-double"): "Li, Zhou and Levine",
    ("qc_fql", "puzzle-4x4"): "HubertC1/cgq",
    ("fql_n", "puzzle-4x4"): "HubertC1/cgq",
    ("cgq", "puzzle-4x4"): "HubertC1/cgq",
    ("fql", "cube-single"): "seohongpark/fql",
    ("fql", "cube-triple"): "Li, Zhou and Levine",
    ("fql", "scene"): "Li, Zhou and Levine",
    ("iql", "cube-double"): "Li, Zhou and Levine",
    ("iql", "cube-single"): "second-hand",
    ("iql", "puzzle-4x4"): "second-hand",
    ("rebrac", "scene"): "Li, Zhou and Levine (2025), table 4",
    ("rebrac", "puzzle-4x4"): "second-hand",
}


@pytest.fixture(scope="module")
def cells():
    made = {}
    for cell in plan(["suite=ogbench-chunking"], bench=True).cells:
        domain = next(d for d in DOMAINS if f"/{d}-" in cell.task.id)
        made.setdefault((cell.entry, domain), []).append(cell)
    return made


def settings(cell) -> dict:
    view = {f"view.{k}": v for k, v in cell.pipeline["view"].items()}
    own = {f"method.{k}": v for k, v in cell.hparams.items()}
    return own | view | {k: cell.pipeline[k] for k in ("gamma", "batch_size")}


def test_it_is_the_published_protocol(cells):
    assert len(cells) == 6 * 11 and all(len(c) == 5 for c in cells.values())
    for (_, domain), five in cells.items():
        for cell in five:
            sparse = domain in ("scene", "puzzle-3x3")
            assert ("-sparse-" in cell.task.id) == sparse
            assert cell.n_updates == 1_000_000 and cell.pipeline["batch_size"] == 256
            assert cell.recorded_sources["eval.episodes"] == "suite ogbench-chunking"


@pytest.mark.parametrize(("entry", "domain"), WHOSE)
def test_a_value_is_attributed_to_a_table_that_has_it(entry, domain, cells):
    for cell in cells[entry, domain]:
        assert WHOSE[entry, domain] in cell.tuning["source"], cell.tuning


@pytest.mark.parametrize("entry", PUBLISHED)
def test_every_domain_has_the_published_value_and_its_source(entry, cells):
    for i, domain in enumerate(DOMAINS):
        for cell in cells[entry, domain]:
            got = settings(cell)
            for key, want in PUBLISHED[entry].items():
                want = want[i] if isinstance(want, tuple) else want
                assert got[key] == want, (entry, cell.task.id, key)
            preset = (entry, domain) in FROM_PRESETS
            assert (
                any(s.startswith("preset (") for s in cell.recorded_sources.values()) == preset
            ), (
                entry,
                domain,
            )


def test_the_hard_set_has_its_own_values():
    quadruple = lambda m: plan(
        [f"method={m}", "task=ogbench/cube-quadruple-play-100m-singletask-task1-v0"], bench=False
    ).cells[0]
    assert quadruple("acsac").hparams["n_proposals"] == 8
    assert quadruple("qc_fql").hparams["distill_weight"] == 100


def test_a_length_that_is_asked_for_wins_over_a_presets():
    task = "task=ogbench/puzzle-4x4-play-singletask-task1-v0"
    h = lambda *more: plan([task, *more], bench=True).cells[0].pipeline["view"]["h"]
    assert (h("methods=[cgq]"), h("methods=[cgq+chunk3]"), h("methods=[cgq]", "view.h=4")) == (
        10,
        3,
        4,
    )


@pytest.mark.parametrize("again", [["methods=[cgq+chunk]"], ["method=cgq", "view=chunk"]])
def test_naming_a_methods_own_view_takes_nothing_from_a_preset(again):
    task = "task=ogbench/puzzle-4x4-play-singletask-task1-v0"
    made, plain = (plan([task, *more], bench=True).cells[0] for more in (again, ["methods=[cgq]"]))
    assert made.pipeline == plain.pipeline and made.tuning == plain.tuning
    assert made.pipeline["view"]["h"] == 10


@pytest.mark.parametrize("entry", ["cgq+nstep", "cgq+nstep3", "qc+nstep"])
def test_single_steps_in_place_of_chunks_are_said_and_take_no_length_from_a_preset(entry):
    task = "task=ogbench/puzzle-4x4-play-singletask-task1-v0"
    made = plan([task, f"methods=[{entry}]"], bench=True).cells[0]
    assert made.entry == entry and "h" not in made.pipeline["view"]
    assert plan([task, "methods=[iql+nstep]"], bench=True).cells[0].entry == "iql"
