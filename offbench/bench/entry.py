"""Parses entries such as `iql+aw+nstep3`: a method, its sampler, view and weight wrapper."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from offbench.bench.cells import TUNABLE
from offbench.bench.hydra import AROUND, NAMES_OF_VIEWS, compose_conf, read_option, split_entry
from offbench.bench.layers import Layers
from offbench.bench.presets import Preset, preset_table, yaml_presets
from offbench.bench.sources import COMMAND_LINE, DEFAULT, Layer, Source
from offbench.bench.targets import check_method
from offbench.bench.trust import check_target
from offbench.bench.values import short_text
from offbench.errors import UserError


class Method(NamedTuple):
    """A method with its sampler, view and weight wrapper, before a task is chosen."""

    # as written in the entry
    name: str | None
    # group -> option and the number in its name
    picked: Mapping[str, tuple[str, dict]]
    values: "Layers"
    # values of the method alone, before the entry's options
    plain: Mapping[str, Any]
    presets: "Sequence[Preset]"
    budgets: "Sequence[Preset]"


def read_entry(entry: str | None, choices: Mapping, given: Mapping) -> Method:
    """The method of an entry with its settings and where each came from.

    `choices` are groups chosen on the command line (`view=chunk`), `given` its dotted settings.
    Raises UserError for unknown names and classes that are no method.
    """
    name, picked = split_entry(entry, choices)
    base = read_option("method", name) if name else {**compose_conf(), "method": {}}
    source = (base.get("known_as") or {}).get(_span_of(base, picked, given), name)
    # FQL on chunks of 5 is QC-FQL, with its settings
    if source != name:
        base = read_option("method", source)
    presets = (
        *(preset_table(source) if source else ()),
        *yaml_presets(base.get("presets") or ()),
    )
    budgets = tuple(yaml_presets(base.get("budgets") or ()))
    about = ("presets", "budgets", "suite", "summary", "known_as")
    own = {k: v for k, v in base.items() if k not in about}
    values = Layers(own, Source(Layer.METHOD, source) if source else DEFAULT)
    plain = dict(values.values)
    for group in AROUND:
        option, extra = picked.get(group, (None, {}))
        config = read_option(group, option) if option else {}
        # `qc+chunk10` changes the length and keeps the other settings of the method's view
        if option and config["_target_"] != values.values[f"{group}._target_"]:
            values.replace(group, config, Source(Layer.OPTION, f"{group}/{option}"))
    if "method._target_" in given:
        values.replace("method", {"_target_": given["method._target_"]}, COMMAND_LINE)
    for group in ("method", *AROUND):
        source = values.sources.get(f"{group}._target_", DEFAULT)
        if (target := values.values.get(f"{group}._target_")) and source != COMMAND_LINE:
            check_target(target, str(source))
    check_method(values.values["method._target_"])
    for group in ("method", *AROUND):
        values.fill_defaults(group)
        _, extra = picked.get(group, (None, {}))
        values.update(
            {f"{group}.{k}": v for k, v in extra.items()}, Source(Layer.ENTRY, str(entry))
        )
    return Method(name, picked, values, plain, presets, budgets)


def _span_of(base: Mapping, picked: Mapping, given: Mapping) -> str | None:
    """The view of an entry with its length, as written in entries: chunk5, nstep1."""
    view = base["view"]
    option, extra = picked.get("view", (None, {}))
    config = read_option("view", option) if option else view
    if config["_target_"] == view["_target_"]:
        config = view
    for word, number in NAMES_OF_VIEWS.items():
        if config["_target_"] == read_option("view", word)["_target_"]:
            return f"{word}{given.get(f'view.{number}', extra.get(number, config[number]))}"
    return None


def expand_sweeps(given: Mapping[str, Any], hints: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The points of a sweep: `method.expectile=[0.7,0.8]` trains both values in one stack."""
    # groups in which a number that may be null can be swept
    own = ("method.", *(f"{group}." for group in AROUND))
    number = lambda k: (
        hints.get(k) in (int, float)
        or (hints.get(k) in (int | None, float | None) and k.startswith(own))
    )
    lists = {k: v for k, v in given.items() if number(k) and isinstance(v, list)}
    if empty := [k for k, v in lists.items() if not v]:
        raise UserError(f"{empty[0]}=[] is a sweep over nothing")
    for values in itertools.product(*lists.values()):
        yield {**given, **dict(zip(lists, values, strict=True))}


def replaced_groups(own: "Layers") -> set[str]:
    """The groups (sampler, view, weight) whose class is not the one in the method's yaml."""
    return {g for g in AROUND if own.sources[f"{g}._target_"].layer is Layer.OPTION}


def entry_label(method: Method, target: str, changed: Mapping) -> str:
    """The label of a leaderboard row: `iql+aw(lr=0.001)`."""
    words = [method.name or target.rsplit(".", 1)[-1]]
    # an entry that equals another published method keeps the name it was written with
    base = read_option("method", method.name) if method.name else compose_conf()
    for group in AROUND:
        option, extra = method.picked.get(group, (None, {}))
        number = "".join(str(v) for v in extra.values())
        own = option and read_option(group, option)["_target_"] == base[group]["_target_"]
        usual = option in ("uniform", "nstep", "none") and own
        if (option and not usual) or number:
            words.append(f"{option}{number}")
    named = [
        f"{k.removeprefix('method.')}={short_text(v)}"
        for k, v in changed.items()
        if k.split(".")[0] in (*TUNABLE, "loader", "precision", "preset")
    ]
    return "+".join(words) + (f"({','.join(named)})" if named else "")
