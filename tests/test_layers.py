"""The shape of the package, checked on its source: who may import whom, and what nobody may do."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "offbench"
FILES = {
    p.relative_to(PACKAGE).with_suffix("").as_posix(): p for p in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}

METHODS = {name for name in FILES if name.startswith("methods/")}

HEAVY = {"torch", "gymnasium"}
ENVIRONMENTS = {
    "gymnasium",
    "minari",
    "ogbench",
    "mujoco",
    "gymnasium_robotics",
    "stable_baselines3",
    "sb3_contrib",
}
# an environment of ours, imported where it is made
IS_ENVIRONMENT = {"tasks/pick_and_place"}
MAY_KNOW_METHODS = METHODS | {n for n in FILES if n.startswith(("speed/", "testing/"))}
_BORROWED = {"np.random.get_state", "np.random.seed", "np.random.set_state"}
MAY_SET_GLOBALS = {
    "rollout": _BORROWED,  # OGBench's mazes draw their start from numpy's generator; it is put back
    "recipes/ogbench_oracles": _BORROWED,  # the same
    "recipes/behaviour": {"os.environ"},  # the threads of its worker processes
    # what Ray reads as it is imported; the folders of the command, in a process that a cluster started
    "bench/executors/ray": {"os.environ"},
    "bench/executors/remote": {"os.environ"},
    # where its processes find packages that were carried along
    "speed/gpu_check": {"os.environ"},
    "recipes/store": {"os.environ"},  # the folder that minari writes to; it is put back
    # the same; MUJOCO_GL, when an environment is made and nobody has set it
    "tasks/environments": {*_BORROWED, "os.environ"},
    # a user's class draws from the process's generators: a seed's own stand there while it runs, and are put back
    "training/imperative": {*_BORROWED, "random", "torch.default_generator"},
    # reads and sets the generators that a user's object owns
    "training/object_state": {"random", "np.random.RandomState"},
    "nn/nets": {"torch.default_generator"},  # so does a module's constructor, inside fork_rng
    # what d4rl asks for, to be imported without its simulators
    "tasks/formats/d4rl_package": {"os.environ"},
}
MAY_PRINT = {n for n in FILES if n.startswith("cli/")} | {"speed/benchmark", "speed/gpu_check"}


def imports(tree: ast.AST) -> list[tuple[str, ast.stmt]]:
    """Every imported module name, whole, with its statement."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [(f"{node.module}.{alias.name}", node) for alias in node.names]
    return found


def internal(tree: ast.AST) -> set[str]:
    """The modules of offbench that are imported, as in FILES."""
    found = set()
    for name, _ in imports(tree):
        parts = name.split(".")
        if parts[0] != "offbench":
            continue
        for n in (len(parts), len(parts) - 1):
            if (path := "/".join(parts[1:n])) in FILES or f"{path}/__init__" in FILES:
                found.add(path if path in FILES else f"{path}/__init__")
                break
    return found


def at_import(tree: ast.Module) -> set[str]:
    """The outermost packages that importing the module imports: not those inside functions or TYPE_CHECKING."""
    found = set()

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                found.update(name.split(".")[0] for name, _ in imports(node))
            for field in ("body", "orelse", "finalbody"):
                visit(getattr(node, field, []))

    visit(tree.body)
    return found


def test_imports_point_downwards():
    """The contracts of pyproject.toml: what a package may import."""
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
    )
    assert run.returncode == 0, run.stdout


LIGHT = {n for n in FILES if n.startswith(("results/", "cli/", "tasks/files/"))} | {
    "__init__",
    "errors",
    "io",
    "tasks/locate",
    "tasks/registry",
    "tasks/environments",
    "tasks/task",
    "bench/plan",
}


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_importing_results_and_the_command_line_loads_no_torch_and_no_environment(name):
    assert not at_import(TREES[name]) & (HEAVY | ENVIRONMENTS)


