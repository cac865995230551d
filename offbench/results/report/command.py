"""The command line that makes a recorded run again."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from offbench.results.identity import transforms_in_order
from offbench.results.spec import OUTSIDE

# what Hydra reads as text without quotes, and as nothing else
_WORD = re.compile(r"[A-Za-z_][\w./@+-]*")
_CONSTANTS = ("true", "false", "null", "inf", "nan")

_PATH = "PATH"

# names in a specification that no option of conf/ has, and an option of that function
_OPTIONS = {"top": "top10"}
# settings of n-step returns that a specification leaves out at these values
_LEFT_OUT = {"pad": True, "rewards_after_terminal": False}


def settings_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting that decides the outcome of a run, but its seed, under its name on the command line.

    Args:
        spec: `RunSpec.as_dict()`.
    """
    own_class = "." in spec["method"]
    return {
        "method._target_" if own_class else "method": spec["method"],
        "suite": spec["suite"],
        **_task(spec),
        "n_updates": spec["n_updates"],
        **_pipeline(spec["pipeline"]),
        **{f"method.{name}": value for name, value in spec["hparams"].items()},
        **_evaluation(spec["protocol"]),
    }


def words_of_command(
    spec: Mapping[str, Any], entry: str, seeds: Sequence[int]
) -> tuple[str, ...] | None:
    """`offbench run ...` as arguments, with every setting that decides the outcome of a run.

    Nothing is left to defaults, suites or presets, so that the command means the same when those change.
    Where the data were the user's own, the record has their checksum and not where they lay:
    `task.data=PATH` is to be filled in.

    Args:
        spec: `RunSpec.as_dict()`.
        entry: label of the board's row.
        seeds: training seeds of this configuration.

    Returns:
        None for a policy that was trained elsewhere.
    """
    if spec["method"] == OUTSIDE:
        return None
    settings = {**settings_of(spec), "seeds": list(seeds), "label": entry}
    return ("offbench", "run", *(f"{name}={spelt(value)}" for name, value in settings.items()))


def _task(spec: Mapping[str, Any]) -> dict[str, Any]:
    name, _, loader = spec["dataset"].partition(", read by ")
    found: dict[str, Any] = {"task": spec["task"]}
    # the environment of own data says how a return is scored
    if "score" in spec["env"]:
        found |= {"task.data": _PATH, "task.env": spec["env"]["id"]}
        if "goals" in spec["env"]:
            found["task.goals"] = spec["env"]["goals"]
    return found | ({"loader": loader} if name and loader else {})


def _pipeline(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group in ("view", "sampler", "weight", "synthetic"):
        option = pipeline.get(group, {"name": "none"})
        name = str(option.get("name", option.get("target")))
        found[f"{group}._target_" if "." in name else group] = _OPTIONS.get(name, name)
        rest = {k: v for k, v in option.items() if k not in ("name", "target")}
        if name == "nstep" and rest.get("n", 1) > 1:
            rest = {**rest, **{k: v for k, v in _LEFT_OUT.items() if k not in rest}}
        found |= {f"{group}.{key}": value for key, value in rest.items()}
    found["transforms"] = transforms_in_order(pipeline)
    for name in ("batch_size", "gamma", "precision"):
        if name in pipeline:
            found[name] = pipeline[name]
    return found


def _evaluation(protocol: Mapping[str, Any]) -> dict[str, Any]:
    played = ("episodes", "envs", "monitor_at", "monitor_episodes", "validation")
    known = (*played, "by", "fqe_updates", "fqe_hidden", "fqe_gamma")
    found = {f"eval.{name}": protocol[name] for name in known if name in protocol}
    # an evaluation that there is not has no length
    if not protocol.get("monitor_at"):
        found.pop("eval.monitor_episodes", None)
    if not protocol.get("episodes"):
        found.pop("eval.episodes", None)
        found.pop("eval.monitor_at", None)
    return found


def spelt(value: Any) -> str:
    """A value as the command line reads it (Hydra's grammar): [64,64], {obs_norm:{}}, null, 'a text'."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{spelt(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(spelt, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _WORD.fullmatch(value) and value.lower() not in _CONSTANTS:
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
