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


def test_the_method_shown_is_the_one_that_is_tested():
    (shown,) = [b for b in BLOCKS if "class RobustBC" in b]
    written = (ROOT / "tests/plugin/robust_bc/method.py").read_text()
    assert shown.strip() == written.strip()
    for name in ("robust_bc/conf/method/robust_bc.yaml", "pyproject.toml"):
        text = (ROOT / "tests/plugin" / name).read_text()
        shown_files = re.findall(r"```(?:yaml|toml)\n(.*?)```", README, re.DOTALL)
        assert any(block.split("\n", 1)[1].strip() in text for block in shown_files), name
