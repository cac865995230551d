"""Published settings: rows of `conf/presets/METHOD.csv`, then `presets` and `budgets` of `conf/method/METHOD.yaml`.

The first row that fits a task and a composition is used.
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from typing import Any, NamedTuple

from offbench.bench.hydra import conf_dir, options, read_option, split_entry
from offbench.bench.values import flatten
from offbench.io import read_csv, read_yaml

VARIANTS = ("paper", "corl")
"""Values of `preset=` that choose a source of settings other than the usual one."""


class Preset(NamedTuple):
    """Published settings of a method for some tasks; the first row that fits is used."""

    # task ids or patterns as in fnmatch, with spaces between them
    task: str
    # dotted setting -> value
    settings: Mapping[str, Any]
    source: str
    # one of VARIANTS: used only where `preset` asks for it
    by: str | None = None
    # compositions it is for, as in entries: "aw", "chunk5"; "": the method alone
    around: tuple[str, ...] = ("",)

    def fits(self, task_id: str) -> bool:
        """Whether a task id matches its patterns."""
        return any(fnmatch(task_id, pattern) for pattern in self.task.split())


Composition = tuple[Any, ...]

# leading entries of a composition: the view and its length
_SPAN = 3


def composition_of(values: Mapping[str, Any]) -> Composition:
    """(view, length, sampler, learned weights) of an entry, which decide whether a preset is for it."""
    view = values["view._target_"], values.get("view.n"), values.get("view.h")
    sampler = values["sampler._target_"], values.get("sampler.fraction"), values.get("sampler.by")
    return *view, *sampler, values["weight._target_"]


def _compositions(preset: Preset, plain: Mapping[str, Any]) -> Iterator[Composition]:
    """The compositions that a row is for, before and after the row's own settings."""
    for words in preset.around:
        values = dict(plain)
        _, picked = split_entry(f"method+{words}" if words else "method", {})
        for group, (option, extra) in picked.items():
            config = flatten({group: read_option(group, option)})
            if config[f"{group}._target_"] != values[f"{group}._target_"]:
                values = {k: v for k, v in values.items() if k.split(".")[0] != group} | config
            values |= {f"{group}.{k}": v for k, v in extra.items()}
        yield composition_of(values)
        yield composition_of({**values, **preset.settings})


def chosen_preset(
    presets: Sequence[Preset],
    task_id: str,
    choice: str,
    composed: Composition | None,
    plain: Mapping[str, Any] = types.MappingProxyType({}),
) -> Preset | None:
    """The first row for a task and a composition (None: any): of the variant chosen, else a usual one.

    A row for the method alone is carried over to samplers and learned weights without a row of their
    own, and its source says so: `iql+aw` and `iql` differ in sampling only. It is not carried over to
    another view (n-step returns, chunks), which is another method.
    """
    matches = [p for p in presets if p.fits(task_id)]
    wanted = tuple(dict.fromkeys((choice, None))) if choice != "none" else ()
    for by in wanted:
        for preset in matches:
            if preset.by == by and (composed is None or composed in _compositions(preset, plain)):
                return preset
    for by in wanted:
        for preset in matches:
            spans = [c[:_SPAN] for c in _compositions(preset, plain)]
            if preset.by == by and composed is not None and composed[:_SPAN] in spans:
                return preset._replace(
                    source=f"carried over from the method alone: {preset.source}"
                )
    return None


def methods_with_variant(by: str) -> Iterator[str]:
    """ "name (task patterns)" of each method with rows of a variant."""
    for name in options("method"):
        if tasks := [p.task for p in _presets(name) if p.by == by]:
            yield f"{name} ({' '.join(tasks)})"


def has_variant(name: str, task_id: str, by: str) -> bool:
    """Whether a method has settings of its own for a task under `preset=by`."""
    return any(p.by == by and p.fits(task_id) for p in _presets(name))


def _presets(name: str) -> tuple[Preset, ...]:
    yaml = yaml_presets(read_option("method", name).get("presets") or ())
    return *preset_table(name), *yaml


@cache
def preset_table(name: str) -> tuple[Preset, ...]:
    """conf/presets/NAME.csv, a row per task: `task`, `source`, and a column per dotted setting.

    An empty cell sets nothing. `transforms` before `transforms.x.y` replaces those of the method. A row
    with one of VARIANTS in the column `by` is used with preset=paper or preset=corl only. A row is for
    the method alone, or for the entries in the column `around` ("alone aw rw": iql, iql+aw, iql+rw).
    `${n_updates}` is the length of the run, whatever it turns out to be.
    """
    path = conf_dir() / "presets" / f"{name}.csv"
    if not path.exists():
        return ()
    rows = read_csv(path)
    about = [[row.pop(k, "") for k in ("task", "source", "by", "around")] for row in rows]
    return tuple(
        Preset(task, _read(row), source, by or None, _around(around))
        for row, (task, source, by, around) in zip(rows, about, strict=True)
    )


def _read(row: Mapping[str, str]) -> dict[str, Any]:
    return {k: read_yaml(v) for k, v in row.items() if v}


def _around(words: str | None) -> tuple[str, ...]:
    return tuple("" if word == "alone" else word for word in (words or "alone").split())


def yaml_presets(blocks: Sequence[Mapping[str, Any]]) -> Iterator[Preset]:
    """The `presets` or `budgets` of a method's yaml: blocks of rows, pattern -> settings, that have
    `source`, `by` and `around` in common, as in `preset_table`."""
    for block in blocks:
        rows = dict(block)
        source, by, around = (rows.pop(k, None) for k in ("source", "by", "around"))
        for pattern, settings in rows.items():
            yield Preset(pattern, flatten(settings), source or "no source", by, _around(around))
