"""`offbench check`: the contract that every method keeps."""

import sys
from collections.abc import Sequence


def check_contract(args: Sequence[str]) -> int:
    """Tests each method that `args` name; 1 where any breaks the contract."""
    import torch

    from offbench.bench.plan import plan
    from offbench.bench.targets import is_torch_class, locate
    from offbench.testing.contract import SPEC, check_method, fake_batch
    from offbench.training.imperative import Imperative

    # networks of a few units: on a busy machine more threads took six times as long
    torch.set_num_threads(1)
    broken = False
    for cell in {c.entry: c for c in plan(args, bench=False).cells}.values():
        print(cell.entry)
        if is_torch_class(locate(cell.target)):
            Imperative(locate(cell.target), **cell.hparams).check(SPEC, fake_batch(SPEC))
            print(
                "ok      a PyTorch class, trained as it is written: train_step and act fit together"
            )
            continue
        try:
            check_method(locate(cell.target)(**cell.hparams))
        except AssertionError as error:
            # what failed is printed above, a line each
            words = str(error).splitlines()[0].rstrip(":")
            print(f"offbench: {cell.entry} breaks the contract: {words}", file=sys.stderr)
            broken = True
    return int(broken)
