"""What the README shows is what runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.env
def test_the_python_example_runs_and_gives_rows_and_an_interval(capsys):
    (example,) = [b for b in BLOCKS if "load_task" in b]
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    rows = names["rows"]
    assert len(rows) == len(names["seeds"]) * 3 and rows["score"].notna().all()
    assert names["interval"].low < names["interval"].point < names["interval"].high
    assert "Interval(point=" in capsys.readouterr().out
