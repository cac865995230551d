"""An entry as it is written, `iql+aw+nstep3`: the method and what is composed around it."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from offbench.bench.cells import TUNABLE
from offbench.bench.hydra import AROUND, NAMES_OF_VIEWS, compose_conf, read_option, split_entry
from offbench.bench.layers import Layers
from offbench.bench.presets import Preset, preset_table, yaml_presets
from offbench.bench.sources import COMMAND_LINE, DEFAULT, Layer, Source
from offbench.bench.targets import check_method, locate
from offbench.bench.values import short_text
from offbench.errors import UserError


class Method(NamedTuple):
    """A method with what is composed around it, before anything is known of the task."""

    name: str | None  # as it was asked for
    # group -> option and the number in its name
    picked: Mapping[str, tuple[str, dict]]
    values: "Layers"
    # the values without what is composed around it
    plain: Mapping[str, Any]
    presets: "Sequence[Preset]"
    budgets: "Sequence[Preset]"


def read_entry(entry: str | None, choices: Mapping, given: Mapping) -> Method:
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
        made = read_option(group, option) if option else {}
        # `qc+chunk10` changes the length and keeps what else the method says of its own view
        if option and made["_target_"] != values.values[f"{group}._target_"]:
            values.replace(group, made, Source(Layer.OPTION, f"{group}/{option}"))
    if "method._target_" in given:
        values.replace("method", {"_target_": given["method._target_"]}, COMMAND_LINE)
    check_method(locate(values.values["method._target_"]))
    for group in ("method", *AROUND):
        values.fill_defaults(group)
        _, extra = picked.get(group, (None, {}))
        values.update(
            {f"{group}.{k}": v for k, v in extra.items()}, Source(Layer.ENTRY, str(entry))
        )
    return Method(name, picked, values, plain, presets, budgets)


def _span_of(base: Mapping, picked: Mapping, given: Mapping) -> str | None:
    """What the view of an entry spans, as its name has it: chunk5, nstep1."""
    view = base["view"]
    option, extra = picked.get("view", (None, {}))
    made = read_option("view", option) if option else view
    if made["_target_"] == view["_target_"]:
        made = view
    for word, number in NAMES_OF_VIEWS.items():
        if made["_target_"] == read_option("view", word)["_target_"]:
            return f"{word}{given.get(f'view.{number}', extra.get(number, made[number]))}"
    return None


def expand_sweeps(given: Mapping[str, Any], hints: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A list given to a number is a sweep: `method.expectile=[0.7,0.8]` trains both in one stack."""
    # where a number may be left open (null) and still swept
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
    """The groups around a method in which another class stands for the one of its yaml."""
    return {g for g in AROUND if own.sources[f"{g}._target_"].layer is Layer.OPTION}


def entry_label(method: Method, target: str, changed: Mapping) -> str:
    """What the board calls a row: the method, what was composed around it, and what was changed."""
    words = [method.name or target.rsplit(".", 1)[-1]]
    # an entry that is another published method is still called what it was asked for as
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
