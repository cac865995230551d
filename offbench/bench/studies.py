"""Studies: experiments of this project that one command repeats, each a few benches (`conf/studies/*.yaml`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offbench.bench.hydra import conf_dir
from offbench.io import read_yaml


@dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment: its parts by name, each the settings of a bench, with a board of its own."""

    name: str
    summary: str
    parts: Mapping[str, Sequence[str]]


def studies() -> Mapping[str, Study]:
    """Every study, by name."""
    found = {}
    for path in sorted((conf_dir() / "studies").glob("*.yaml")):
        study = read_yaml(path.read_text(encoding="utf-8"))
        found[path.stem] = Study(name=path.stem, summary=study["summary"], parts=study["parts"])
    return found
