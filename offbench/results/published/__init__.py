"""Scores that papers have published, beside ours, and verdicts on their tables run again."""
