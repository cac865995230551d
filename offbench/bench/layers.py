"""Settings in layers: later layers win, and every value keeps its source."""

import difflib
import inspect
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from offbench.bench.hydra import AROUND, GROUPS, compose_conf
from offbench.bench.settings import Settings
from offbench.bench.sources import DEFAULT, RUN, Layer, Source
from offbench.bench.targets import parameters
from offbench.bench.values import coerce, flatten, is_list, nest, type_hints
from offbench.errors import UserError, unknown

_SETTINGS = type_hints(Settings)
# former name of a setting -> its name
_RENAMED = {"sink": "logger"}


@cache
def _run_yaml() -> Mapping[str, Any]:
    return flatten(compose_conf())


def check_lists(points: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError for a list of a run that is written as a sweep: seeds=0,1,2 in the place of seeds=[0,1,2]."""
    for key in points[0]:
        values = list(dict.fromkeys(str(p[key]) for p in points if not isinstance(p[key], list)))
        if len(values) > 1 and is_list(_SETTINGS.get(key)):
            text = ",".join(values)
            raise UserError(
                f"{key}={text} is a sweep of {len(values)}, and not a list: {key}=[{text}]"
            )


class Layers:
    """Dotted settings with their values, types and sources."""

    def __init__(self, values: Mapping[str, Any], source: Source):
        self.values = flatten(values)
        run_yaml = _run_yaml()
        self.sources = {
            k: RUN if k in run_yaml and run_yaml[k] == v else source for k, v in self.values.items()
        }
        self.hints: dict[str, Any] = dict(_SETTINGS)

    def copy(self) -> "Layers":
        """An independent copy."""
        other = object.__new__(Layers)
        other.__dict__.update({name: dict(own) for name, own in vars(self).items()})
        return other

    def asked(self, groups: Collection[str]) -> bool:
        """Whether the command line names a setting of one of the groups."""
        return any(
            source.layer is Layer.COMMAND_LINE and key.split(".")[0] in groups
            for key, source in self.sources.items()
        )

    def replace(self, group: str, values: Mapping[str, Any], source: Source) -> None:
        """Replaces all values of a group."""
        for key in [k for k in self.values if k == group or k.startswith(group + ".")]:
            del self.values[key], self.sources[key]
        for key, value in flatten({group: values}).items():
            self.values[key], self.sources[key] = value, source

    def fill_defaults(self, group: str) -> None:
        """Adds the types and defaults of the group's class, in the order of its parameters.

        Raises UserError for a setting that the class lacks, and for one without a value.
        """
        target = self.values.get(f"{group}._target_")
        if target is None:
            return
        own = {f"{group}.{name}": known for name, known in parameters(target).items()}
        self.hints |= {key: hint for key, (hint, _) in own.items()}
        whole: dict[str, Any] = {}
        for key, value in self.values.items():
            if key == f"{group}._target_":
                # values of the yaml replace defaults below
                whole |= {key: value} | {name: default for name, (_, default) in own.items()}
            elif key.startswith(f"{group}.") and key not in own:
                raise unknown(f"setting of {target}", key, own)
            else:
                whole[key] = value
        for key in own:
            whole[key] = self.values.get(key, whole[key])
            if whole[key] is inspect.Parameter.empty:
                name = key.removeprefix(f"{group}.")
                raise UserError(
                    f"{target} needs {name}, which neither its yaml nor its defaults give"
                )
            self.sources.setdefault(key, DEFAULT)
        self.values = whole

    def update(self, changes: Mapping[str, Any], source: Source, *, lenient: bool = False) -> None:
        """Sets existing settings. UserError for unknown ones; `lenient` skips unknown method settings."""
        for key, value in changes.items():
            if key == "transforms" or key.startswith("transforms."):
                self._transforms(key, value, source)
            elif key in self.hints:
                self.values[key] = (
                    value if is_reference(value) else coerce(value, self.hints[key], key)
                )
                self.sources[key] = source
            elif not (lenient and key.split(".")[0] in ("method", *AROUND)):
                raise self._unknown(key)

    def _unknown(self, key: str) -> UserError:
        """The error for an unknown key; the last part counts as near: `expectile`, `method.expectile`."""
        if key in _RENAMED:
            return UserError(f"setting '{key}' is now called '{_RENAMED[key]}'")
        known = [k for k in self.hints if not k.startswith("suite")]
        if "." not in key:
            known += GROUPS
        last = {k.rsplit(".", 1)[-1]: k for k in known}
        near = difflib.get_close_matches(key.rsplit(".", 1)[-1], last, n=1, cutoff=0.6)
        hint = f"; did you mean '{last[near[0]]}'?" if near else ""
        siblings = [k for k in known if k.split(".")[0] == key.split(".")[0]]
        return UserError(
            f"unknown setting '{key}'{hint} (settings: {', '.join(siblings or known)})"
        )

    def _transforms(self, key: str, value: Any, source: Source) -> None:
        if key == "transforms":
            for old in [k for k in self.values if k.split(".")[0] == "transforms"]:
                del self.values[old], self.sources[old]
            if isinstance(value, list | tuple):
                value = _without_options(value)
            if not isinstance(value, Mapping):
                raise UserError(
                    f"transforms={'null' if value is None else repr(value)} must be names ([obs_norm]) or names with options ({{obs_norm: {{}}}})"
                )
            changes = flatten({"transforms": value}) or {"transforms": {}}
        else:
            changes = {key: value}
            self.values.pop("transforms", None)
            if len(key.split(".")) == 3:
                self.values.pop(key.rsplit(".", 1)[0], None)
        for k, v in changes.items():
            self.values[k], self.sources[k] = v, source

    def nested(self, group: str) -> dict[str, Any]:
        """The values of a group as a nested dict, uncoerced."""
        below = {k: v for k, v in self.values.items() if k.startswith(f"{group}.")}
        return nest(below).get(group, {})

    def typed(self, group: str) -> dict[str, Any]:
        """The group's parameters, coerced to the target's types."""
        names = [
            k for k in self.values if k.startswith(group + ".") and not k.endswith("._target_")
        ]
        return {k.split(".", 1)[1]: coerce(self.resolved(k), self.hints[k], k) for k in names}

    def resolved(self, key: str) -> Any:
        """The value of a setting, references such as `${n_updates}` followed."""
        value = self.values[key]
        if not is_reference(value):
            return value
        name = value[2:-1]
        if name not in self.values or is_reference(self.values[name]):
            raise unknown(f"setting in {key}={value}:", name, self.values)
        return self.values[name]


def is_reference(value: Any) -> bool:
    """Whether a value is the name of another setting, as Hydra writes it: `${n_updates}`."""
    return isinstance(value, str) and value.startswith("${") and value.endswith("}")


def _without_options(names: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """`[obs_norm]` as `{obs_norm: {}}`."""
    for name in names:
        if isinstance(name, list | tuple | Mapping):
            raise UserError(
                f"transforms: {name!r} in a list must be a name; options are written"
                " transforms.NAME.OPTION=VALUE or transforms={NAME: {OPTION: VALUE}}"
            )
        if names.count(name) > 1:
            raise UserError(f"transforms={list(names)} has {name} twice, and it is applied once")
    return {name: {} for name in names}
