"""`offbench rerun`: real stacks trained twice, and what is said where they cannot be."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from support.records import episodes, provenance

from offbench.bench.plan import plan
from offbench.bench.provenance import host
from offbench.bench.repeat import Rows, differences
from offbench.bench.stacks import Pack
from offbench.cli import main
from offbench.cli.bench import apart
from offbench.results.report.payload import _made
from offbench.results.spec import Provenance, RunSpec
from offbench.results.store import Store

HOPPER = "offbench/hopper/medium-replay-v0"
# a sampler with settings, a list and two values of a number in one stack, a reward transform before another
ARGS = [
    "methods=[iql+aw]",
    f"task={HOPPER}",
    "suite=quick",
    "seeds=[3,1]",
    "n_updates=20",
    "method.expectile=[0.7,0.8]",
    "method.hidden=[8]",
    "transforms={reward_standard:{},obs_norm:{},reward_affine:{scale:2.0}}",
    "eval.episodes=2",
    "eval.monitor_at=[0.5]",
    "eval.monitor_episodes=1",
    "engine=vmap",
    "device=cpu",
    "jobs=1",
    "logger=none",
]
pytestmark = pytest.mark.env


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A store with a stack of four runs."""
    root = tmp_path_factory.mktemp("recorded")
    assert main(["bench", *ARGS, f"results={root}"]) == 0
    return Store(root)


def copied(store: Store, root, *, change=None, leave_out=(), **facts) -> Store:
    """The records of a store in another, with rows and facts changed."""
    other = Store(root)
    for run_id, record in store.read_all().items():
        if run_id not in leave_out:
            rows = store.episodes(run_id=run_id)
            if change is not None:
                rows = change(rows)
            curves = {name: list(record.metrics[name]) for name in record.metrics}
            other.append(record.spec, rows, replace(record.provenance, **facts), curves)
    return other


