"""Synthetic data: sub-trajectories that a learned model imagines, as a data source of any method."""
