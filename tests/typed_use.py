"""What a type checker knows of offbench: never run, checked by `make lint`.

An `ignore` below stands where a checker must complain; one that it does not need is an error.
"""

from typing import Any, assert_type

import offbench
from offbench import (
    Store,
    Task,
    UserError,
    compare,
    evaluate,
    leaderboard,
    load_task,
    make_pipeline,
    make_policy,
    train,
)
from offbench.data.pipeline import Pipeline
from offbench.methods.a2pr import A2PR
from offbench.methods.acsac import ACSAC
from offbench.methods.arl import ARL
from offbench.methods.awac import AWAC
from offbench.methods.bc import BC
from offbench.methods.cgq import CGQ
from offbench.methods.cql import CQL
from offbench.methods.crl import CRL
from offbench.methods.discrete_cql import DiscreteCQL
from offbench.methods.doc import DoC
from offbench.methods.dqc import DQC
from offbench.methods.dt import DT
from offbench.methods.fql import FQL
from offbench.methods.gcbc import GCBC
from offbench.methods.gciql import GCIQL
from offbench.methods.gcivl import GCIVL
from offbench.methods.hiql import HIQL
from offbench.methods.ifql import IFQL
from offbench.methods.iql import IQL
from offbench.methods.odice import ODICE
from offbench.methods.ota import OTA
from offbench.methods.qc import QC
from offbench.methods.qgf import QGF
from offbench.methods.qrl import QRL
from offbench.methods.rebrac import ReBRAC
from offbench.methods.sac_n import SACN
from offbench.methods.td3_bc import TD3BC
from offbench.methods.xql import XQL
from offbench.tasks.loading import load_data
from offbench.training.loop import Point
from offbench.types import Method, Policy

METHODS: tuple[Method[Any], ...] = (
    *(A2PR(), ARL(), DoC(), HIQL(), ODICE(), OTA()),
    *(ACSAC(), AWAC(), BC(), CGQ(), CQL(), DiscreteCQL(), DQC(), DT(), FQL(), IFQL(), IQL()),
    *(QC(), QGF(), ReBRAC(), SACN(), TD3BC(), XQL(), GCBC(), GCIQL(), GCIVL(), QRL(), CRL()),
)


def from_a_data_set_to_a_score() -> None:
    task = assert_type(load_task("offbench/hopper/medium-replay-v0"), Task)
    data, spec = load_data(task)
    pipeline = assert_type(make_pipeline(data, transforms=["obs_norm"]), Pipeline)
    policy = assert_type(make_policy(BC(), pipeline), Policy)
    for point in train(BC(), pipeline, spec, seeds=[0], n_updates=100):
        assert_type(point, Point)
        evaluate(policy, point.state, task, seeds=[0], episodes=1)
    store = assert_type(Store("results"), Store)
    leaderboard(store.episodes(), store.runs(), [task.id])
    assert_type(compare(store.episodes(), "iql", ["bc"]).verdict, str | dict[str, str])
    raise UserError("one line")


def mistakes() -> None:
    load_task(3)  # type: ignore[arg-type]
    BC(expectile=0.7)  # type: ignore[call-arg]
    offbench.lod_task  # type: ignore[attr-defined]  # noqa: B018
