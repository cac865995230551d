"""What in a record would say where or who somebody is: absolute paths, names of a machine or a user."""

import re
from typing import Any

from offbench.errors import UserError, user_and_host

# /home/me/data.hdf5, ~/data.hdf5, C:\\data.hdf5, \\\\server\\data.hdf5; no ids such as d4rl/hopper-medium-v2
_PATH = re.compile(
    r"(?<![\w/.:~\\])(?:~?(?:/[^\s/'\",;:)\]}]+){2,}/?|~/[^\s/'\",;:)\]}]+"
    r"|(?:[A-Za-z]:|\\)\\[^\s'\",;)\]}]+)"
)


def without_private(body: dict[str, Any]) -> dict[str, Any]:
    """The body of a record with paths cut to their last name, and names of machine and user in its remarks.

    Raises:
        UserError: what defines the run has a path in it, which cannot be cut: the run would be another.
    """
    if found := _PATH.search(" ".join(_texts(body["spec"]))):
        run = f"run {body['run_id']}"
        raise UserError(f"{run} has the path {found[0]!r} in its settings, which others would read")
    public = body | {"provenance": _cut(body["provenance"])}
    if body["reason"] is not None:
        public["reason"] = _without_names(_cut(body["reason"]))
    if body.get("failure") is not None:
        failure = {k: v for k, v in body["failure"].items() if k != "sha256"}
        public["failure"] = _cut(failure) | {"traceback": None}
    return public


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for text in _texts(list(pair))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {_cut(name): _cut(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_cut(item) for item in value]
    return _PATH.sub(_last_name, value) if isinstance(value, str) else value


def _last_name(path: re.Match[str]) -> str:
    return re.split(r"[/\\]", path[0].rstrip("/\\"))[-1]


def _without_names(text: str) -> str:
    for name in user_and_host():
        # "root" is nobody, and a short name may be a word
        if len(name) > 4:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "(name)", text)
    return text
