"""The leaderboard: ranking, tables, files, the rows behind it, and what changed since another."""
