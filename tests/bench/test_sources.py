"""Where a value comes from is data: words are made of it, and nothing is read from words."""

import pytest

from offbench.bench import targets
from offbench.bench.hydra import AROUND, options, read_option
from offbench.bench.plan import plan
from offbench.bench.signatures import read_parameters
from offbench.bench.sources import COMMAND_LINE, DEFAULT, NO_ENVIRONMENT, RUN, Layer, Source
from offbench.data.transforms import TRANSFORMS

PUBLISHED = "Who (2020), README: main.py (table 3)"


@pytest.mark.parametrize(
    "source, words, brief",
    [
        (DEFAULT, "default", "method default"),
        (RUN, "conf/run.yaml", "conf/run.yaml"),
        (Source(Layer.METHOD, "iql"), "conf/method/iql.yaml", "method default"),
        (Source(Layer.OPTION, "view/chunk"), "conf/view/chunk.yaml", "conf/view/chunk.yaml"),
        (Source(Layer.ENTRY, "iql+nstep3"), "entry iql+nstep3", "entry iql+nstep3"),
        (Source(Layer.SUITE, "quick"), "suite quick", "suite quick"),
        (Source(Layer.BUDGET, "", PUBLISHED), f"budget ({PUBLISHED})", "published budget"),
        (
            Source(Layer.BUDGET, "", PUBLISHED, carried=True),
            f"carried over from its first part: budget ({PUBLISHED})",
            "published budget",
        ),
        (Source(Layer.PRESET, "", PUBLISHED), f"preset ({PUBLISHED})", "preset"),
        (Source(Layer.PRESET, "corl", PUBLISHED), f"preset=corl ({PUBLISHED})", "preset=corl"),
        (COMMAND_LINE, "command line", "command line"),
        (NO_ENVIRONMENT, "no environment", "no environment"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_source_in_words(source, words, brief):
    assert (str(source), source.brief) == (words, brief)


def test_a_cell_has_sources_as_data_and_records_them_in_words():
    (cell,) = plan(
        ["method=iql", "task=d4rl/antmaze-large-play-v2", "method.lr=1e-3"],
        bench=False,
    ).cells
    assert cell.sources["method.lr"] == COMMAND_LINE
    assert cell.sources["method.expectile"].layer is Layer.PRESET
    assert cell.sources["n_updates"] == Source(Layer.SUITE, cell.suite)
    words = cell.recorded_sources
    assert words["method.lr"] == "command line" and words["n_updates"] == f"suite {cell.suite}"
    assert words["method.expectile"].startswith("preset (")


def test_a_plan_of_many_settings_looks_a_task_up_once(monkeypatch):
    from importlib import import_module

    module, seen = import_module("offbench.bench.plan"), []
    load = module.load_task
    monkeypatch.setattr(module, "load_task", lambda name, **k: seen.append(name) or load(name, **k))
    sweep = [
        "methods=[bc,iql]",
        "task=d4rl/hopper-medium-v2",
        "batch_size=64,128",
        "gamma=0.9,0.99",
    ]
    assert len(plan(sweep, bench=True).cells) == 8
    assert seen == ["d4rl/hopper-medium-v2"]


def test_a_plan_imports_no_torch_and_no_environment():
    import subprocess
    import sys

    code = (
        "import sys; from offbench.bench.plan import plan; plan(['suite=quick'], bench=True);"
        " print({'torch', 'gymnasium', 'mujoco', 'minari', 'scipy.stats'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def shipped():
    """Every class and function that a file of conf/ names."""
    for group in ("method", *AROUND):
        for name in options(group):
            config = read_option(group, name)
            yield (config["method"] if group == "method" else config)["_target_"]


@pytest.mark.parametrize("target", sorted({t for t in shipped() if t}))
def test_settings_read_from_the_source_are_those_of_the_imported_class(target):
    read, imported = read_parameters(target), targets._parameters(targets.locate(target))
    assert list(read.items()) == list(imported.items())


def test_what_the_source_does_not_say_is_left_to_the_import():
    assert (
        read_parameters("offbench.nowhere.X") is None and read_parameters("torch.nn.Linear") is None
    )
    # its constructor is its own
    assert read_parameters("offbench.training.engine.Engine") is None


def test_the_transforms_of_settings_are_those_of_pipelines():
    assert [*targets.BUILT_IN["transform"]] == [*TRANSFORMS]
    for name, target in targets.BUILT_IN["transform"].items():
        assert targets.locate(target) is TRANSFORMS[name] and read_parameters(target) is not None
