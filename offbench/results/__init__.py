"""Results: records of runs, statistics and leaderboards. Nothing here imports torch or the rest of offbench."""