@pytest.mark.parametrize("name", sorted(FILES.keys() - IS_ENVIRONMENT))
def test_environment_packages_are_imported_inside_functions(name):
    assert not at_import(TREES[name]) & ENVIRONMENTS


def test_the_contract_needs_no_environment_and_no_evidence():
    trees = [tree for name, tree in TREES.items() if name.startswith("testing/")]
    outside = {n.split(".")[0] for tree in trees for n, _ in imports(tree)}
    assert outside - set(sys.stdlib_module_names) == {"torch", "offbench"}


@pytest.mark.parametrize("name", sorted(set(FILES) - MAY_KNOW_METHODS))
def test_no_method_is_named_outside_its_file(name):
    """No import, class name or branch on a method's name; prose in docstrings and help is allowed."""
    words = {m.removeprefix("methods/") for m in METHODS} - {"__init__"}
    classes = {n.name for m in METHODS for n in TREES[m].body if isinstance(n, ast.ClassDef)} - {
        "State"
    }
    tree = TREES[name]
    assert not {m for m in internal(tree) if m in METHODS and m != "methods/__init__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            assert node.value not in words | classes, f"{name}:{node.lineno} names a method"
        if isinstance(node, (ast.Name, ast.Attribute)):
            ident = node.id if isinstance(node, ast.Name) else node.attr
            assert ident not in classes, f"{name}:{node.lineno} names a method"


_SEEDS = (
    "torch.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.seed",
    "torch.default_generator",
)


def global_state(tree: ast.AST) -> set[str]:
    """Uses of the process's generators and environment variables."""
    found = set()
    random = any(m == "random" for m, _ in imports(tree)) or any(
        m.startswith("random.") for m, _ in imports(tree)
    )
    if random:
        found.add("random")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if dotted in _SEEDS:
                found.add(dotted)
            modern = ("default_rng", "Generator", "SeedSequence", "PCG64")
            if ast.unparse(node.value) in ("np.random", "numpy.random") and node.attr not in modern:
                found.add(dotted)
        targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else []
        if any(ast.unparse(t).startswith("os.environ[") for t in targets):
            found.add("os.environ")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "os.environ.setdefault",
            "os.environ.update",
            "os.environ.pop",
            "os.putenv",
        ):
            found.add("os.environ")
    return found


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_sets_a_global_generator_or_an_environment_variable(name):
    assert global_state(TREES[name]) <= MAY_SET_GLOBALS.get(name, set())


@pytest.mark.parametrize("name", sorted(FILES))
def test_only_the_edge_prints(name):
    prints = [
        n.lineno
        for n in ast.walk(TREES[name])
        if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"
    ]
    assert name in MAY_PRINT or not prints, f"{name} prints in lines {prints}"


