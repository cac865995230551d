"""Code that a file names is imported from installed packages only, unless it is allowed by a flag."""

import json
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from offbench import load_policy
from offbench.bench import hydra
from offbench.bench.trust import check_target
from offbench.cli import main
from offbench.errors import UserError
from offbench.results.store import Store

RUN = [
    "task=offbench/hopper/medium-replay-v0",
    "n_updates=4",
    "eval.episodes=1",
    "eval.monitor_at=[]",
    "seeds=[0]",
    "jobs=1",
    "device=cpu",
]
CODE = """
import pathlib
import torch
pathlib.Path("canary").touch()
class Mine:
    def __init__(self, obs_dim, action_dim):
        self.size, self.net = action_dim, torch.nn.Linear(obs_dim, action_dim)
    def train_step(self, batch): return {"loss": 0.0}
    def act(self, obs): return self.net(obs).tanh()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a module in it; importing that writes a file."""
    (tmp_path / "planted.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delenv("OFFBENCH_ALLOW_CODE", raising=False)
    yield tmp_path
    sys.modules.pop("planted", None)


def ran(folder: Path) -> bool:
    """Whether the planted module was imported; forgets it."""
    sys.modules.pop("planted", None)
    canary = folder / "canary"
    return canary.exists() and (canary.unlink() or True)


def refused(error: str) -> bool:
    says = "which is not of an installed package; --allow-code (or OFFBENCH_ALLOW_CODE=1)"
    return says in error and error.rstrip().count("\n") == 0


def test_what_is_typed_is_run_and_what_its_record_names_is_not(folder, monkeypatch):
    assert main(["run", "method._target_=planted.Mine", *RUN, "results=r", "keep=policy"]) == 0
    assert ran(folder)
    (kept,) = Path("r").glob("runs/**/*.safetensors")
    with pytest.raises(UserError) as found:
        load_policy(kept)
    assert refused(str(found.value)) and "names planted.Mine" in str(found.value)
    # reading records runs nothing of them
    assert len(Store("r").runs()) == 1 and not ran(folder)
    assert load_policy(kept, allow_code=True).act([0.0] * 11).shape == (3,) and ran(folder)
    monkeypatch.setenv("OFFBENCH_ALLOW_CODE", "1")
    assert load_policy(kept).act([0.0] * 11).shape == (3,) and ran(folder)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A policy that a run of BC has kept."""
    root = tmp_path_factory.mktemp("kept")
    own = ["method=bc", "method.hidden=[4]", f"results={root}", "keep=policy"]
    assert main(["run", *own, *RUN]) == 0
    (found,) = root.glob("runs/**/*.safetensors")
    return found


def rewritten(path: Path, to: Path, **changes) -> Path:
    """A kept file with another header."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["offbench"])
    run = {**header["run"], **changes.pop("run", {})}
    save_file(load_file(path), to, {"offbench": json.dumps({**header, "run": run, **changes})})
    return to


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "os.system", "run": {"hparams": {"command": "touch canary"}}}, "os.system"),
        ({"target": "subprocess.Popen"}, "subprocess.Popen"),
        ({"target": "planted.Mine"}, "planted.Mine"),
        ({"target": "__main__.X"}, "__main__.X"),
        ({"target": "torch.nn.Linear"}, "Linear has no"),
        ({"target": "torch.hub.load"}, "is a function, not a class"),
        ({"target": "offbench.cli.app.main"}, "is a function, not a class"),
        ({"run": {"pipeline": {"view": {"name": "planted.Mine"}, "gamma": 0.9}}}, "planted.Mine"),
        (
            {
                "run": {
                    "pipeline": {
                        "view": {"name": "torch.hub.load", "repo_or_dir": "x"},
                        "gamma": 0.9,
                    }
                }
            },
            "names torch.hub.load, which is no view",
        ),
        (
            {
                "run": {
                    "pipeline": {
                        "view": {"name": "nstep", "n": 1},
                        "weight": {"name": "os.system", "command": "touch canary"},
                        "gamma": 0.9,
                    }
                }
            },
            "os.system",
        ),
    ],
)
def test_a_kept_policy_cannot_name_what_it_likes(changes, words, kept, folder):
    bad = rewritten(kept, folder / "bad.safetensors", **changes)
    with pytest.raises(UserError) as found:
        load_policy(bad)
    assert words in str(found.value) and "\n" not in str(found.value)
    assert not ran(folder)
    assert load_policy(rewritten(kept, folder / "good.safetensors")).act([0.0] * 11).shape == (3,)


