"""`offbench speed`, and with `--audit` whether methods can train on a GPU, on a machine without one."""

from collections.abc import Sequence
from typing import Any

from offbench.cli.parts import FAILED
from offbench.errors import UserError, calling, unknown

_SETTINGS = ("methods", "launches", "cards", "out")


def speed(args: Sequence[str], *, audit: bool = False) -> int:
    """Measures speed, or audits; 3 where a method would fail on a GPU, or wait for it."""
    if audit:
        return _audit(**_read(args))
    from offbench.speed.benchmark import main

    return main(args)


def _read(args: Sequence[str]) -> dict[str, Any]:
    """The settings of `offbench speed --audit`."""
    import yaml

    options: dict[str, Any] = {}
    for arg in args:
        key, found, value = arg.partition("=")
        if not found or key not in _SETTINGS:
            raise unknown("setting of speed --audit", key, _SETTINGS)
        options[key] = yaml.safe_load(value)
    for key in ("methods", "cards"):
        if key in options and not isinstance(options[key], list):
            options[key] = [options[key]]
    if not isinstance(options.get("launches", False), bool):
        raise UserError(f"launches={options['launches']}: true or false")
    return options


def _audit(
    methods: Sequence[str] = (),
    *,
    launches: bool = False,
    cards: Sequence[str] = ("h100",),
    out: str = "results/launches.csv",
) -> int:
    from pathlib import Path

    import torch

    from offbench.cli.console import make_console, print_table
    from offbench.speed import audit as audits
    from offbench.speed import launches as table
    from offbench.speed.invented import CARDS

    for card in cards:
        if card not in CARDS:
            raise unknown("card", card, CARDS)
    console = make_console()
    torch.set_num_threads(1)
    if launches:
        say = lambda line: console.print(line, markup=False)
        rows = table.rewrite(Path(out), table.cases(methods, cards), say)
        shown = [n for n in table.COLUMNS if n not in ("hidden", "batch_size", "torch", "triton")]
        header = [n.replace("_", " ") for n in shown]
        print_table(console, [[row[n] for n in shown] for row in rows], header=header)
        console.print(f"written: {out}", markup=False)
        return 0
    found = []
    with console.status("auditing") as status:
        for name, method in _methods(methods):
            for view in audits.views(method):
                for sampler in audits.SAMPLERS:
                    status.update(f"auditing {name}, {view}, {sampler}")
                    found.append(audits.audit(name, method, view=view, sampler=sampler))
    lines = [
        [*row[:3], str(row.draw or "-"), str(row.update or "-"), "\n".join(row.faults) or "ok"]
        for row in found
    ]
    header = ["method", "view", "sampler", "draw", "update", "on a GPU"]
    print_table(console, lines, header=header, whole=range(5))
    bad = sum(bool(row.faults) for row in found)
    console.print(f"\n{bad or 'none'} of {len(found)} would fail on a GPU or wait for it")
    return FAILED if bad else 0


def _methods(names: Sequence[str]) -> list[tuple[str, Any]]:
    """Shipped methods by name, others by the dotted path of their class; all with small networks."""
    from offbench.bench.targets import is_torch_class, locate
    from offbench.speed.contenders import check_shipped, shipped
    from offbench.testing.fakes import small

    check_shipped(name for name in names if "." not in name)
    found = []
    for name in names or shipped():
        cls = locate(name) if "." in name else shipped()[name]
        if is_torch_class(cls):
            raise UserError(f"{name} trains itself, one seed at a time: there is nothing to record")
        with calling(f"{name}()"):
            found.append((name, small(cls())))
    return found
