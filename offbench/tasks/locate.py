"""Finds and downloads the data of tasks.

    task = load_task("hopper-medium-v2")
    task = ready(task)

Of the first, path and sha256 are None where the data are not here; the second has downloaded them.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from offbench.data import composition
from offbench.errors import UserError, expect
from offbench.tasks import files, minari, registry
from offbench.tasks.task import Loader, Task


def canonical(task_id: str) -> str:
    """The canonical form of an id or composition (`offbench.tasks.registry.canonical`). UserError for a
    malformed composition."""
    parsed = composition.parse(composition.MIXED.get(task_id, task_id))
    if isinstance(parsed, str):
        return registry.canonical(parsed)
    return str(parsed.renamed(registry.canonical))


def load_task(task_id: str, *, loader: Loader = "offbench") -> Task:
    """The task of a dataset id. Raises UserError naming the nearest ids for an unknown one.

    Nothing is downloaded: see `ready`. With `loader="d4rl"` a D4RL file is read by the d4rl package
    (`offbench.tasks.formats.d4rl_package`), and the task's sha256 differs.
    """
    expect("task", task_id, str, "the id of a task, as offbench/hopper/medium-replay-v0")
    parsed = composition.parse(composition.MIXED.get(task_id, task_id))
    if not isinstance(parsed, str):
        return _composed(parsed.renamed(registry.canonical), loader)
    task = registry.describe(task_id, kind="task")
    if task.family != "offbench" and (path := locate(task)) is not None:
        task = replace(task, path=path, sha256=files.digest(path))
    return read_by(task, loader)


def _composed(parsed: composition.Composition, loader: Loader) -> Task:
    """The task of a composition, evaluated as its first part; sha256 of its id and its parts' checksums."""
    parts = [load_task(part, loader=loader) for part in parsed.leaves]
    _same_environment(parsed, parts)
    found = [part.sha256 for part in parts if part.sha256 is not None]
    text = "\n".join([str(parsed), *found])
    sha256 = hashlib.sha256(text.encode()).hexdigest() if len(found) == len(parts) else None
    return replace(parts[0], id=str(parsed), sha256=sha256, family="composed")


def _same_environment(parsed: composition.Composition, parts: list[Task]) -> None:
    """Raises UserError for parts of different environments, of which only the first would be evaluated; another
    version is the same environment, another task of OGBench has other rewards."""
    envs = {re.sub(r"-v\d+$", "", part.env): part for part in parts if part.env}
    if len(envs) > 1:
        words = ", ".join(f"{part.id} in {part.env}" for part in envs.values())
        raise UserError(f"{parsed}: the parts were recorded in different environments ({words})")


def read_by(task: Task, loader: Loader) -> Task:
    """The task with another loader. UserError where that cannot read its data."""
    if loader == task.loader:
        return task
    if not (task.id.startswith("d4rl/") or (task.path or Path()).suffix in (".hdf5", ".h5")):
        raise UserError(f"{task.id}: loader={loader} reads D4RL's files only")
    if task.adapter == "image":
        raise UserError(f"{task.id}: loader={loader} reads no actions that are choices")
    changed = replace(task, loader=loader)
    return replace(changed, sha256=loaded_sha256(changed, task.sha256))


def loaded_sha256(task: Task, sha256: str | None) -> str | None:
    """The checksum that identifies loaded data: of the file, and of the loader if it is d4rl."""
    if task.loader == "offbench":
        return sha256
    # its import is heavy
    from offbench.tasks.formats import d4rl_package

    version = d4rl_package.version(task.id)
    if sha256 is None:
        return None
    text = f"{sha256} read by d4rl {version}"
    return hashlib.sha256(text.encode()).hexdigest()


# --- files ----------------------------------------------------------------------------------


def locate(task: Task) -> Path | None:
    """The file or folder of a published set, in our cache or another package's; None where missing.

    For Minari the folder that holds `data`.
    """
    if task.family == "minari":
        return minari.folder(task.id.removeprefix("minari/"))
    kind, _, name = task.files[0].name.partition("/")
    return files.find("d4rl" if kind == "d4rl" else "ogbench", name)


def fetch(task: Task, progress: "files.Progress | None" = None, *, verify: bool = False) -> Path:
    """The file or folder of a published set, downloaded if missing.

    Args:
        verify: check a file downloaded before against its recorded checksum.

    Raises:
        UserError: the download fails; names address, file and folder.
    """
    found = locate(task)
    ours = found is not None and found.is_relative_to(files.cache_dir())
    remotes = [f for f in task.files if f.url and "." in Path(f.url).name]
    if found is not None and not (verify and ours and remotes):
        return found
    if not remotes:
        folder = files.cache_dir() / (task.files[0].name if task.files else task.id)
        raise UserError(f"{task.id}: nothing is known to download; put its files into {folder}")
    for file in remotes:
        path = files.fetch(file.url, file.name, file.size, file.sha256, progress)
        if path.name == "metadata.json":
            minari.check_hdf5(task.id, path)
    return path.parent.parent if task.family == "minari" else path


def ready(task: Task) -> Task:
    """The task with its data downloaded and their sha256. Metadata of a Minari set determine environment
    and references. UserError where the download fails.
    """
    if task.sha256 is not None:
        return task
    parsed = composition.parse(task.id)
    for name in [task.id] if isinstance(parsed, str) else parsed.leaves:
        if (part := load_task(name)).sha256 is None:
            fetch(part)
    return load_task(task.id, loader=task.loader)
