"""The command line as a user meets it: real subprocesses, real data files, real environments."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file
from support.paths import ROOT

from offbench.bench.hydra import options
from offbench.bench.job import Event
from offbench.bench.plan import plan
from offbench.bench.recording import Outcome
from offbench.bench.stacks import Pack
from offbench.cli import main
from offbench.cli.bench import _finished
from offbench.cli.listing import _parity, _updates
from offbench.data.replay import episode_returns
from offbench.errors import UserError
from offbench.results.store import Store
from offbench.tasks.doctor import DataWarning
from offbench.tasks.loading import check_file, load_data
from offbench.tasks.locate import load_task
from offbench.training.engine import Ran

HOPPER = "offbench/hopper/medium-replay-v0"
TINY = [
    f"task={HOPPER}",
    "n_updates=20",
    "eval.episodes=1",
    "engine=vmap",
    "eval.monitor_at=[]",
    "method.hidden=[8]",
]
pytestmark = pytest.mark.env


def offbench(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "offbench.cli", *args],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
    )


def test_make_bench_turns_data_into_a_board_and_a_second_run_trains_nothing(tmp_path, capsys):
    args = "methods=[bc,iql+aw] seeds=[0,1] " + " ".join(t for t in TINY if "engine" not in t)
    args += f" results={tmp_path}"
    command = ["make", "-s", "bench", f"ARGS={args}"]
    if not (ROOT / ".venv" / ".ready").exists():  # tests of an environment made some other way
        command = [sys.executable, "-m", "offbench.cli", "bench", *args.split()]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "4 runs, 0 recorded, 4 to do" in first.stdout
    board = (tmp_path / "board" / "quick-part.md").read_text()
    assert "bc" in board and "iql+aw" in board
    records = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/**/*.parquet")}
    assert len(records) == 4

    assert main(["bench", *args.split()]) == 0
    assert "4 runs, 4 recorded, 0 to do" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/**/*.parquet")} == records
    assert (tmp_path / "board" / "quick-part.md").read_text() == board

    frame = pd.read_parquet(next(iter(records)))  # plain files: no offbench needed to read them
    assert (
        len(frame) == 1
        and frame["stream"].tolist() == ["test"]
        and frame["update"].tolist() == [20]
    )


def test_a_finished_run_names_its_backend_where_it_has_notes():
    """The notes are a field: brackets in a name say nothing."""
    (cell,) = plan(["method=bc", *TINY], bench=False).cells
    part, outcome = (
        Pack((cell,)),
        Outcome(cell, {0: 12.5}, {}, {}, 1.0, Ran("eager (quick)"), {}, {}),
    )
    (line,) = _finished(part, Event(0, "done", 1.0, (outcome,)))
    assert "12.5" in line and "eager" not in line
    refused = outcome._replace(backend=Ran("eager", ("compile failed: RuntimeError",)))
    (line,) = _finished(part, Event(0, "done", 1.0, (refused,)))
    assert "eager (compile failed: RuntimeError)" in line


@pytest.mark.slow
def test_a_stack_of_seeds_on_processes_equals_one_process(tmp_path):
    """Scheduling must not reach the numbers."""
    for name, jobs in (("a", 1), ("b", 2)):
        args = [
            "bench",
            "methods=[bc,td3_bc]",
            "seeds=[3,5]",
            *TINY,
            f"jobs={jobs}",
            f"results={tmp_path / name}",
        ]
        done = offbench(*args)
        assert done.returncode == 0, done.stderr
    read = lambda name: pd.concat(
        pd.read_parquet(p) for p in sorted((tmp_path / name).glob("runs/**/*.parquet"))
    ).reset_index(drop=True)
    pd.testing.assert_frame_equal(read("a"), read("b"))


def test_looking_at_training_does_not_change_it(tmp_path, capsys):
    """Monitoring has its own episodes and random streams."""
    for name, extra in (
        ("quiet", []),
        ("watched", ["eval.monitor_at=[0.25,0.5]", "eval.monitor_episodes=1"]),
    ):
        assert (
            main(
                [
                    "run",
                    "method=td3_bc",
                    "seeds=[0]",
                    "jobs=1",
                    *TINY,
                    *extra,
                    f"results={tmp_path / name}",
                ]
            )
            == 0
        )
    quiet, watched = (
        pd.concat(pd.read_parquet(p) for p in (tmp_path / n).glob("runs/**/*.parquet"))
        for n in ("quiet", "watched")
    )
    test = watched[watched.stream == "test"]
    assert sorted(watched[watched.stream == "monitor"]["update"]) == [
        4,
        10,
    ]  # TD3+BC moves two at a time
    assert test["return"].tolist() == quiet["return"].tolist()
    assert not set(watched[watched.stream == "monitor"].env_seed) & set(test.env_seed)
    kept = [next((tmp_path / n).glob("runs/**/*.safetensors")) for n in ("quiet", "watched")]
    assert kept[0].name == kept[1].name
    before, after = map(load_file, kept)
    assert before.keys() == after.keys() and all(x.equal(after[k]) for k, x in before.items())
    # whoever asks for curves later does not train it again
    more = [*TINY, "method=td3_bc", "seeds=[0]", f"results={tmp_path / 'quiet'}"]
    capsys.readouterr()
    assert main(["run", *more, "eval.monitor_at=[0.5]"]) == 0
    assert "1 run, 1 recorded, 0 to do" in capsys.readouterr().out


def test_monitor_episodes_that_fail_are_said_and_the_run_goes_on(tmp_path, capsys, monkeypatch):
    from offbench import rollout

    real, broken = rollout.evaluate, [10]

    def evaluate(*args, stream, update, **more):
        if stream == "monitor" and update in broken:
            raise RuntimeError("the simulator\nis unstable")
        return real(*args, stream=stream, update=update, **more)

    monkeypatch.setattr(rollout, "evaluate", evaluate)
    watch = ["eval.monitor_at=[0.25,0.5]", "eval.monitor_episodes=[1,2]"]
    args = ["run", "method=bc", "seeds=[0]", "jobs=1", *TINY, *watch, f"results={tmp_path}"]
    assert main(args) == 0
    store = Store(tmp_path)
    assert sorted(store.episodes()["update"]) == [5, 20]
    words = "no monitor episodes at update 10: RuntimeError: the simulator is unstable"
    assert store.runs()["reason"].tolist() == [words]
    assert words in " ".join(capsys.readouterr().out.split())


def test_plan_shows_every_run_and_writes_nothing(tmp_path, capsys):
    args = ["methods=[bc,iql]", "seeds=[0,1]", *TINY, f"results={tmp_path / 'r'}"]
    assert main(["plan", *args]) == 0
    said = capsys.readouterr().out
    for text in (
        "method.expectile",
        "command line",
        "suite quick",
        "conf/run.yaml",
        "4 runs to do, about",
        "probe",
    ):
        assert text in said, text
    assert not (tmp_path / "r").exists()


@pytest.fixture
def nothing_here(tmp_path, monkeypatch) -> Path:
    """No data set but the embedded ones, and a download would be an error."""
    for name in ("OFFBENCH_DATA", "D4RL_DATASET_DIR", "MINARI_DATASETS_PATH", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "data"))

    def refuse(url, *_, **__):
        raise AssertionError(f"{url} was asked for")

    monkeypatch.setattr("offbench.tasks.files.fetch", refuse)
    return tmp_path / "data"


def test_a_plan_fetches_nothing_and_says_what_a_run_would(nothing_here, tmp_path, capsys):
    args = ["suite=ogbench-chunking", "methods=[bc,fql]", f"results={tmp_path / 'r'}"]
    assert main(["plan", *args]) == 0
    said = capsys.readouterr().out
    assert said.count("data not here") == 60  # no run has a name before its data are known
    assert "data that a run needs first (" in said and "cube-double-play-v0.npz" in said
    assert "MB, https://" in said or "size not known, https://" in said
    assert "0 runs to do" in said and "240 more once their data are here" in said
    assert not (tmp_path / "r").exists() and not nothing_here.exists()


def test_a_plan_estimates_the_rest_where_some_data_are_not_here(nothing_here, tmp_path, capsys):
    args = [
        "methods=[bc]",
        "seeds=[0]",
        "eval.episodes=1",
        "eval.monitor_at=[]",
        "n_updates=20",
        "suite=quick",
    ]
    tasks = f"task={HOPPER},d4rl/hopper-medium-v2"
    assert main(["plan", *args, tasks, f"results={tmp_path / 'r'}"]) == 0
    said = capsys.readouterr().out
    assert "1 run to do, about" in said and "1 more once their data are here" in said
    assert "probe" in said and "d4rl/hopper-medium-v2: size not known, http" in said


def test_a_plan_begins_with_whose_protocol_it_is_and_shows_a_departure(nothing_here, capsys):
    task = "task=d4rl/hopper-medium-v2"
    assert main(["plan", "methods=[bc,sac_n]", task, "n_updates=300000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "suite d4rl-gym-9 v1, that of d4rl/hopper-medium-v2: no suite was named; "
        "protocol: corl-team/CORL eeeeef2"
    )
    assert lines[1].startswith("  300k of 1M updates, 10 test episodes (command line; suite d4rl")
    assert lines[2].startswith("  300k of 3M updates, 10 test episodes (command line; budget (CORL")
    rows = [line for line in lines if "data not here" in line]
    assert "300k of 1M" in rows[0] and "300k of 3M" in rows[1]
    assert main(["plan", "method=bc", task]) == 0
    assert "  1M updates, 10 test episodes (suite d4rl-gym-9)" in capsys.readouterr().out
    own = [
        f"task.data={load_task(HOPPER).path}",
        "n_updates=20",
        "eval.episodes=1",
        "eval.monitor_at=[]",
    ]
    assert main(["plan", "method=bc", "seeds=[0]", *own]) == 0
    assert capsys.readouterr().out.startswith(
        "suite other v1, that of own/medium-replay-v0: no suite was named; protocol: this project's"
    )


def test_a_run_keeps_the_source_of_every_setting(tmp_path):
    assert main(["run", "method=bc", "seeds=[0]", "jobs=1", *TINY, f"results={tmp_path}"]) == 0
    (path,) = tmp_path.glob("runs/**/*.json")
    kept = json.loads(path.read_text())["provenance"]
    assert kept["sources"]["method.hidden"] == "command line"
    assert kept["sources"]["method.lr"] == kept["sources"]["batch_size"] == "suite quick"
    assert kept["sources"]["method.gaussian"] == "default"
    assert {"overridden", "published_updates", "preset"} <= kept["tuning"].keys()


def test_a_sweep_over_numbers_is_one_stack_and_a_row_for_each_value(tmp_path):
    args = ["run", "method=iql", "method.expectile=[0.6,0.9]", "seeds=[0,1]", *TINY, "jobs=1"]
    assert main([*args, f"results={tmp_path}"]) == 0
    import json

    records = [json.loads(p.read_text()) for p in tmp_path.glob("runs/**/*.json")]
    assert sorted(r["spec"]["hparams"]["expectile"] for r in records) == [0.6, 0.6, 0.9, 0.9]
    assert {r["provenance"]["pack"] for r in records} == {4}


def test_a_stack_is_split_where_it_would_be_too_large(tmp_path, capsys):
    args = [
        "run",
        "method=bc",
        "seeds=[0,1,2]",
        *TINY,
        "jobs=1",
        "max_stack=2",
        f"results={tmp_path}",
    ]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert " x2: " in out and " x1: " in out and len(list(tmp_path.glob("runs/**/*.parquet"))) == 3


def test_lists_name_what_there_is(capsys):
    for kind, name in (
        ("methods", "td3_bc"),
        ("tasks", HOPPER),
        ("suites", "quick"),
        ("samplers", "aw"),
        ("views", "chunk"),
    ):
        assert main(["list", kind]) == 0
        assert name in capsys.readouterr().out


def test_help_and_no_command(capsys):
    assert main(["--help"]) == 0 and "offbench COMMAND" in capsys.readouterr().out
    assert main([]) == 2


def refused(args: list[str], capsys, results: Path | None = None) -> str:
    """The one line of a user's mistake: exit code 2, nothing on stdout but the summary, nothing written."""
    code = main(args)
    err = capsys.readouterr().err
    assert code == 2, err
    assert err.startswith("offbench: ") and err.count("\n") == 1 and "Traceback" not in err
    assert results is None or not results.exists()
    return err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["benhc"], "unknown command 'benhc': did you mean 'bench'"),
        (
            ["bench", "--suite", "quick"],
            "unknown option '--suite': did you mean 'suite='? settings are written key=value",
        ),
        (["list", "method"], "unknown kind 'method': did you mean 'methods'"),
        (["list"], "list needs one of: methods, samplers, views, weights, synthetic, suites"),
        (["list", "methods", "tasks"], "unexpected argument 'tasks'; usage: offbench list"),
        (["--versoin"], "unknown option '--versoin': did you mean '--version'"),
        (["speed", "--seeds=1"], "unknown option '--seeds'"),
        (["data", "make", "offbench/hoper"], "unknown recipe 'offbench/hoper': did you mean"),
        (["data"], "data needs one of"),
        (
            ["run", "method=td3_bc", *TINY, "n_updates=21"],
            "n_updates=21 must be a positive multiple of 2",
        ),
        (["run", "method=bc", *TINY, "device=cuda:7"], "device=cuda:7: no CUDA device"),
        (["run", "method=bc", *TINY, "device=gpu"], "device='gpu' is not a device"),
        (
            ["run", "method=bc", *TINY, "device=mps"],
            "device=mps: runs are made on cpu and cuda only",
        ),
        (["run", "method=bc", *TINY, "device=meta"], "device=meta: runs are made on cpu"),
        (
            ["run", "method=bc", *TINY, "view=chunk", "view.h=100000"],
            "view.h=100000 is longer than every episode",
        ),
        (["run", "method=bc", *TINY, "view.n=0"], "view.n must be at least 1"),
        (
            ["run", "method=bc", *TINY, "sampler=aw", "sampler.temperature=0"],
            "temperature must be > 0",
        ),
        (
            ["run", "method=bc", *TINY, "sampler=top10", "sampler.fraction=2"],
            "fraction must be in (0, 1]",
        ),
        (["board", "results={tmp}/none"], "nothing recorded for quick"),
        (["run", "method._target_=foo", *TINY], "_target_=foo: a dotted path is needed"),
        # read from their source as settings are, and no methods
        (["run", "method._target_=offbench.nn.optim.Adam", *TINY], "Adam has no update and no act"),
        (["run", "method._target_=offbench.types.Spec", *TINY], "Spec has no train_step"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(args, message, capsys, tmp_path):
    results = tmp_path / "r"
    args = [a.format(tmp=tmp_path) for a in args]
    if args[0] == "run":
        args += [f"results={results}", "jobs=1"]
    assert message in refused(args, capsys, results)


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A copy of one dataset that a test may damage."""
    task = load_task(HOPPER)
    root = tmp_path / "datasets"
    shutil.copytree(task.path, root / "minari" / HOPPER)
    shutil.copy(ROOT / "datasets" / "offbench--hopper--medium-replay-v0.yaml", root)
    monkeypatch.setenv("OFFBENCH_DATASETS", str(root))
    return root


def _file(root: Path) -> Path:
    return root / "minari" / HOPPER / "data" / "main_data.hdf5"


def _resign(root: Path, **changes) -> None:
    """Makes the manifest agree with the damaged file, so that its content is what is judged."""
    import hashlib

    path = root / "offbench--hopper--medium-replay-v0.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["sha256"] = hashlib.sha256(_file(root).read_bytes()).hexdigest()
    path.write_text(yaml.safe_dump(manifest | changes))


def _missing(root):
    _file(root).unlink()


def _truncated(root):
    content = _file(root).read_bytes()
    _file(root).write_bytes(content[: len(content) // 2])


def _truncated_and_signed(root):
    _truncated(root)
    _resign(root)


def _other_content(root):
    with h5py.File(_file(root), "r+") as f:
        f["episode_3/rewards"][0] = 5.0


def _not_a_number(root):
    with h5py.File(_file(root), "r+") as f:
        f["episode_3/observations"][2, 1] = float("nan")
    _resign(root)


def _action_out_of_range(root):
    with h5py.File(_file(root), "r+") as f:
        f["episode_3/actions"][0, 1] = 1.5
    _resign(root)


def _no_ends(root):
    with h5py.File(_file(root), "r+") as f:
        for name in f:
            f[name]["terminations"][...] = False
            f[name]["truncations"][...] = False
    _resign(root)


def _other_environment(root):
    _resign(root, env={"id": "Walker2d-v5", "kwargs": {}})


def _environment_not_installed(root):
    _resign(root, env={"id": "Unheard-v0", "kwargs": {}})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, "main_data.hdf5 is missing; rebuild it with: offbench data make"),
        (_truncated, "its manifest says"),
        (_truncated_and_signed, "cannot be read as a Minari file"),
        (_other_content, "its manifest says"),
        (_not_a_number, "episode 3: obs is not finite (NaN or Inf) at step 2"),
        (_action_out_of_range, "episode 3: actions reach 1.5, outside [-1, 1]"),
        (_no_ends, "no episode ends anywhere"),
        (_other_environment, "observations have 11 features, environment Walker2d-v5 has (17,)"),
        (_environment_not_installed, "environment Unheard-v0"),
    ],
)
def test_bad_data_are_refused_in_one_line_before_anything_is_written(
    damage, message, own, capsys, tmp_path
):
    damage(own)
    results = tmp_path / "r"
    assert message in refused(
        ["run", "method=bc", *TINY, f"results={results}", "jobs=1"], capsys, results
    )


def test_a_results_folder_that_cannot_be_written_is_refused(capsys, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    line = refused(["run", "method=bc", *TINY, f"results={blocked}", "jobs=1"], capsys)
    assert str(blocked) in line and blocked.read_text() == "in the way"


def test_check_file_accepts_the_right_file():
    task = load_task(HOPPER)
    check_file(task.path / "data" / "main_data.hdf5", task.sha256, task.id)


def test_a_diverged_seed_is_a_record_with_its_reason_and_exit_code_3(tmp_path, capsys):
    args = [
        "run",
        "method=td3_bc",
        "method.lr=1e30",
        "seeds=[0]",
        *TINY,
        f"results={tmp_path}",
        "jobs=1",
    ]
    assert main(args) == 3
    out = capsys.readouterr()
    assert "diverged" in out.out and "not finite" in out.err
    import json

    (record,) = [json.loads(p.read_text()) for p in tmp_path.glob("runs/**/*.json")]
    assert record["status"] == "diverged" and "not finite" in record["reason"]


def test_a_pack_that_raises_is_told_and_exit_code_3(tmp_path, capsys, monkeypatch):
    def raises(*args, **kwargs):
        raise UserError("not like this")

    monkeypatch.setattr("offbench.bench.job.run_pack", raises)
    assert main(["run", "method=bc", "seeds=[0,1]", *TINY, f"results={tmp_path}", "jobs=1"]) == 3
    assert "not like this" in capsys.readouterr().err


def test_values_that_exploded_are_told_beside_a_score_that_counts(tmp_path, capsys):
    """Of one run of a stack and not of its neighbour; the exit code is that of success."""
    from offbench.results.store import Store

    args = ["run", "method=td3_bc", "seeds=[0]", *TINY, f"results={tmp_path}", "jobs=1"]
    assert main([*args, "gamma=0", "method.lr=[1e-4,1000.0]"]) == 0
    out = capsys.readouterr().out
    runs = Store(tmp_path).runs().set_index("hparams.lr")
    assert (runs["status"] == "ok").all() and runs.loc[1e-4, "reason"] is None
    assert runs.loc[1000.0, "reason"].startswith("values diverged: mean q")
    assert out.count("seed 0: values diverged") == 1
    assert "1 of 1 runs of td3_bc(hidden=[8],gamma=0,lr=1000)" in " ".join(out.split())


@pytest.mark.slow
def test_wandb_is_a_screen_that_needs_no_account(tmp_path):
    done = offbench(
        "run",
        "method=bc",
        "seeds=[0,1]",
        *TINY,
        f"results={tmp_path}",
        "jobs=1",
        "logger=wandb",
        WANDB_MODE="offline",
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2
    assert len(list(tmp_path.glob("runs/**/*.parquet"))) == 2


# --- data with defects ----------------------------------------------------------------------


def test_a_severe_defect_is_warned_of_in_words_and_refused_with_strict(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "mine.hdf5", "w") as file:
        file["observations"] = rng.normal(size=(300, 11)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (300, 3)).astype(np.float32)
        file["rewards"] = np.zeros(300, np.float32)
        file["terminals"] = np.arange(300) % 50 == 49
    args = [
        "run",
        "method=bc",
        f"task.data={tmp_path}/mine.hdf5",
        "task.env=Hopper-v5",
        "seeds=[0]",
        "n_updates=2",
        "eval.episodes=1",
        "eval.monitor_at=[]",
        "jobs=1",
        "method.hidden=[8,8]",
        f"results={tmp_path}/results",
    ]
    words = "own/mine: every reward is zero; strict=true refuses it"
    assert words in refused([*args, "strict=true"], capsys, tmp_path / "results")
    with pytest.warns(DataWarning, match=r"^own/mine: every reward is zero$") as told:
        assert main(args) == 0
    assert len(told) == 1
    line = warnings.formatwarning(told[0].message, told[0].category, "a.py", 1)
    assert line == "offbench: warning: own/mine: every reward is zero\n"


def test_methods_are_listed_with_their_paper_what_they_learn_from_and_their_parity(
    capsys, tmp_path
):
    assert main(["list", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("dt "))
    assert "Chen et al., 2021" in lines[at] and "arxiv.org" in lines[at]
    ends = {line.split()[0]: after for line, after in pairwise(lines) if line[0] != " "}
    assert ends.keys() == set(options("method"))
    assert "continuous actions; view=window; needs whole episodes; " in ends["dt"]
    assert not any("_" in end for end in ends.values())
    results = ROOT / "results/parity"
    scores, updates = _parity(results / "parity.csv"), _updates(results / "same_updates.csv")
    for name, end in ends.items():
        assert all(told[name] in end for told in (scores, updates) if name in told)
        assert ("not compared with other code" in end) == (name not in scores | updates)

    table = tmp_path / "parity.csv"
    table.write_text(
        'name,task,verdict\nbc,a,agrees\nbc,b,differs\niql,a,agrees\niql,b,"agrees, wide"\n'
    )
    words = "2 of 2 scores agree with CORL's (1 with wide intervals)"
    assert _parity(table) == {"bc": "1 of 2 scores agree with CORL's", "iql": words}
    table.write_text("algorithm,reference,largest_difference\nbc,CORL e1,1e-16\nbc,CORL e1,3e-3\n")
    assert _updates(table) == {"bc": "updates within 3e-03 of CORL's"}


def test_what_a_view_took_from_the_data_is_in_the_record(tmp_path, capsys):
    small = ["method.width=8", "method.layers=1", "view.k=3", "batch_size=8", "seeds=[0]"]
    assert main(["run", "method=dt", "jobs=1", *TINY[:4], *small, f"results={tmp_path}"]) == 0
    (record,) = tmp_path.glob("runs/**/*.json")
    body = json.loads(record.read_text())
    data, _ = load_data(load_task(HOPPER))
    best = float(episode_returns(data).max())
    assert body["provenance"]["fitted"]["view.target_return"] == pytest.approx(best)
    assert body["spec"]["pipeline"]["view"]["target_return"] is None


@pytest.mark.parametrize(
    "method, view, use", [("bc", "window", "nstep"), ("dt", "nstep", "window")]
)
def test_a_method_and_a_view_that_do_not_fit_are_refused(method, view, use, capsys, tmp_path):
    args = ["run", f"method={method}", f"view={view}", *TINY[:4], f"results={tmp_path / 'r'}"]
    assert f"use view={use}" in refused(args, capsys, tmp_path / "r")


def test_runs_in_another_environment_are_left_out_of_the_board_and_block_nothing(tmp_path, capsys):
    """The same file, the same name, and returns scored on another scale."""
    rng, n = np.random.default_rng(0), 300
    np.savez(
        tmp_path / "mine.npz",
        observations=rng.normal(size=(n, 4)).astype(np.float32),
        actions=rng.uniform(-1, 1, (n, 1)).astype(np.float32),
        rewards=np.ones(n, np.float32),
        terminals=np.arange(n) % 100 == 99,
        timeouts=np.zeros(n, bool),
    )
    own = [
        f"task.data={tmp_path}/mine.npz",
        "task.env=InvertedPendulum-v5",
        f"results={tmp_path}/r",
    ]
    small = [
        "method=bc",
        "method.hidden=[8]",
        "n_updates=3",
        "eval.episodes=2",
        "eval.monitor_at=[]",
        "seeds=[0,1]",
        "jobs=1",
    ]
    assert main(["run", *small, *own, "task.ref_max=10", "label=old"]) == 0
    capsys.readouterr()
    assert main(["run", *small, *own, "task.ref_max=1000", "label=bc"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 recorded runs of these tasks are left out" in out and " old " not in out
    assert main(["run", *small, *own, "task.ref_max=1000", "label=new"]) == 0
    assert "bc" in capsys.readouterr().out


def test_a_method_that_breaks_the_contract_is_told_so_once_and_the_next_is_checked(
    capsys, monkeypatch
):
    from offbench.testing import contract

    def check_of_bc(method, spec):
        if type(method).__name__ == "BC":
            raise AssertionError("act returned no action")

    monkeypatch.setattr(contract, "CHECKS", (check_of_bc,))
    assert main(["check", "method=bc,td3_bc"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "bc",
        "FAILED  check_of_bc: act returned no action",
        "td3_bc",
        "ok      check_of_bc",
    ]
    assert said.err == "offbench: bc breaks the contract: BC fails 1 of 1 checks\n"
