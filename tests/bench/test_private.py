"""Records, policies, boards, reports and event files say nothing of who or where they were made."""

import contextlib
import os
import platform
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

from offbench.cli import main
from offbench.errors import clean_traceback, publishable
from offbench.results.store import Store

SECRETS = {
    "WANDB_API_KEY": "canary-of-a-key-0123456789abcdef0123456789",
    "HF_TOKEN": "canary-of-a-token",
    "AWS_SECRET_ACCESS_KEY": "canary-of-a-cloud",
    "SOME_PASSWORD": "canary-of-a-password",
    "UNRELATED": "canary-of-a-variable",
}
CODE = """
import os, socket, torch
class Fails:
    def __init__(self, obs_dim, action_dim):
        self.size, self.steps = action_dim, 0
    def train_step(self, batch):
        self.steps += 1
        if self.steps > 3:
            words = f"{os.environ['HF_TOKEN']} on {socket.gethostname()} at {os.getcwd()}/x"
            raise RuntimeError(f"{words} and {os.path.expanduser('~/private')}")
        return {}
    def act(self, obs):
        return torch.zeros(len(obs), self.size)
"""
TINY = [
    "task=offbench/hopper/medium-replay-v0",
    "n_updates=8",
    "eval.episodes=1",
    "eval.monitor_at=[0.5]",
    "eval.monitor_episodes=1",
    "seeds=[0]",
    "jobs=1",
    "device=cpu",
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A home folder and a machine of telling names, with a key of everything in the environment."""
    home = tmp_path / "canary-of-a-home" / "canary-of-a-user"
    work = home / "work"
    work.mkdir(parents=True)
    (work / "failing_here.py").write_text(CODE)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for name in ("USER", "LOGNAME", "USERNAME", "LNAME"):
        monkeypatch.setenv(name, "canary-of-a-user")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HOSTNAME", "canary-of-a-host")
    monkeypatch.setattr(socket, "gethostname", lambda: "canary-of-a-host")
    monkeypatch.setattr(platform, "node", lambda: "canary-of-a-host")
    monkeypatch.chdir(work)
    return work


def words_of(path: Path) -> str:
    """A file's name and its content, compressed columns as text."""
    text = path.read_bytes().decode("utf-8", "replace")
    if path.suffix == ".parquet":
        text += pd.read_parquet(path).to_csv()
    return f"{path.name}\n{text}"


@contextlib.contextmanager
def listeners() -> Iterator[set[str | None]]:
    """The addresses on which this process and its children listen, as long as the block runs; and None."""
    seen: set[str | None] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
            for port in (s for one in everyone for s in one.net_connections("inet")):
                seen.add(port.laddr.ip if port.status == psutil.CONN_LISTEN else None)
            seen.add(None)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_what_a_bench_writes_tells_nothing_of_its_machine(place, capsys):
    results = f"results={place / 'r'}"
    own = ["method=bc", "method.hidden=[4]", "keep=policy", "logger=tensorboard"]
    with listeners() as seen:
        assert main(["run", *own, *TINY, results]) == 0
    assert seen == {None}
    assert main(["run", "method._target_=failing_here.Fails", *TINY, results]) != 0
    assert main(["report", *own, *TINY, results]) == 0
    files = [p for p in (place / "r").rglob("*") if p.is_file()]
    kinds = {p.suffix for p in files} | {p.name.split(".")[0] for p in files}
    assert {".json", ".parquet", ".safetensors", ".html", ".md", "events"} <= kinds
    told = [(p, line) for p in files for line in words_of(p).splitlines() if "canary" in line]
    assert not told, told[0]
    # the failure is there, with its reason
    failed = Store(place / "r").runs(status="failed")
    (reason,) = failed["reason"]
    assert reason.startswith(
        "Fails.train_step raised RuntimeError: *** on HOST at x and ~/private ("
    )
    assert reason.endswith(" (failing_here.py:10)")


def test_a_traceback_begins_at_the_package_and_has_no_secret_in_it(place):
    try:
        exec(compile("from offbench.io import slug\nslug(None)", str(place / "x.py"), "exec"))
    except AttributeError as error:
        error.add_note(f"{SECRETS['HF_TOKEN']} {place.parent}/data/x of canary-of-a-host")
        text = clean_traceback(error)
    assert 'File "offbench/io.py"' in text and 'File "x.py"' in text
    assert "*** ~/data/x of HOST" in text and "canary" not in text


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("{home}", "~"),
        ("{home}/a b", "~/a b"),
        ("{home}er/a", "{home}er/a"),
        ("({work}/r)", "(r)"),
        ("at {work}", "at ."),
        ("/scratch/canary-of-a-user/x", "/scratch/USER/x"),
        ("{package}/io.py", "offbench/io.py"),
        ("{torch}/nn/x.py", "torch/nn/x.py"),
        ("{os}", "os.py"),
        ("host canary-of-a-host: refused", "host HOST: refused"),
        ("key canary-of-a-token.", "key ***."),
        ("nothing of this", "nothing of this"),
        ("", ""),
    ],
)
def test_what_may_be_published_of_a_text(text, want, place):
    import torch

    import offbench

    names = {
        "home": place.parent,
        "work": place,
        "package": Path(offbench.__file__).parent,
        "torch": Path(torch.__file__).parent,
        "os": os.__file__,
    }
    assert publishable(text.format(**names)) == want.format(**names)


def test_a_machine_without_a_user_or_a_home_has_texts_too(monkeypatch):
    import getpass

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert publishable("/a/b") == "/a/b"
