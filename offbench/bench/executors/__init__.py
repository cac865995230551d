"""Where stacks run: processes of this machine, a Ray cluster, jobs of Slurm. The runs do not know which."""
