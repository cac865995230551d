"""Whatever a suite, a task, an entry or a run is called: its files lie below the folder of the results."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.records import episodes, provenance, spec

from offbench.errors import UserError
from offbench.io import slug
from offbench.results.commit import inside
from offbench.results.store import Store

# what leads elsewhere on some system, among other text
PARTS = ["..", ".", "/", "\\", "~", ":", "C:", "\0", "\n", "%2e", "%2F", "a", "é", " ", "--"]
NAMES = st.one_of(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=12).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
)


@settings(max_examples=150, deadline=None)
@given(NAMES)
@example("../../x")
@example("/etc/passwd")
@example("..")
@example(".")
@example("...//../")
def test_an_id_is_one_name_of_a_file_and_no_way_out(name):
    made = slug(name)
    assert Path(made).name == made and made not in ("", ".", "..") and not made.startswith(".")
    assert not set(made) & set('/\\:\0\n*?<>|"')
    assert (Path("/root") / made).resolve().parent == Path("/root")


@settings(max_examples=100, deadline=None)
@given(NAMES, NAMES, NAMES)
@example("../x", "../../y", "/z")
def test_a_record_lies_below_its_store(suite, task, entry):
    root = Path("/nowhere/results")
    run = spec(suite=suite, task=task)
    try:
        path = Store(root).path(run, entry)
    except UserError as error:
        assert "too long" in str(error)
        return
    assert path.resolve().relative_to(root / "runs").parts[3] == f"{run.run_id}.json"
    assert len(path.relative_to(root / "runs").parts) == 4


def test_a_link_among_the_results_is_not_followed_out_of_them(tmp_path):
    run, elsewhere, store = spec(), tmp_path / "elsewhere", Store(tmp_path / "results")
    elsewhere.mkdir()
    for level in (1, 2, 3):
        root = tmp_path / f"results{level}"
        link = Store(root).path(run, "iql").parents[3 - level]
        link.parent.mkdir(parents=True)
        link.symlink_to(elsewhere)
        with pytest.raises(UserError, match="leads out of") as found:
            Store(root).append(run, episodes(), provenance())
        assert "\n" not in str(found.value) and not list(elsewhere.iterdir())
    # the folder itself may be a link
    (tmp_path / "results").symlink_to(elsewhere)
    assert store.append(run, episodes(), provenance()).exists()
    with pytest.raises(UserError, match="leads out of"):
        inside(tmp_path / "results", tmp_path / "results/../x")
