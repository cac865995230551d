"""Tasks: a dataset, its environment, how a return becomes a score; one registry and one loader per source."""