@pytest.fixture
def outside(folder, monkeypatch):
    """Options of a package outside: a method, a view and a suite that name the planted module."""
    texts = {
        "method/planted.yaml": "# @package _global_\nmethod:\n  _target_: planted.Mine\n",
        "view/planted.yaml": "_target_: planted.Mine\n",
        "suite/planted.yaml": "id: planted\nversion: 1\nmethods: [planted.Mine]\n"
        f"tasks: [{RUN[0][5:]}]\n",
    }
    conf = folder / "conf"
    for name, text in texts.items():
        (conf / name).parent.mkdir(parents=True, exist_ok=True)
        (conf / name).write_text(text)
    shipped = hydra.conf_dir()
    for path in shipped.rglob("*.yaml"):
        copy = conf / path.relative_to(shipped)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for one in (hydra.options, hydra.read_option, hydra.compose_conf):
        one.cache_clear()
    monkeypatch.setattr(hydra, "conf_dir", lambda: conf)
    yield
    for one in (hydra.options, hydra.read_option, hydra.compose_conf):
        one.cache_clear()


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "method=planted", *RUN],
        ["plan", "method=bc", "view=planted", *RUN],
        ["plan", "methods=[planted]", *RUN],
        ["bench", "suite=planted", *RUN[1:], "results=r"],
        ["list", "methods"],
        ["list", "views"],
        ["check", "method=planted", *RUN],
    ],
)
def test_a_yaml_cannot_name_what_it_likes(command, folder, outside, capsys):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert refused(error) and "names planted.Mine" in error
    assert not ran(folder) and not (folder / "r").exists()


def test_a_flag_allows_it_for_one_command(folder, outside, capsys):
    assert main(["--allow-code", "plan", "method=planted", *RUN]) == 0 and ran(folder)
    assert main(["plan", "method=planted", *RUN, "--allow-code"]) == 0 and ran(folder)
    assert main(["plan", "method=planted", *RUN]) == 2 and not ran(folder)


def test_a_folder_that_says_it_is_installed_is_not(folder):
    """Metadata beside the module, in the working folder, make no installed package of it."""
    info = folder / "planted-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n")
    (info / "top_level.txt").write_text("planted\n")
    (info / "direct_url.json").write_text(
        json.dumps({"dir_info": {"editable": True}, "url": folder.as_uri()})
    )
    sys.path.append(str(folder))
    with pytest.raises(UserError, match="not of an installed package"):
        check_target("planted.Mine", "a record")


def test_installed_packages_are_trusted_and_nothing_is_imported_to_know(folder, monkeypatch):
    sys.path.append(str(folder))
    for target in ("offbench.methods.bc.BC", "torch.nn.Linear", "yaml.Loader", "absent.X"):
        check_target(target, "a record")
    for target in ("planted.Mine", "os.system", "json.loads", "__main__.X"):
        with pytest.raises(UserError, match="not of an installed package"):
            check_target(target, "a record")
    # one of the same name before the installed one
    (folder / "yaml.py").write_text(CODE)
    monkeypatch.delitem(sys.modules, "yaml")
    sys.path.insert(0, str(folder))
    with pytest.raises(UserError, match="not of an installed package"):
        check_target("yaml.Loader", "a record")
    assert not ran(folder)
