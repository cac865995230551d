"""What is never done: unpickling, evaluating text, shells, archives unpacked as they say, open ports."""

import ast
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from support.paths import ROOT
from support.records import episodes, provenance, spec

from offbench import io, load_policy
from offbench.cli import main
from offbench.errors import UserError
from offbench.results.store import Store

FILES = sorted((ROOT / "offbench").rglob("*.py"))
# file: what it does, and why that is no way in
EXCEPTIONS = {
    # annotations in the source of offbench's own files; no text from elsewhere comes here
    "bench/signatures.py": {"eval"},
}
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def keyword(call: ast.Call, name: str) -> object:
    found = [k.value for k in call.keywords if k.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def dangers(tree: ast.AST) -> set[str]:
    """The calls and imports in a file that can run what a file or a text says."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            found |= {name for name in names if name.partition(".")[0] in PICKLES}
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in ("eval", "exec", "compile", "os.system", "os.popen", "yaml.unsafe_load"):
            found.add(name)
        if name.startswith("yaml.") and name.endswith(("load", "load_all")):
            loader = [ast.unparse(k.value) for k in node.keywords if k.arg == "Loader"]
            if "safe" not in name and loader != ["_YamlLoader"]:
                found.add(name)
        if name == "torch.load" and keyword(node, "weights_only") is not True:
            found.add(name)
        if name in ("np.load", "np.save", "npy.read_array", "np.lib.format.write_array"):
            found |= {name} if keyword(node, "allow_pickle") is not False else set()
        if keyword(node, "allow_pickle") or keyword(node, "shell"):
            found.add(f"{name} with a shell or pickles")
        if name.endswith((".extractall", ".extract", "unpack_archive")):
            found |= {name} if keyword(node, "filter") != "data" else set()
    return found


def test_no_file_of_the_package_runs_what_a_file_says():
    for path in FILES:
        name = path.relative_to(ROOT / "offbench").as_posix()
        assert dangers(ast.parse(path.read_text())) == EXCEPTIONS.get(name, set()), name


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.parallel",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "read(x, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.full_load(text)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "tar.extractall(folder)",
        "tar.extract(member, filter='fully_trusted')",
        "shutil.unpack_archive(path)",
    ],
)
def test_what_is_looked_for_is_found(code):
    assert dangers(ast.parse(code))


def test_yaml_of_a_file_makes_no_objects(tmp_path):
    text = f"!!python/object/apply:pathlib.Path.touch [!!python/name:pathlib.Path '{tmp_path}/x']"
    with pytest.raises(Exception, match="could not determine a constructor"):
        io.read_yaml(text)


# --- planted files --------------------------------------------------------------------------


class Canary:
    """Unpickling one of these writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def planted(path: Path, canary: Path, kind: str) -> None:
    thing = Canary(canary)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(thing))
    elif kind == "torch":
        torch.save({"weights": thing}, path)
    else:
        with path.open("wb") as file:
            np.savez(file, observations=np.array([thing], dtype=object))


@pytest.mark.parametrize("kind", ["pickle", "torch", "npz"])
@pytest.mark.parametrize("suffix", ["json", "parquet", "safetensors"])
def test_a_pickle_among_the_results_is_never_loaded(suffix, kind, tmp_path):
    canary, store, run = tmp_path / "canary", Store(tmp_path / "r"), spec()
    mark = store.append(run, episodes(), provenance())
    planted(mark.with_suffix(f".{suffix}"), canary, kind)
    reads = [
        lambda: store.read(run.run_id),
        lambda: store.read_all(),
        lambda: store.runs(),
        lambda: store.episodes(),
        lambda: store.missing([run]),
        lambda: load_policy(mark),
        lambda: main(["board", "suite=quick", f"results={tmp_path / 'r'}"]),
    ]
    for read in reads:
        try:
            read()
        # said in one line; what is damaged is warned of
        except (UserError, Warning) as error:
            assert "\n" not in str(error)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["pickle", "torch", "npz"])
@pytest.mark.parametrize("name", ["own.npz", "own.hdf5", "own.pkl", "own.pt", "own.parquet"])
def test_a_pickle_as_data_is_never_loaded(name, kind, tmp_path, capsys):
    canary, path = tmp_path / "canary", tmp_path / name
    planted(path, canary, kind)
    own = [f"task.data={path}", "task.env=Hopper-v5", "method=bc", f"results={tmp_path / 'r'}"]
    assert main(["plan", *own]) == 2 or main(["run", *own]) == 2
    error = capsys.readouterr().err
    assert error.startswith("offbench: own/own: ") and "Traceback" not in error
    assert main(["data", "check", str(path)]) != 0
    assert not canary.exists() and not list(tmp_path.glob("r/runs/**/*.json"))


# --- ports ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_port_is_open_to_other_machines_while_a_bench_runs(tmp_path):
    settings = ["n_updates=200", "eval.episodes=1", "seeds=[0,1]", "jobs=2", "max_stack=1"]
    command = [sys.executable, "-m", "offbench.cli", "run", "method=bc", *settings]
    command += ["task=offbench/hopper/medium-replay-v0", f"results={tmp_path}", "method.hidden=[8]"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    parent, looks, seen = psutil.Process(process.pid), 0, set()
    while process.poll() is None:
        try:
            everyone = [parent, *parent.children(recursive=True)]
            for one in everyone:
                for socket in one.net_connections("inet"):
                    if socket.status == psutil.CONN_LISTEN:
                        seen.add(socket.laddr.ip)
            looks += len(everyone) > 2
        except psutil.Error:
            pass
        time.sleep(0.05)
    assert process.returncode == 0 and looks > 3
    assert seen <= {"127.0.0.1", "::1"}


@pytest.mark.slow
def test_importing_offbench_opens_no_port_and_asks_no_one():
    code = (
        "import json, psutil, offbench, offbench.cli, offbench.bench.runner, offbench.rollout\n"
        "print(json.dumps(len(psutil.Process().net_connections('inet'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout) == 0
