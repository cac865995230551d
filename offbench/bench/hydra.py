"""Reads configuration with Hydra: options of `conf/`, entries, overrides of the command line.

Plugins add options with an `offbench.conf` entry point. No other module imports Hydra.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from offbench.errors import UserError, unknown
from offbench.io import read_yaml, shipped

GROUPS = ("method", "sampler", "view", "weight", "synthetic", "suite")

# groups that compose with any method
AROUND = ("sampler", "view", "weight", "synthetic")

# what to write in place of Hydra's --multirun and launchers
NO_LAUNCHERS = (
    "offbench plans sweeps itself and trains the values of a number in one stack: write method.lr=1e-3,3e-4 as it is,"
    " and executor=local, ray or slurm for where it runs"
)

# view -> the parameter that the number in `iql+nstep3` sets
NAMES_OF_VIEWS = {"nstep": "n", "chunk": "h"}


def conf_dir() -> Path:
    """The folder of the shipped configuration."""
    return shipped("conf")


@contextmanager
def _hydra() -> Iterator[Any]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class ExternalConf(SearchPathPlugin):
        """Adds the conf of every installed package that declares an `offbench.conf` entry point."""

        def manipulate_search_path(self, search_path: Any) -> None:
            for entry in entry_points(group="offbench.conf"):
                search_path.append(provider=entry.name, path=f"pkg://{entry.value}")

    if not any(p.__name__ == "ExternalConf" for p in Plugins.instance().discover(SearchPathPlugin)):
        Plugins.instance().register(ExternalConf)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@cache
def options(group: str) -> tuple[str, ...]:
    """Names in a config group: `options("method")`."""
    with _hydra() as loader:
        return tuple(sorted(loader.get_group_options(group)))


@cache
def read_option(group: str, name: str) -> Mapping[str, Any]:
    """One option of a group as plain data, not to be changed; for a method, the whole config.

    Raises UserError for an unknown name.
    """
    if name not in options(group):
        raise unknown(group, name, options(group))
    path = conf_dir() / group / f"{name}.yaml"
    plain = _loaded(path) if path.exists() else None
    if plain is not None and group != "method":
        return plain
    if plain is not None and _is_global(path):
        config: Mapping[str, Any] = _merged(compose_conf(), plain)
    else:
        config = compose_conf(f"{group}={name}")
    if group == "method" and "_target_" not in config["method"]:
        raise UserError(
            f"conf/method/{name}.yaml: the first line must be '# @package _global_', no other comment"
            " above it, and below it method: {_target_: package.Class}"
        )
    return config if group == "method" else MappingProxyType(config[group])


def _loaded(path: Path) -> Mapping[str, Any] | None:
    """What Hydra composes of a file without `defaults` and interpolations, 0.2 s faster; None for others."""
    text = path.read_text(encoding="utf-8")
    content = read_yaml(text)
    if not isinstance(content, dict) or "defaults" in content or "${" in text:
        return None
    return MappingProxyType(content)


def _is_global(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        return file.readline().strip() == "# @package _global_"


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """As Hydra merges: mappings key by key, anything else replaced."""
    both = lambda a, b: _merged(a, b) if isinstance(a, Mapping) and isinstance(b, Mapping) else b
    return {**base, **{key: both(base.get(key), value) for key, value in more.items()}}


# a bench of many entries composes the same few files again and again
@cache
def compose_conf(*choices: str) -> Mapping[str, Any]:
    """conf/run.yaml with these options as plain data, not to be changed.

    Raises UserError for an option that cannot be composed, or names a file outside its configuration.
    """
    from hydra import compose
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        with _hydra() as loader:
            if choices:
                files = loader.compute_defaults_list("run", list(choices), RunMode.RUN).defaults
                _refuse_outside([str(file.config_path) for file in files], choices)
            content: Any = OmegaConf.to_container(compose("run", list(choices)))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        why = str(error).strip().split("\n")[0]
        raise UserError(f"{' '.join(choices)}: its yaml cannot be read ({why})") from None
    return MappingProxyType(content)


def _refuse_outside(files: Sequence[str], choices: Sequence[str]) -> None:
    for file in files:
        if ".." in file.split("/") or ":" in file or file.startswith("/"):
            raise UserError(
                f"{' '.join(choices)}: its yaml names {file}, outside the configuration of its package"
            )


def parse_overrides(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Overrides as {key: value}, one dict per point of a sweep (`method.alpha=1,2.5`)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from hydra.errors import HydraException

    axes: list[list[tuple[str, Any]]] = []
    for text in overrides:
        if (numbers := _read_numbers(text)) is not None:
            axes.append(numbers)
            continue
        if text.lstrip("+~").startswith(("hydra/", "hydra.")):
            raise UserError(f"{text.partition('=')[0]}: {NO_LAUNCHERS}")
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException:
            raise UserError(
                f"cannot read {text!r}: settings are written key=value, lists as [1,2], text as 'a b'"
            ) from None
        if parsed.is_add() or parsed.is_delete() or parsed.is_force_add():
            raise UserError(
                f"{text!r}: settings are replaced (key=value), not added or deleted; null switches one off"
            )
        if parsed.package is not None:
            raise UserError(f"{text!r}: settings are written key=value, without @ in the key")
        key, value = parsed.key_or_group, parsed.value()
        if not parsed.is_sweep_override():
            axes.append([(key, _plain(value))])
        elif isinstance(value, ChoiceSweep):
            axes.append([(key, _plain(choice)) for choice in value.list])
        else:
            raise UserError(f"{text!r}: only choices can be swept (a=1,2,3)")
    return [dict(point) for point in itertools.product(*axes)]


_NUMBERS = re.compile(r"[a-z_]\w*(?:\.[a-z_]\w*)*=(\[?)([-0-9.eE, ]+,[-0-9.eE, ]+)(\]?)")


def _read_numbers(text: str) -> list[tuple[str, Any]] | None:
    """`a=[1,2.5]` and the sweep `a=1,2.5` as Hydra reads them, 20 times faster; None for anything else."""
    match = _NUMBERS.fullmatch(text)
    if match is None or bool(match[1]) != bool(match[3]):
        return None
    key = text.partition("=")[0]
    try:
        numbers = json.loads(f"[{match[2]}]")
    # leading zeros, say, which Hydra takes for text
    except ValueError:
        return None
    return [(key, numbers)] if match[1] else [(key, number) for number in numbers]


def _plain(value: Any) -> Any:
    """Hydra's quoted strings as text, inside lists and dicts too."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(x) for x in value]
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    return value


