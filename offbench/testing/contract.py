"""The contract of a method, as code that an outside package can run.

    from offbench.testing import check_method
    check_method(MyMethod(hidden=(16, 16)))

Every check is a function named for the property it holds, runs alone on fakes drawn from a Spec (no
environment, no dataset), and raises AssertionError with one sentence that says what the method did
and how to put it right. A check may return a note, which is information and no judgement.
"""

import dataclasses
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from offbench.testing.checks_acting import (
    check_act,
    check_act_draws_only_from_its_key,
    check_value,
    check_works_for_chunks,
)
from offbench.testing.checks_bootstrap import (
    check_bootstrap_is_added,
    check_bootstrap_only_through_discount,
    check_discount_scales_the_bootstrap,
)
from offbench.testing.checks_gradients import (
    check_a_loss_trains_one_part,
    check_targets_are_constants,
    check_what_a_part_learns_from_is_fixed,
)
from offbench.testing.checks_returned import check_what_is_returned
from offbench.testing.checks_update import (
    check_compiles,
    check_float64_works,
    check_hparams_are_plain,
    check_init_is_a_function_of_the_key,
    check_metrics_are_scalars,
    check_resume,
    check_seed_axis,
    check_state_is_a_fixed_point_of_shape,
    check_update_is_pure,
)
from offbench.testing.fakes import (  # noqa: F401
    BATCH,
    SPEC,
    environment_spec,
    fake_batch,
    fake_data,
    sized,
    small,
    spec_for,
    view_for,
)
from offbench.testing.helpers import Check
from offbench.types import Method, Spec

CHECKS: list[Check] = [
    check_hparams_are_plain,
    check_what_is_returned,
    check_init_is_a_function_of_the_key,
    check_update_is_pure,
    check_state_is_a_fixed_point_of_shape,
    check_seed_axis,
    check_bootstrap_only_through_discount,
    check_discount_scales_the_bootstrap,
    check_bootstrap_is_added,
    check_targets_are_constants,
    check_a_loss_trains_one_part,
    check_what_a_part_learns_from_is_fixed,
    check_metrics_are_scalars,
    check_act,
    check_act_draws_only_from_its_key,
    check_value,
    check_works_for_chunks,
    check_float64_works,
    check_resume,
    check_compiles,
]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Tracing and compiling allocate so many objects that collecting took about a sixth of their time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def check_method(
    method: Method, *, spec: Spec = SPEC, report: Callable[[str], None] | None = print
) -> None:
    """Runs every check of the contract on a method.

    Args:
        method: an instance with its settings; the checks run it with small networks (`small`).
        spec: an environment's; the method meets what its `actions` and `needs` ask for (`spec_for`).
        report: gets a line for each check, in the order of CHECKS; None for silence.

    Raises:
        AssertionError: some checks failed; the message names them, with a sentence each.
    """
    failures = []
    shrunk = small(method) if dataclasses.is_dataclass(method) else method
    spec = spec_for(shrunk, spec)
    for check in CHECKS:
        try:
            with _no_garbage_collection():
                note = check(method if check is check_hparams_are_plain else shrunk, spec)
            line = f"ok      {check.__name__}" + (f": {note}" if note else "")
        except AssertionError as error:
            line = f"FAILED  {check.__name__}: {error}"
            failures.append(f"{check.__name__}: {error}")
        if report is not None:
            report(line)
        if check is check_what_is_returned and line.startswith("FAILED"):
            failures.append("the other checks need what it asks for, and were not run")
            break
    if failures:
        raise AssertionError(
            f"{type(method).__name__} fails {sum(f.startswith('check_') for f in failures)} of"
            f" {len(CHECKS)} checks:\n" + "\n".join(failures)
        )
