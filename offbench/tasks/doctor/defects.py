"""Defects that others have found in published sets, each with its public thread."""

import re
from typing import NamedTuple

from offbench.tasks.doctor.report import Finding, Severity


class Defect(NamedTuple):
    """A defect of all sets whose id matches."""

    # regular expression over the whole id
    pattern: str
    severity: Severity
    words: str
    # the public thread
    reference: str


_D4RL, _MINARI = "Farama-Foundation/D4RL", "Farama-Foundation/Minari"

KNOWN_DEFECTS: tuple[Defect, ...] = (
    Defect(
        r"d4rl/antmaze-(umaze-diverse|medium-.*|large-.*)-v[01]",
        "severe",
        "time-outs are out of step with the trajectories: the ant jumps across the maze inside episodes; v2 was made to repair it",
        f"{_D4RL}#77, {_D4RL}#146, {_D4RL}#128",
    ),
    Defect(
        r"d4rl/antmaze-umaze-diverse-v[02]",
        "warning",
        "a single reward per trajectory, where the other antmaze sets have one at every step near the goal",
        f"{_D4RL}#199",
    ),
    Defect(
        r"d4rl/.*-(medium|full)-replay-v[012]",
        "warning",
        "time-outs are not always marked, and some are marked after about 40 steps",
        f"{_D4RL}#162",
    ),
    Defect(
        r"d4rl/.*-mixed-v0",
        "warning",
        "named medium-replay in later versions; time-outs are not always marked",
        f"{_D4RL}#162",
    ),
    Defect(
        r"d4rl/hopper-medium-expert-v0",
        "severe",
        "is expert mixed with the replay set, not with medium (1,200,919 rows)",
        f"{_D4RL}#19",
    ),
    Defect(
        r"d4rl/hopper-(medium|expert)-v1",
        "warning",
        "the medium and expert files were swapped when first published; a copy downloaded before 2021-01 is the other one",
        f"{_D4RL}#76",
    ),
    Defect(
        r"d4rl/hopper-(medium|full)-replay-v1",
        "warning",
        "its returns are higher than those of the policies it is said to come from",
        f"{_D4RL}#86, {_D4RL}#76",
    ),
    Defect(
        r"d4rl/halfcheetah-.*-v0",
        "info",
        "no terminal anywhere, which is right for this environment; episodes end by time-out only",
        f"{_D4RL}#22",
    ),
    Defect(
        r"d4rl/halfcheetah-.*-v[12]",
        "warning",
        "may hold a single terminal although the environment never terminates",
        f"{_D4RL}#107",
    ),
    Defect(
        r"d4rl/maze2d-.*",
        "info",
        "one continuous trajectory; a time-out marks a goal that was reached, not a reset",
        f"{_D4RL}#85",
    ),
    Defect(
        r"d4rl/(pen|door|hammer|relocate)-human-v0",
        "warning",
        "time-outs and terminals are misplaced: trajectories of 200 failed and 100 successful steps alternate",
        f"{_D4RL}#137",
    ),
    Defect(
        r"(minari/)?(D4RL/antmaze/.*-v0|antmaze-.*-v0)",
        "severe",
        "some episodes lack their last observation, and a reached goal does not end the episode; v1 was made to repair it",
        f"{_MINARI}#199",
    ),
    Defect(
        r"(minari/)?D4RL/antmaze/.*-v1",
        "warning",
        "the recorded evaluation environment has another maze map than the one the data came from",
        f"{_MINARI}#304",
    ),
    Defect(
        r"(minari/)?D4RL/pointmaze/.*-v[12]",
        "warning",
        "the goal in the first step of an episode is that of the episode before",
        f"{_MINARI}#265",
    ),
    Defect(
        r"(minari/)?mujoco/.*-v0",
        "info",
        "no reference scores in its metadata, and not the D4RL data of the same name",
        f"{_MINARI}#323",
    ),
)


def known_defects(dataset_id: str) -> list[Finding]:
    """Published defects of a dataset.

    Args:
        dataset_id: as in the registry; Minari's with or without `minari/`.

    Returns:
        A finding for each defect.
    """
    return [
        Finding("known_defect", d.severity, f"{d.words} ({d.reference})", {"source": d.reference})
        for d in KNOWN_DEFECTS
        if re.fullmatch(d.pattern, dataset_id)
    ]
