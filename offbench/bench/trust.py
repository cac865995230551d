"""Which code a file may name: a dotted path that was not typed is imported from installed packages only.

A record, a kept policy, a yaml of a suite or of a package name classes. What a person types on the command line
(`method._target_=mymodule.X`) is theirs to run; what a file says is not, unless `--allow-code` or
OFFBENCH_ALLOW_CODE=1 is given.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlparse

from offbench.errors import UserError

FLAG = "--allow-code"
VARIABLE = "OFFBENCH_ALLOW_CODE"
_allowed: ContextVar[bool] = ContextVar("allowed", default=False)


def check_target(target: object, where: str) -> None:
    """Raises UserError where `target`, a dotted path that `where` names, is not of an installed package.

    Nothing is imported to find out.
    """
    name = str(target)
    if _allowed.get() or os.environ.get(VARIABLE) == "1" or not _is_foreign(name):
        return
    raise UserError(
        f"{where} names {name}, which is not of an installed package; {FLAG} (or {VARIABLE}=1) imports it"
        " all the same"
    )


@contextmanager
def allowing_code(allowed: bool) -> Iterator[None]:
    """With `allowed`, code that files name is imported inside the block."""
    token = _allowed.set(allowed or _allowed.get())
    try:
        yield
    finally:
        _allowed.reset(token)


def _is_foreign(target: str) -> bool:
    """Whether a dotted path leads out of the installed packages."""
    top = target.partition(".")[0]
    if top in ("offbench", "__main__"):
        return top == "__main__"
    try:
        spec = find_spec(top)
    # no name of a module
    except (ValueError, ImportError):
        return True
    # not installed: importing it says so
    if spec is None:
        return False
    files = list(spec.submodule_search_locations or ()) or [spec.origin or ""]
    roots = _installed_at(tuple(sys.path), Path.cwd())
    return not all(any(Path(f).resolve().is_relative_to(r) for r in roots) for f in files)


@cache
def _installed_at(path: tuple[str, ...], here: Path) -> frozenset[Path]:
    """The folders of `path` that packages are installed into, and those installed with `pip install -e`;
    never the working folder, in which anything may lie."""
    found = set()
    for one in distributions(path=list(path)):
        root = Path(str(one.locate_file(""))).resolve()
        if root != here:
            found |= {root, *_editable(one)}
    return frozenset(found)


def _editable(one: Distribution) -> list[Path]:
    """The folder of a package that was installed with `pip install -e`, if it was."""
    read = one.read_text
    try:
        about = json.loads(read("direct_url.json") or "{}")
        if not about.get("dir_info", {}).get("editable"):
            return []
        return [Path(unquote(urlparse(about["url"]).path)).resolve()]
    except (ValueError, KeyError, AttributeError):
        return []
