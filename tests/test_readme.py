"""What the README and the page on Python show is what runs."""

import re
import shlex

import pytest
from support.paths import ROOT

README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs/python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.env
def test_the_python_example_runs_and_gives_rows_and_an_interval(capsys):
    (example,) = [b for b in BLOCKS if "load_task" in b]
    names: dict = {}
    exec(compile(example, "python.md", "exec"), names)
    rows = names["rows"]
    assert len(rows) == len(names["seeds"]) * 3 and rows["score"].notna().all()
    assert names["interval"].low < names["interval"].point < names["interval"].high
    assert "Interval(point=" in capsys.readouterr().out


def test_it_can_be_read_in_one_sitting_and_leads_to_every_page():
    assert README.count("\n") <= 150
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"\]\((docs/[a-z-]+\.md)", README)) == pages


def test_links_lead_to_files():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?://)([^)#:]+)[^)]*\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", ["README.md", "docs/settings.md"])
def test_commands_of_the_page_are_read(page):
    """Each `offbench bench|run|plan` line is planned, but for the names of files and modules of a reader."""
    from offbench.bench.plan import plan

    seen = 0
    for line in re.findall(r"^offbench (.*)$", (ROOT / page).read_text(), re.MULTILINE):
        # without options such as `--max-time 8h`
        command, *args = shlex.split(re.sub(r" --[a-z-]+ [^ =]+(?= |$)", "", line), comments=True)
        if command in ("bench", "run", "plan") and "mine." not in line and "mymodule" not in line:
            method = any(a.startswith("method=") for a in args)
            assert plan(args, bench=command == "bench" or not method).cells
            seen += 1
    assert seen > 1
