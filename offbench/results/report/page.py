"""A report as one HTML text: the page, its style and programs, and the data, large parts compressed.

The page runs from disk and asks the network for nothing: a content security policy in it forbids that.
What the table needs lies in it as JSON; runs, statistics and plotly.js (about 2 MB) lie in it as base64 of
gzip and are inflated by the browser when they are asked for.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from offbench.errors import UserError

_FILES = (
    "template.html",
    "report.css",
    "table.js",
    "cell.js",
    "charts.js",
    "compare.js",
    "report.js",
)
_SCRIPTS = tuple(name for name in _FILES if name.endswith(".js"))


def page(board: Mapping[str, Any], parts: Mapping[str, Any], fingerprint: str) -> str:
    """The report as HTML.

    Args:
        board: `board_payload`, which is shown at once.
        parts: name -> data that are inflated when they are asked for: `runs`, `evidence`.
        fingerprint: of `fingerprint_of`, found again by `recorded_fingerprint`.
    """
    title = str(board["title"] or "leaderboard")
    packed = {name: _packed(_json(data).encode()) for name, data in parts.items()}
    slots = {
        "title": escape(title),
        "fingerprint": escape(fingerprint),
        "style": _file("report.css"),
        "script": "\n".join(_file(name) for name in _SCRIPTS),
        "board": _json(board),
        "parts": "\n".join(
            f'<script type="text/plain" id="part-{escape(name)}">{text}</script>'
            for name, text in [*packed.items(), ("plotly", _plotly())]
        ),
    }
    # in one pass: what is filled in is not read again
    return re.sub(r"<!--slot (\w+)-->", lambda match: slots[match[1]], _file("template.html"))


def fingerprint_of(board: Mapping[str, Any], run_ids: list[str]) -> str:
    """A checksum of what a report is made from: its board, its runs, and the page itself."""
    content = [_json(board), *sorted(run_ids), *(_file(name) for name in _FILES)]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:32]


def recorded_fingerprint(head: str) -> str | None:
    """The fingerprint in the first lines of a report; None where there is none."""
    found = re.search(r'<meta name="offbench-report" content="([0-9a-f]{32})">', head)
    return found[1] if found else None


def _json(data: Any) -> str:
    """JSON in which no tag of HTML can begin or end."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _packed(content: bytes) -> str:
    # no time stamp: the same records give the same bytes; level 6 is 4 % smaller and takes 60 % longer
    return base64.b64encode(gzip.compress(content, 4, mtime=0)).decode()


@cache
def _plotly() -> str:
    # its folder, not its import, which takes long
    package = find_spec("plotly")
    if package is None or package.origin is None:
        raise UserError("a report needs the package plotly; install: pip install 'plotly>=6'")
    path = Path(package.origin).parent / "package_data" / "plotly.min.js"
    return _packed(path.read_bytes())


@cache
def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
