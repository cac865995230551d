"""The name of a run: the sha256 of the canonical JSON of everything that decides its outcome.

Canonical: keys sorted, no spaces, integral floats as ints, so that equal numbers are spelt equally. The
text of what many runs have in common is written once, in a `Written`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> str:
    """The canonical JSON of plain values. ValueError or TypeError for what JSON cannot hold."""
    if type(value) is float and value == value and abs(value) != float("inf"):
        return repr(int(value)) if value.is_integer() else repr(value)
    if type(value) is int:
        return repr(value)
    if isinstance(value, Written):
        return value.text
    return _ENCODER.encode(_by_value(value))


def _by_value(value: Any) -> Any:
    """Integral floats as ints, so that equal numbers are spelt equally."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {key: _by_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_by_value(item) for item in value]
    return value


class Written(dict[str, Any]):
    """A mapping that is not to be changed, and its canonical JSON, which its variations share.

    >>> base = Written({"lr": 1.0, "tau": 0.005})
    >>> base.changed({"lr": 0.1}).text
    '{"lr":0.1,"tau":0.005}'
    """

    _base: "tuple[Written, Mapping[str, Any]] | None" = None

    @cached_property
    def _items(self) -> dict[str, str]:
        """Key -> `"key":value`, by key."""
        return {key: f"{json.dumps(key)}:{canonical(item)}" for key, item in sorted(self.items())}

    @property
    def text(self) -> str:
        """Its canonical JSON. ValueError or TypeError for what JSON cannot hold."""
        if self._base is None:
            items = self._items
        else:
            base, changes = self._base
            own = {key: f"{json.dumps(key)}:{canonical(item)}" for key, item in changes.items()}
            items = base._items | own
        return "{" + ",".join(items.values()) + "}"

    @cached_property
    def fixed(self) -> str:
        """Its items but the floats, which can differ in a stack of runs; a text to compare."""
        if self._base is not None:
            base, changes = self._base
            if all(type(base[k]) is float and type(v) is float for k, v in changes.items()):
                return base.fixed
        return str({k: v for k, v in self.items() if not isinstance(v, float)})

    @cached_property
    def shown(self) -> str:
        """Its text in Python's words; unlike `text`, in the order of its keys."""
        return str(dict(self))

    @cached_property
    def as_first_recorded(self) -> str:
        """The canonical JSON of a pipeline in run ids."""
        return canonical(first_recorded(self))

    @cached_property
    def as_unmonitored(self) -> str:
        """The canonical JSON of a protocol in run ids."""
        return canonical(unmonitored(self))

    def changed(self, changes: Mapping[str, Any]) -> "Written":
        """The same with other values of keys that it has."""
        if not changes:
            return self
        other = Written(self)
        other.update(changes)
        # a variation of a variation would need both
        if self._base is None and changes.keys() <= self.keys():
            other._base = self, changes
        return other


def texts_around_seed(fields: Mapping[str, Any], protocol: str | None = None) -> tuple[str, str]:
    """The canonical JSON of a run's fields before and after the number of its seed.

    Args:
        fields: all fields of a `RunSpec` but the seed.
        protocol: another text in the place of that of the protocol.
    """
    pipeline, rules = fields["pipeline"], fields["protocol"]
    own = {
        "pipeline": pipeline.as_first_recorded
        if isinstance(pipeline, Written)
        else canonical(first_recorded(pipeline)),
        "protocol": protocol
        or (rules.as_unmonitored if isinstance(rules, Written) else canonical(unmonitored(rules))),
    }
    written = [f'"{k}":{own[k] if k in own else canonical(fields[k])}' for k in sorted(fields)]
    first = sum(k < "seed" for k in fields)
    return ",".join(written[:first]), ",".join(written[first:])


def name_of_run(texts: tuple[str, str], seed: int | None) -> str:
    """First 16 hex digits of the sha256; without a seed, what the runs of all seeds have in common."""
    middle = "" if seed is None else f'"seed":{seed},'
    return _digest(f"{{{texts[0]},{middle}{texts[1]}}}")


def earlier_protocols(protocol: Mapping[str, Any]) -> Iterator[str]:
    """The canonical JSON of the protocols that earlier records were hashed with: with the monitor
    evaluations that were asked for, or those that OGBench's suites had."""
    yield canonical(protocol)
    yield canonical({**protocol, "monitor_at": [0.8, 0.9], "monitor_episodes": 50})


_FIRST_RECORDED: Mapping[str, Mapping[str, str | None]] = MappingProxyType(
    {
        "view": {name.lower(): f"offbench.views.{name}" for name in ("NStep", "Chunk", "Window")},
        "sampler": {
            "uniform": None,
            "aw": "offbench.sampling.advantage_weights",
            "rw": "offbench.sampling.return_weights",
            "top": "offbench.sampling.top_fraction",
        },
        "weight": {"dw": "offbench.weighting.DensityWeights"},
    }
)
"""What the first records had in the place of a name. Run ids are hashes of it, and stay what they were."""


def with_names(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a pipeline by their names: {"name": "nstep"}; of old records, which have targets, too."""
    names = {
        group: {first: name for name, first in known.items()}
        for group, known in _FIRST_RECORDED.items()
    }
    return _respelt(pipeline, "target", "name", names)


def first_recorded(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline as the first records had it: {"target": "offbench.views.NStep"}."""
    return _respelt(pipeline, "name", "target", _FIRST_RECORDED)


def _respelt(
    pipeline: Mapping[str, Any], old: str, new: str, words: Mapping[str, Mapping[Any, Any]]
) -> dict[str, Any]:
    """With what each option has under `old` put under `new`, in its words; a class from elsewhere as it is."""
    made = dict(pipeline)
    for group, known in words.items():
        option = made.get(group)
        if isinstance(option, Mapping) and old in option:
            rest = {k: v for k, v in option.items() if k != old}
            made[group] = {new: known.get(option[old], option[old]), **rest}
    return made


def transforms_in_order(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """The transforms of a recorded pipeline in the order in which they are applied."""
    transforms, rewards = pipeline.get("transforms", {}), pipeline.get("reward_order", ())
    names = [*(name for name in transforms if name not in rewards), *rewards]
    return {name: transforms[name] for name in names}


def unmonitored(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol with what its score depends on: monitor evaluations read the policy and change nothing."""
    none = {"monitor_at": [], "monitor_episodes": 0}
    return {**protocol, **{name: value for name, value in none.items() if name in protocol}}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
