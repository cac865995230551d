"""Kernels that start together: of one kind, none before what it reads, and few starts."""

from hypothesis import given, settings
from hypothesis import strategies as st

from offbench.training.grouping import ordered_groups


def grouped(kinds: dict, reads: dict) -> list[list]:
    nodes = list(kinds)
    return ordered_groups(nodes, {n: set(reads.get(n, ())) for n in nodes}, kinds)


def test_a_chain_that_is_ready_early_waits_for_company():
    # two layers on arguments, and on what a kernel prepares first; None: a product
    kinds = {"ready": None, "a1": 0, "copy": 0, "product": None, "b1": 0, "last": None, "b2": 0}
    reads = {
        "a1": ["ready"],
        "product": ["copy"],
        "b1": ["product"],
        "last": ["b1"],
        "b2": ["last"],
    }
    assert grouped(kinds, reads) == [["a1", "copy"], ["b1"], ["b2"]]


def test_what_nothing_waits_for_goes_with_the_next_of_its_kind():
    # a sum for a metric, ready at once, and a sum after two elementwise kernels
    kinds = {"metric": "sum", "x": "", "y": "", "loss": "sum"}
    reads = {"y": ["x"], "loss": ["y"]}
    assert grouped(kinds, reads) == [["x"], ["y"], ["metric", "loss"]]


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from([None, 0, 1]), st.sets(st.integers(0, 11))), max_size=12))
def test_no_kernel_starts_before_what_it_reads(program):
    kinds = {i: kind for i, (kind, _) in enumerate(program)}
    reads = {i: {x for x in before if x < i} for i, (_, before) in enumerate(program)}
    groups = grouped(kinds, reads)
    started = [n for group in groups for n in group]
    assert sorted(started) == [n for n in kinds if kinds[n] is not None]
    assert all(len({kinds[n] for n in group}) == 1 for group in groups)
    when = {n: i for i, group in enumerate(groups) for n in group}

    def latest(n: int) -> int:
        """The last group that a node depends on, through products too."""
        return max((when[x] if x in when else latest(x) for x in reads[n]), default=-1)

    assert all(latest(n) < when[n] for n in when)
