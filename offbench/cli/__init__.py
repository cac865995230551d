"""The command line: the only package that prints, but for the benchmark of speed."""