def functions(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Body of every function of ten lines or more, without its docstring -> where it stands."""
    found = defaultdict(list)
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 >= 10:
                body = node.body[1:] if ast.get_docstring(node) else node.body
                found["\n".join(map(ast.dump, body))].append(f"{name}:{node.lineno} {node.name}")
    return found


def test_no_function_is_written_twice():
    copies = [places for places in functions(TREES).values() if len(places) > 1]
    assert not copies, f"written more than once: {copies}"


MOST_LINES, MOST_ARGUMENTS = 60, 8
# with more arguments than that, and why
WIDE = {
    # settings of a public call: keyword-only, each with its default, type and name on the command line;
    # a bag of them would hide them from `help` and let a misspelt one pass
    "training/loop train",
    "tasks/custom own_task",
    # an operator of torch takes flat lists and numbers, and so do its rules and what replaces it
    *(f"nn/optim {name}" for name in ("adam_", "_adam", "_", "adam_formula", "adam_lists")),
}


def large_functions(trees: dict[str, ast.Module]) -> tuple[set[str], set[str]]:
    """Functions that are too long, and those with too many arguments, constructors excepted."""
    long, wide = set(), set()
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            given = node.args
            names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            names += [a.arg for a in (given.vararg, given.kwarg) if a is not None]
            if node.end_lineno - node.lineno + 1 > MOST_LINES:
                long.add(f"{name} {node.name}")
            if len(names) - (names[:1] in (["self"], ["cls"])) > MOST_ARGUMENTS:
                wide |= {f"{name} {node.name}"} if node.name != "__init__" else set()
    return long, wide


def test_a_function_is_read_in_one_sitting():
    long, wide = large_functions(TREES)
    assert not long, f"longer than {MOST_LINES} lines: {long}"
    assert wide == WIDE, (
        f"more than {MOST_ARGUMENTS} arguments: {wide - WIDE}; no longer: {WIDE - wide}"
    )


def test_a_borrowed_generator_is_always_put_back():
    for name, allowed in MAY_SET_GLOBALS.items():
        if allowed >= _BORROWED:
            assert global_state(TREES[name]) & _BORROWED in (set(), _BORROWED), name


def test_the_rules_above_can_fail():
    bad = ast.parse(
        "import gymnasium, random\nimport numpy as np\nfrom offbench.training.engine import Engine\nimport os, torch\n"
        "np.random.seed(0)\ntorch.manual_seed(0)\nos.environ['A'] = '1'\n"
    )
    assert at_import(bad) & ENVIRONMENTS and internal(bad) == {"training/engine"}
    assert global_state(bad) == {"random", "np.random.seed", "torch.manual_seed", "os.environ"}
    assert not at_import(
        ast.parse("def f():\n    import gymnasium\nif TYPE_CHECKING:\n    import minari")
    )
    twice = ast.parse(
        "def f(x):\n    '''One.'''\n"
        + "    x += 1\n" * 10
        + "def g(x):\n    '''Two.'''\n"
        + "    x += 1\n" * 10
    )
    assert [len(v) for v in functions({"a": twice}).values()] == [2]
    eight = "a, b, c, d, e, *f, g, **h"
    large = ast.parse(
        "def long():\n"
        + "    pass\n" * 60
        + f"def wide({eight}, i=0): ...\n".replace("**h, i=0", "i=0, **h")
        + f"class C:\n    def fits(self, {eight}): ...\n    def __init__(self, x, y, {eight}): ...\n"
    )
    assert large_functions({"a": large}) == ({"a long"}, {"a wide"})


def in_a_new_process(code: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return run.stdout.strip()


def test_importing_offbench_loads_neither_torch_nor_an_environment_nor_hydra():
    code = "import sys, offbench; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(in_a_new_process(code).split())
    assert "offbench" in loaded and not loaded & (
        HEAVY | ENVIRONMENTS | {"hydra", "omegaconf", "pandas", "wandb"}
    )


def test_importing_offbench_imports_nothing_that_takes_milliseconds():
    code = "import sys; had = {*sys.modules}; import offbench; print(*{*sys.modules} - had)"
    assert not {"typing", "pathlib", "re"} & set(in_a_new_process(code).split())


def test_type_checkers_see_the_public_names_where_the_interpreter_finds_them():
    import offbench

    imports = [n for n in ast.walk(TREES["__init__"]) if isinstance(n, ast.ImportFrom)]
    seen = {(a.name, a.asname, n.module) for n in imports for a in n.names}
    seen.remove(("import_module", None, "importlib"))
    assert seen == {(k, k, f"offbench.{home}") for k, home in offbench._HOME.items()}


def test_importing_offbench_takes_less_than_a_third_of_a_second():
    code = "import time; t = time.process_time(); import offbench; print(time.process_time() - t)"
    assert min(float(in_a_new_process(code)) for _ in range(3)) < 0.3


def test_names_of_test_files_are_unique():
    """Folders of tests are no packages: two files of one name cannot be collected together."""
    folders = defaultdict(list)
    for path in (ROOT / "tests").rglob("*.py"):
        if path.name != "conftest.py":
            folders[path.name].append(path.parent.relative_to(ROOT).as_posix())
    assert not {name: where for name, where in folders.items() if len(where) > 1}
