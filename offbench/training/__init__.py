"""Training: every seed of a cell at once, from traced programs."""
