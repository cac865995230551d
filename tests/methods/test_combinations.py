"""Every shipped method trains under every sampler, learned weight and view: two updates each."""

from functools import partial

import pytest
import torch
from torch.utils._pytree import tree_leaves

from offbench.bench.hydra import options, read_option
from offbench.bench.targets import locate
from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk, NStep
from offbench.testing.contract import (
    SPEC,
    environment_spec,
    fake_data,
    spec_for,
    view_for,
)
from offbench.training.loop import diverged, train
from offbench.training.step import n_minibatches

VIEWS = {"nstep1": NStep(1, 0.99), "nstep3": NStep(3, 0.99), "chunk": Chunk(3, 0.99)}


def skipped(method, view: str) -> str | None:
    """Why a method is not tried under a view."""
    if type(view_for(getattr(method, "needs", ()))) is not NStep:
        return "learns through a view of its own, which is tried in place of nstep1"
    if getattr(method, "actions", "continuous") == "discrete" and view == "chunk":
        return "discrete actions are not chunked"
    return None


def draws() -> dict:
    """Name -> (row weights, wrapper of the method), from conf/sampler and conf/weight."""
    made = {}
    for name in options("sampler"):
        settings = dict(read_option("sampler", name))
        target = settings.pop("_target_")
        made[name] = ([partial(locate(target), **settings)] if target else [], lambda m: m)
    for name in options("weight"):
        settings = read_option("weight", name) | {"hidden": (8, 8)}
        target = settings.pop("_target_")
        if target:
            wrap = lambda m, t=target, s=settings: locate(t)(method=m, **s)
            made[name] = ([], wrap)
            made[f"aw+{name}"] = (made["aw"][0], wrap)
    return made


DRAWS = draws()


def test_the_draws_that_are_tried():
    assert {"uniform", "rw", "aw", "top10", "half", "dw", "aw+dw"} <= DRAWS.keys()


@pytest.mark.parametrize("view", VIEWS)
def test_every_method_trains_under_every_draw(shipped_method, view):
    reason = skipped(shipped_method, view)
    if reason and view != "nstep1":
        pytest.skip(reason)
    needs = getattr(shipped_method, "needs", ())
    shape = view_for(needs) if reason else VIEWS[view]
    spec = environment_spec(spec_for(shipped_method, SPEC))
    for name, (weights, wrap) in DRAWS.items():
        method = wrap(shipped_method)
        pipeline = make_pipeline(
            fake_data(spec),
            view=shape,
            weights=weights,
            transforms=["obs_norm"],
            batch_size=8,
            needs=needs,
        )
        n = 2 * n_minibatches(method)
        (point,) = train(method, pipeline, spec, seeds=[0], n_updates=n, backend="vmap")
        assert not diverged(point.state).any(), name
        assert all(x.isfinite().all() for x in tree_leaves(point.metrics)), name
        before = method.init(torch.tensor(1), pipeline.spec(spec))
        assert [x.shape for x in tree_leaves(before)] == [
            x.shape[1:] for x in tree_leaves(point.state)
        ]
