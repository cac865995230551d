"""Settings of offbench's own classes, read from their source: a plan of them imports no torch.

What is read here equals what `inspect` says of the imported class (a test compares all of them);
anything that cannot be read from the source alone is left to the import.
"""

import ast
import builtins
import importlib
from functools import cache
from inspect import Parameter
from pathlib import Path
from typing import Any, ClassVar, get_origin, get_type_hints

Parameters = dict[str, tuple[Any, Any]]

_PACKAGE = Path(__file__).resolve().parents[1]
# what annotations are made of, and light to import
_LIGHT = ("typing", "collections.abc", "offbench.ranges")
# what an engine passes, and no setting
SET_BY_ENGINE = frozenset({"data", "gamma", "method"})
Field = tuple[str, ast.expr | None, ast.expr | None]


@cache
def read_parameters(target: str) -> Parameters | None:
    """Settings of a dataclass, NamedTuple or function of offbench as name -> (type, default), in order;
    None where the source does not say.

    Args:
        target: a dotted path, "offbench.methods.iql.IQL".
    """
    module, _, name = target.rpartition(".")
    package, *parts = module.split(".")
    path = _PACKAGE.joinpath(*parts).with_suffix(".py")
    if package != "offbench" or not path.is_file():
        return None
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    node = next((n for n in found if n.name == name), None)
    fields = _fields(node) if node else None
    if node is None or fields is None:
        return None
    inherited: Parameters = {}
    for base in reversed(_bases(node, tree, module)):
        if (above := read_parameters(base)) is None:
            return None
        inherited |= above
    try:
        own = _evaluated([f for f in fields if f[0] not in SET_BY_ENGINE], _names(tree))
        return inherited | own
    # an annotation or a default that needs more than its text
    except (NameError, ValueError, AttributeError):
        return None


def _fields(node: ast.ClassDef | ast.FunctionDef) -> list[Field] | None:
    """(name, annotation, default) of each parameter of its own; None for a class that is no dataclass."""
    if isinstance(node, ast.FunctionDef):
        given = node.args
        first: list[ast.expr | None] = [None] * (len(given.args) - len(given.defaults))
        both = [
            *zip(given.args, [*first, *given.defaults]),
            *zip(given.kwonlyargs, given.kw_defaults),
        ]
        return [(arg.arg, arg.annotation, default) for arg, default in both]
    decorators = [ast.unparse(d) for d in node.decorator_list]
    plain = decorators == ["dataclass(frozen=True, kw_only=True)"]
    if not plain and [ast.unparse(base) for base in node.bases] != ["NamedTuple"]:
        return None
    own = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    return [(ast.unparse(n.target), n.annotation, n.value) for n in own]


def _bases(node: ast.ClassDef | ast.FunctionDef, tree: ast.Module, module: str) -> list[str]:
    """Dotted paths of the classes that a dataclass inherits from."""
    if isinstance(node, ast.FunctionDef):
        return []
    imported = {
        alias.asname or alias.name: f"{n.module}.{alias.name}"
        for n in tree.body
        if isinstance(n, ast.ImportFrom)
        for alias in n.names
    }
    names = [ast.unparse(base) for base in node.bases]
    return [imported.get(name, f"{module}.{name}") for name in names if name != "NamedTuple"]


def _names(tree: ast.Module) -> dict[str, Any]:
    """What the module imports from modules that are light."""
    return {
        alias.asname or alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module in _LIGHT
        for alias in node.names
    } | {"__builtins__": vars(builtins)}


def _evaluated(fields: list[Field], names: dict[str, Any]) -> Parameters:
    def holder() -> None: ...

    hints = {name: eval(ast.unparse(hint), names) if hint else Any for name, hint, _ in fields}
    own = {k: v for k, v in hints.items() if get_origin(v) is not ClassVar and v is not ClassVar}
    holder.__annotations__ = own
    # Annotated[float, Gt(0)] is a float
    plain = get_type_hints(holder)
    return {
        name: (plain[name], ast.literal_eval(default) if default else Parameter.empty)
        for name, _, default in fields
        if name in own
    }
