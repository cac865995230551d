"""Tasks: a dataset, its environment, how a return becomes a score; a registry of ids and a reader per layout."""