def split_entry(
    entry: str | None, choices: Mapping
) -> tuple[str | None, dict[str, tuple[str, dict]]]:
    """`iql+aw+nstep3` -> ("iql", {"sampler": ("aw", {}), "view": ("nstep", {"n": 3})}).

    Raises UserError for an unknown name or two names of one group.
    """
    picked: dict[str, tuple[str, dict]] = {g: (choices[g], {}) for g in AROUND if choices.get(g)}
    if entry is None:
        return None, picked
    name, *modifiers = entry.split("+")
    if not name:
        raise UserError(f"{entry!r} names no method: iql+aw is iql with the sampler aw")
    # a word is a name of one group
    groups = {word: group for group in reversed(AROUND) for word in options(group)}
    # group -> its name in the entry
    named: dict[str, str] = {}
    found: tuple[str, dict]
    for word in modifiers:
        match = re.fullmatch(r"([a-z_]+?)(\d+)", word)
        if word in groups:
            group, found = groups[word], (word, {})
        elif match and match[1] in NAMES_OF_VIEWS:
            group, found = "view", (match[1], {NAMES_OF_VIEWS[match[1]]: int(match[2])})
        else:
            raise unknown(f"sampler, view, weight or data source in {entry!r}:", word, groups)
        if group in named:
            raise UserError(f"{entry!r} names two {group}s, {named[group]} and {word}: one is used")
        named[group], picked[group] = word, found
    return None if "." in name else name, picked