def rerun(capsys, *args) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["rerun", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out if code != 2 else captured.err


def files(store: Store) -> dict:
    return {p: p.stat().st_mtime_ns for p in store.root.rglob("*")}


def test_a_run_trained_again_in_its_stack_is_equal_to_the_last_bit(recorded, capsys):
    stack = recorded.read(recorded.records()[0].stem).provenance.stack
    assert len(stack) == 4
    before = files(recorded)
    code, text = rerun(capsys, stack[2], f"results={recorded.root}")
    assert code == 0, text
    assert f"run {stack[2]}: iql+aw(expectile=0.8," in text
    assert f" on {HOPPER} seed 3, trained again in a stack of 4: 2 entries" in text
    assert "all rows are equal to the last bit: 2 test, 1 monitor episodes and curves of" in text
    assert files(recorded) == before


def test_a_row_that_differs_in_its_last_bit_is_found(recorded, tmp_path, capsys, monkeypatch):
    """Trained with the threads of the record: sums of large tensors are split among them."""
    threads, before = [], torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", threads.append)

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        at = (rows["stream"] == "test") & (rows["episode"] == 1)
        return rows.assign(score=rows["score"].where(~at, rows["score"] * (1 + 1e-15)))

    facts = {"commit": "d" * 40, "host": {"threads": 7, "processor": "Pentium II"}}
    other = copied(recorded, tmp_path, change=change, **facts)
    name = other.records()[0].stem
    code, text = rerun(capsys, name[:9], f"results={tmp_path}")
    assert code == 3
    assert "the rows differ in 1 part:" in text
    assert "test: 1 of 2 episodes differ, the first at update 20, episode 1: score" in text
    assert "mean test score:" in text and f"commit: {'d' * 40} recorded, " in text
    assert f"processor: Pentium II recorded, {host()['processor']} now" in text
    assert "versions" not in text and "torch" not in text
    assert threads == [7, before]


def test_alone_it_is_trained_without_the_others(recorded, tmp_path, capsys):
    """For a record that does not name its stack, or whose stack is not all there."""
    name = recorded.records()[0].stem
    gone = next(n for n in recorded.read(name).provenance.stack if n != name)
    other = copied(recorded, tmp_path, leave_out=(gone,), stack=[])
    code, text = rerun(capsys, name, f"results={tmp_path}", "--alone")
    assert code in (0, 3) and "trained again by itself, where rounding differs" in text
    # the same run: seeds, data, settings
    assert len(other.records()) == 3
    scores = recorded.episodes(run_id=name, stream="test")["score"]
    assert code == 0 or f"mean test score: {scores.mean():.2f} recorded" in text


def test_a_stack_that_is_not_known_or_not_all_there_is_named(recorded, tmp_path, capsys):
    name = recorded.records()[0].stem
    gone = next(n for n in recorded.read(name).provenance.stack if n != name)
    copied(recorded, tmp_path / "old", stack=[])
    copied(recorded, tmp_path / "part", leave_out=(gone,))
    code, text = rerun(capsys, name, f"results={tmp_path / 'old'}")
    assert code == 2 and "before records named the runs of their stack (of 4); --alone" in text
    code, text = rerun(capsys, name, f"results={tmp_path / 'part'}")
    assert code == 2 and f"in a stack of 4, and {gone} of it has no record" in text


RUN = (
    plan(["method=bc", f"task={HOPPER}", "suite=quick", "seeds=[0]"], bench=False)
    .cells[0]
    .runs()[0]
)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"dataset_sha256": "ab" * 32}, "dataset_sha256 'abab"),
        ({"env": {"id": "Hopper-v3", "kwargs": {}}}, "env {'id': 'Hopper-v3'"),
        ({"env": {**RUN.env, "score": "return"}}, "was trained on your own data"),
        ({"task": "offbench/hoper/medium-replay-v0"}, "hopper"),
        ({"method": "bcc"}, "did you mean 'bc'"),
        ({"method": "no_such.Module"}, "no module named 'no_such'"),
        ({"method": "mine_of_rerun.Method"}, "not of an installed package; --allow-code"),
        ({"pipeline": {**RUN.pipeline, "view": {"name": "mine_of_rerun.V"}}}, "--allow-code"),
        ({"method": "outside"}, "was trained elsewhere"),
        ({"hparams": {**RUN.hparams, "gone": 1}}, "has no setting gone any more"),
        ({"hparams": {**RUN.hparams, "hidden": "wide"}}, "hidden='wide'"),
    ],
)
def test_what_cannot_be_trained_as_it_was_is_said(changes, words, tmp_path, capsys, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine_of_rerun.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    run = RunSpec(**(RUN.as_dict() | changes))
    store = Store(tmp_path)
    rows = episodes(run.protocol["episodes"], update=run.n_updates)
    store.append(run, rows, provenance(entry="bc", stack=[run.run_id]))
    before = files(store)
    code, text = rerun(capsys, run.run_id, f"results={tmp_path}")
    assert code == 2 and words in text and text.count("\n") == 1
    assert files(store) == before


def test_a_mistake_has_one_line(tmp_path, capsys):
    store = Store(tmp_path)
    store.fail(RUN, "out of memory", provenance(entry="bc"))
    here = f"results={tmp_path}"
    for args, words in (
        ([RUN.run_id, here], "has no rows to compare, it failed: out of memory"),
        (["feed", here], "no run 'feed'"),
        ([here], "one run id is needed"),
        (["a", "b"], "one run id is needed"),
        ([RUN.run_id, "n_updates=5"], "n_updates=5: everything else is in the record"),
    ):
        code, text = rerun(capsys, *args)
        assert code == 2 and words in text and text.count("\n") == 1


def frames() -> Rows:
    rows = pd.concat([episodes(3), episodes(1, stream="monitor", update=50)], ignore_index=True)
    rows = rows.assign(chunk_lengths=[[1, 2], None, [3], []])
    curves = pd.DataFrame({"update": [50.0, 100.0], "loss": [1.0, float("nan")]})
    return Rows(rows, curves, Provenance(**provenance().as_dict()))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda rows, curves: rows.drop(index=3), "monitor: 1 episodes recorded, 0 now"),
        (
            lambda rows, curves: rows["chunk_lengths"][2].append(1),
            "chunk_lengths [3] recorded, [3, 1]",
        ),
        (lambda rows, curves: rows.__setitem__("length", 8), "3 of 3 episodes differ"),
        (
            lambda rows, curves: curves.__setitem__("loss", 1.0),
            "curve loss: 1 of 2 points differ, the",
        ),
        (lambda rows, curves: curves.__setitem__("q", 1.0), "curve q: 0 points recorded, 2 now"),
        (lambda rows, curves: curves.__delitem__("loss"), "curve loss: 2 points recorded, 0 now"),
    ],
)
def test_what_differs_is_named(change, words):
    then, now = frames(), frames()
    assert differences(then, now) == []
    changed = change(now.episodes, now.curves)
    if changed is not None:
        now = replace(now, episodes=changed)
    assert any(words in line for line in differences(then, now)), differences(then, now)


def test_a_run_says_that_its_other_seeds_were_trained_in_another_stack():
    args = ["method=bc", f"task={HOPPER}", "suite=quick", "seeds=[0,1,2,3,4]"]
    (cell,) = plan(args, bench=False).cells
    left = cell.varied(seeds=(3, 4))
    words = "seeds 3,4 in a stack of 2, recorded in others: 0-2 (rounding differs)"
    assert apart([Pack((left,))], [left], [cell]) == [f"bc on {HOPPER}: {words}"]
    # a stack that was recorded in part is trained whole; a part of a plan is not what is recorded
    assert apart([Pack((cell,))], [left], [cell]) == []
    assert apart([Pack((left,))], [cell], [cell]) == []
    assert apart([], [], [cell]) == []
    many = [cell.varied(entry=f"bc{i}") for i in range(6)]
    part = [one.varied(seeds=(3, 4)) for one in many]
    assert apart([Pack(tuple(part))], part, many)[-1] == "and 3 more such cells"


def test_the_report_says_in_which_stack_the_runs_of_a_cell_were_trained(recorded):
    ids = recorded.read(recorded.records()[0].stem).provenance.stack
    records = recorded.read_all(run_id=ids[:2])
    made = _made([records[name] for name in ids[:2]])
    assert set(made["trained in"]) == {"a stack of 4: seeds 3,1 and 2 runs of other rows"}
    old = [r._replace(provenance=replace(r.provenance, stack=())) for r in records.values()]
    assert set(_made(old)["trained in"]) == {"a stack of 4"}
