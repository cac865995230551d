"""Describes how the hyper-parameters of a cell were chosen, for its records."""

from collections.abc import Sequence
from typing import Any

from offbench.bench.hydra import AROUND, read_option
from offbench.bench.layers import Layers, is_reference
from offbench.bench.presets import VARIANTS, Preset
from offbench.bench.settings import Settings, typed_transforms
from offbench.bench.sources import COMMAND_LINE, Layer, Source
from offbench.bench.values import coerce
from offbench.errors import listed
from offbench.results.words import plural


def describe_tuning(
    own: "Layers", published: "Layers", settings: Settings, preset: "Preset | None"
) -> dict[str, Any]:
    """How the hyper-parameters were chosen (see `offbench.results.spec.Provenance`)."""
    extra = dict(settings.tuning or {})
    tried = extra.pop("configurations", 1)
    source = extra.pop("source", None)
    overridden = _differing(own, published)
    users = [k for k in overridden if k != "n_updates" and _source_of(own, k) == COMMAND_LINE]
    if own.sources["method._target_"] == COMMAND_LINE:
        users = ["method._target_", *users]
    if settings.tuning or (users and not preset):
        how = "user"
    elif preset:
        how = "task preset" + _in_words(overridden)
        by = dict.fromkeys(str(_source_of(own, k)) for k in overridden)
        source = "; ".join([preset.source, *by])
    elif any(s.layer is Layer.SUITE for k, s in own.sources.items() if k.startswith("method.")):
        how = "suite"
    else:
        how = "default"
    if settings.preset in VARIANTS and (preset is None or preset.by != settings.preset):
        source = f"no row for preset={settings.preset}; {source or ', '.join(users) or how}"
    return {
        "how": how,
        "tried": tried,
        "source": source or ", ".join(users) or how,
        "preset": preset.source if preset else None,
        "overridden": overridden,
        "published_updates": _if_published(published, "n_updates"),
        "published_episodes": _if_published(published, "eval.episodes"),
    }


def _differing(own: "Layers", published: "Layers") -> list[str]:
    """Settings of method, data and n_updates that differ from the published ones."""
    keys = [k for k in own.values if k.split(".")[0] in ("method", *AROUND, "batch_size", "gamma")]
    last = ["n_updates"] if published.values["n_updates"] is not None else []
    found = [k for k in (*keys, *last) if _differs(own, published, k)]
    return [*found, "transforms"] if changes(own, published, "transforms") else found


def changes(own: "Layers", other: "Layers", key: str) -> bool:
    """Whether a setting differs between layers; transforms are compared together and in order."""
    if key.split(".")[0] != "transforms":
        return _differs(own, other, key)
    ours, theirs = (typed_transforms(layers.nested("transforms")) for layers in (own, other))
    return list(ours.items()) != list(theirs.items())


def _differs(own: "Layers", published: "Layers", key: str) -> bool:
    """Compared unresolved: a reference to n_updates does not differ when n_updates does."""
    return _typed(own, key, own.values[key]) != published_value(own, published, key)


def published_value(own: "Layers", published: "Layers", key: str) -> Any:
    """The published value of a setting, in the type that it has now; equal to nothing where there is none."""
    return _typed(own, key, published.values[key]) if key in published.values else object()


def _typed(own: "Layers", key: str, value: Any) -> Any:
    return (
        value if is_reference(value) or key not in own.hints else coerce(value, own.hints[key], key)
    )


def _source_of(own: "Layers", key: str) -> Source:
    found = [s for k, s in own.sources.items() if k == key or k.startswith(f"{key}.")]
    return COMMAND_LINE if COMMAND_LINE in found or not found else found[-1]


def _in_words(overridden: Sequence[str]) -> str:
    """ ", 3 settings overridden (hidden, lr, n_updates)"; nothing where there are none."""
    if not overridden:
        return ""
    names = [k.removeprefix("method.") for k in overridden]
    # five as they are: "and 1 more" is no shorter than a name
    shown = listed(names, 5 if len(names) == 5 else 4)
    return f", {plural(len(names), 'setting')} overridden ({shown})"


def _if_published(published: "Layers", key: str) -> Any:
    """A published value of the budget, None where it was not published."""
    source = published.sources[key]
    if source.layer is Layer.SUITE:
        known = bool(read_option("suite", source.name).get("protocol"))
    else:
        known = source.layer in (Layer.BUDGET, Layer.PRESET) and not source.carried
    return published.values[key] if known else None
