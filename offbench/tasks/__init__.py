"""Tasks: a dataset, its environment, how a return becomes a score; one registry and one loader per source."""

from offbench.tasks.task import Task, load_task, make_env, manifests, own_task

__all__ = ["Task", "load_task", "make_env", "manifests", "own_task"]
