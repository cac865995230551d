"""Folders: the checkout, and the material beside it that some tests need and skip without."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("OFFBENCH_SHARED") or ROOT.parent / "shared")
