"""Nothing that only Unix has is needed: read from the source, and by a run without it."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.paths import ROOT

MODULES = {
    "fcntl",
    "resource",
    "pwd",
    "grp",
    "termios",
    "tty",
    "pty",
    "posix",
    "syslog",
    "readline",
}
OS = set(
    """sysconf confstr getloadavg uname fork forkpty killpg getpgid getpgrp setpgid getsid setsid getuid geteuid
    getgid getegid getgroups setuid setgid nice getpriority setpriority sched_getaffinity sched_setaffinity
    sched_yield mkfifo mknod chown fchown lchown fchmod chroot statvfs fstatvfs sync fdatasync lockf
    pread pwrite readv writev sendfile posix_fadvise posix_fallocate posix_spawn pipe2 wait3 wait4
    waitid register_at_fork openpty ttyname memfd_create getxattr setxattr O_DIRECTORY O_NOFOLLOW
    O_NONBLOCK O_CLOEXEC O_SYNC WNOHANG WIFEXITED""".split()
)
SIGNALS = set(
    """SIGKILL SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGPIPE SIGSTOP SIGTSTP SIGCONT SIGBUS alarm
    setitimer pause sigwait pthread_kill pthread_sigmask""".split()
)
FOLDERS = ("/proc", "/dev", "/sys", "/tmp", "/etc", "/var")
ASKS = ("sys.platform", "os.name", "platform.system", "hasattr(os", "hasattr(signal")
EXCUSES = {  # what must be caught for a use in a `try` to be no trouble elsewhere
    "import": {"ImportError", "ModuleNotFoundError", "Exception"},
    "attribute": {"AttributeError", "Exception"},
    "file": {"OSError", "PermissionError", "FileNotFoundError", "Exception"},
}


def uses(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(kind, name) of what a single node needs and only Unix has."""
    if isinstance(node, ast.Import):
        yield from (("import", a.name) for a in node.names if a.name.split(".")[0] in MODULES)
    if isinstance(node, ast.ImportFrom):
        names = {"os": OS, "signal": SIGNALS}.get(node.module or "", set())
        yield from (("import", f"{node.module}.{a.name}") for a in node.names if a.name in names)
        if (node.module or "").split(".")[0] in MODULES:
            yield "import", str(node.module)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.attr in {"os": OS, "signal": SIGNALS}.get(node.value.id, ()):
            yield "attribute", f"{node.value.id}.{node.attr}"
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called == "os.open" and "O_RDONLY" in ast.unparse(node):
            yield "file", "os.open(..., O_RDONLY): no folder is opened so"
        if called.endswith("get_context") and any(
            isinstance(a, ast.Constant) and a.value in ("fork", "forkserver") for a in node.args
        ):
            yield "attribute", ast.unparse(node)
        yield from (("attribute", "preexec_fn") for k in node.keywords if k.arg == "preexec_fn")
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if any(node.value == f or node.value.startswith(f"{f}/") for f in FOLDERS):
            yield "file", node.value


def asks(node: ast.AST) -> bool:
    return any(words in ast.unparse(node) for words in ASKS)


def unguarded(node: ast.AST, excused: frozenset[str] = frozenset()) -> Iterator[str]:
    """What is used where neither the system is asked for nor its absence caught, with the line."""
    yield from (f"line {node.lineno}: {name}" for kind, name in uses(node) if kind not in excused)
    for name, value in ast.iter_fields(node):
        here = excused
        if isinstance(node, ast.If | ast.IfExp) and name != "test" and asks(node.test):
            here = frozenset(EXCUSES)
        if isinstance(node, ast.Try) and name == "body":
            caught = {
                n.id
                for h in node.handlers
                if h.type
                for n in ast.walk(h.type)
                if isinstance(n, ast.Name)
            }
            here = excused | {kind for kind, errors in EXCUSES.items() if errors & caught}
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from unguarded(child, here)
                # `if os.name == "nt": return` guards what comes after it, `except ImportError: return` too
                if isinstance(child, ast.If) and asks(child.test) and leaves(child.body):
                    here = frozenset(EXCUSES)
                if isinstance(child, ast.Try) and all(leaves(h.body) for h in child.handlers):
                    if any(kind == "import" for n in child.body for kind, _ in uses(n)):
                        here = here | {"attribute"}


def leaves(body: list[ast.stmt]) -> bool:
    return isinstance(body[-1], ast.Return | ast.Raise | ast.Continue)


