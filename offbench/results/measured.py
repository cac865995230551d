"""Tables of what a kept policy does, each a parquet file that says which policy it is of.

    root/<folder>/<suite>/<task>/<entry>/<run_id>*.parquet

`offbench.results.estimates` and `offbench.results.decisions` say what the rows are. Beside the checksum of the policy
a file has what its rows were made with, so that they are made again where either is another now.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from offbench.errors import UserError, in_one_line, writing
from offbench.io import replacing, sha256_of


def path_of(root: Path, folder: str, mark: Path, ending: str = ".parquet") -> Path:
    """Where the table of a run lies, from the path of its record's json."""
    return root / folder / mark.relative_to(root / "runs").parent / f"{mark.stem}{ending}"


def kinds_of(root: Path, folder: str, run_ids: Collection[str]) -> dict[str, int]:
    """What lies between the id of a run and the ending of the tables of some runs (of estimates their estimator) and the
    number of runs that have one; nothing is opened."""
    names = (path.name.removesuffix(".parquet") for path in (root / folder).glob("*/*/*/*.parquet"))
    found = Counter(
        kind for run, _, kind in (name.partition(".") for name in names) if run in run_ids
    )
    return dict(sorted(found.items()))


def write_table(path: Path, table: pa.Table, kept: Path, how: Mapping[str, Any]) -> None:
    """Writes a table, the checksum of the kept policy that it is of, and what it was made with.

    Raises UserError where the file cannot be written.
    """
    about = json.dumps(_about(kept, how), sort_keys=True)
    table = table.replace_schema_metadata({"offbench": about})
    with writing(path), replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def is_made(path: Path, kept: Path, how: Mapping[str, Any]) -> bool:
    """Whether there is a table of a kept policy that was made with this."""
    return about(path) == json.loads(json.dumps(_about(kept, how)))


def about(path: Path) -> dict[str, Any] | None:
    """What a file says of its table: `policy`, a checksum, and what it was made with; None where it says nothing."""
    try:
        found = json.loads((pq.read_schema(path).metadata or {}).get(b"offbench", b"null"))
    except (OSError, pa.ArrowException, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_table(
    path: Path, what: str, schema: pa.Schema, completed: Callable[[pa.Table], pa.Table]
) -> pa.Table:
    """A table in a schema, once `completed`, each page compared with its checksum if it has one.

    Raises UserError for a file that cannot be read as `what`.
    """
    try:
        return completed(pq.read_table(path, page_checksum_verification=True)).cast(schema)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as {what}: {in_one_line(error)}") from None


def _about(kept: Path, how: Mapping[str, Any]) -> dict[str, Any]:
    return {"policy": sha256_of(kept), **how}
