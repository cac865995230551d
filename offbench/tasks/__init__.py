"""Tasks: datasets, evaluation environments and scores; the registry of ids, a reader per file format."""