@pytest.mark.parametrize("path", sorted((ROOT / "offbench").rglob("*.py")), ids=lambda p: p.stem)
def test_the_source_needs_no_unix(path):
    assert not list(unguarded(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "code",
    [
        "import fcntl",
        "from resource import getrusage",
        "from os import sysconf",
        "def f():\n    import pwd",
        "import os\nn = os.sysconf('SC_PHYS_PAGES')",
        "import os\nn = len(os.sched_getaffinity(0))",
        "import os\nos.killpg(1, 2)",
        "import signal\nx = signal.SIGKILL",
        "import os\nhandle = os.open(folder, os.O_RDONLY)",
        "import os\ntry:\n    os.getuid()\nexcept OSError:\n    pass",
        "try:\n    pass\nexcept ImportError:\n    import fcntl",
        "open('/proc/meminfo')",
        "path = '/dev/shm'",
        "context = multiprocessing.get_context('fork')",
        "import os\nif os.name == 'nt':\n    pass\nos.fork()",
        "if sys.version_info > (3, 11):\n    import termios",
    ],
)
def test_what_only_unix_has_is_seen(code):
    assert list(unguarded(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    import fcntl\nexcept ImportError:\n    fcntl = None",
        "try:\n    import resource\nexcept ImportError:\n    return 0\nresource.getrusage(0)",
        "if sys.platform != 'win32':\n    import resource",
        "n = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else 1",
        "try:\n    n = os.sysconf('x')\nexcept AttributeError:\n    n = 0",
        "def f():\n    if os.name == 'nt':\n        return\n    os.open(folder, os.O_RDONLY)",
        "try:\n    open('/proc/meminfo')\nexcept OSError:\n    pass",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "path = 'results/dev/x'",
    ],
)
def test_what_is_guarded_is_let_through(code):
    assert not list(unguarded(ast.parse(code)))


def without_encoding(tree: ast.AST) -> list[int]:
    """Lines where a file is opened as text in the encoding of the machine."""
    found = []
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        named = {k.arg: k.value for k in node.keywords}
        called = ast.unparse(node.func)
        if "encoding" in named or called in ("os.open", "tarfile.open", "Image.open"):
            continue
        name = called.rpartition(".")[2]
        if name in ("read_text", "write_text"):
            found.append(node.lineno)
        if name in ("open", "fdopen"):
            # Path.open has its mode first, every other one the file
            given = node.args[1:] if called in ("open", "io.open", "os.fdopen") else node.args[:1]
            mode = named.get("mode", given[0] if given else ast.Constant("r"))
            modes = [n.value for n in ast.walk(mode) if isinstance(n, ast.Constant)]
            # a file inside an archive has no mode of this kind
            text = [m for m in modes if isinstance(m, str) and set(m) <= set("rwaxt+")]
            found += [node.lineno] if text else []
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "offbench").rglob("*.py")), ids=lambda p: p.stem)
def test_text_is_read_and_written_as_utf_8(path):
    assert not without_encoding(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "code",
    [
        "path.read_text()",
        "Path(x).read_text(errors='replace')",
        "path.write_text(text)",
        "open(path)",
        "open(path, 'w', newline='')",
        "open(path, mode='a')",
        "path.open()",
        "path.open(newline='')",
        "path.open('a' if resumed else 'w')",
        "os.fdopen(handle, 'w')",
    ],
)
def test_a_missing_encoding_is_seen(code):
    assert without_encoding(ast.parse(code)) == [1]
    more = "encoding='utf-8')"
    said = code[:-1] + (more if code.endswith("()") else f", {more}")
    assert not without_encoding(ast.parse(said))


@pytest.mark.parametrize(
    "code",
    [
        "open(path, 'rb')",
        "path.open('ab' if resumed else 'wb')",
        "os.open(path, os.O_RDONLY)",
        "archive.open(info)",
        "archive.open(info, 'w')",
        "tarfile.open(path, 'w')",
        "h5py.h5o.open(parent.id, key.encode())",
    ],
)
def test_what_is_no_text_needs_no_encoding(code):
    assert not without_encoding(ast.parse(code))


WITHOUT = """
import builtins, os, sys, types

MODULES, NAMES = {modules!r}, {names!r}
windows = types.ModuleType("os")
windows.__dict__.update({{k: v for k, v in vars(os).items() if k not in NAMES}}, name="nt")
import_ = builtins.__import__

def no_folder(path, *args, **more):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return os.open(path, *args, **more)

windows.open = no_folder

def without(name, globals=None, *more, **named):
    if (globals or {{}}).get("__name__", "").split(".")[0] == "offbench":
        if name.split(".")[0] in MODULES:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        if name == "os":
            return windows
    return import_(name, globals, *more, **named)

builtins.__import__ = without
import offbench.bench.executors.local, offbench.tasks.files, offbench.results.store, offbench.tasks.formats.hdf5, offbench.speed.benchmark
assert offbench.bench.executors.local.os is windows and not hasattr(offbench.bench.executors.local.os, "sysconf")
from offbench.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.env
def test_a_run_ends_where_the_names_of_unix_are_absent(tmp_path):
    """Our own modules are given an `os` as Windows has it, and no module that only Unix has."""
    program = WITHOUT.format(modules=MODULES, names=OS)
    settings = (
        "method=bc task=offbench/hopper/medium-replay-v0 suite=quick seeds=[0] n_updates=20"
        f" method.hidden=[8] eval.episodes=1 eval.monitor_at=[] results={tmp_path}"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, "run", *settings.split()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(list(tmp_path.glob("runs/**/*.parquet"))) == 1


def test_records_are_written_where_neither_locks_nor_links_are_to_be_had(tmp_path, monkeypatch):
    import fcntl

    from support.records import episodes, provenance, spec

    from offbench.results.store import Store

    def refuse(*_, **__):
        raise OSError(95, "Operation not supported")

    for module, name in ((fcntl, "flock"), (fcntl, "lockf"), (fcntl, "fcntl"), (os, "link")):
        monkeypatch.setattr(module, name, refuse)
    store = Store(tmp_path)
    store.check_writable()
    store.fail(spec(), "out of memory", provenance())
    store.append(spec(), episodes(), provenance())
    assert store.runs()["status"].tolist() == ["ok"] and len(store.episodes()) == 3
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_a_device_of_apple_is_refused_in_one_line():
    from offbench.bench.preflight import resolve_device
    from offbench.errors import UserError

    with pytest.raises(UserError, match="device=mps: runs are made on cpu and cuda only"):
        resolve_device("mps")
