"""Benchmarks: from a command line to cells, stacks of runs and their records."""
