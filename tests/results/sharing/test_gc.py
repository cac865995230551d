"""`offbench results gc`: what nobody needs goes, and nothing that somebody may need."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.records import episodes, provenance, spec
from support.stores import contents, fill, flip, grow_old

from offbench.errors import UserError
from offbench.results.sharing.gc import remove, rubbish
from offbench.results.sharing.verify import verify


@pytest.fixture
def store(tmp_path):
    return fill(tmp_path / "results", kept=[0], failed=[1])


def write(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def checkpoint(path, *runs):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": {"runs": [run.run_id for run in runs]}, "objects": {}}).encode()
    save_file({"about": np.frombuffer(text, np.uint8), "0000": np.zeros(2)}, path)
    return path


DEAD, ALIVE = "0123456789ab-17-dead", "ba9876543210-17-beef"


def heartbeat(root, name):
    """The file of a worker on another machine."""
    about = {"host": "there", "pid": 17, "started": "2026-01-01T00:00:00+00:00", "device": "cpu"}
    about |= {"memory": 1, "executor": "local", "stack": None}
    return write(root / "workers" / f"{name}.json", json.dumps(about).encode())


def everything(root):
    return {path for path in root.rglob("*") if path.is_file()}


def litter(store):
    """Files that nobody needs, one of each kind."""
    folder = store.records()[0].parent
    return {
        write(folder / f"{'1' * 16}.01234567.parquet"),
        write(folder / f"{'1' * 16}.safetensors"),
        write(folder / f".{'1' * 16}.0123456789abcdef.tmp.json"),
        write(folder.with_name(f".{'1' * 16}.hold")),
        write(store.root / "board" / ".quick.0123abcd.tmp.csv"),
        checkpoint(store.root / "checkpoints" / "a.safetensors", spec(method="iql"), spec(method="bc")),
        heartbeat(store.root, DEAD),
        write(store.root / "claims" / f"{'3' * 16}.1", DEAD.encode()),
        write(store.root / "claims" / f"{'4' * 16}.2", b"never seen"),
    }  # fmt: skip


def needed(store):
    """Files that somebody may need."""
    return {
        checkpoint(store.root / "checkpoints" / "b.safetensors", spec(method="iql"), spec(seed=9)),
        # it failed, and may be tried again
        checkpoint(store.root / "checkpoints" / "c.safetensors", spec(method="iql", seed=1)),
        checkpoint(store.root / "checkpoints" / "old.safetensors"),
        write(store.root / "checkpoints" / "broken.safetensors"),
        write(store.root / "claims" / f"{'5' * 16}.1", ALIVE.encode()),
        write(store.root / "board" / "quick.csv"),
        write(store.root / "damaged" / "runs" / "x.json"),
        write(store.root / "notes.txt"),
    }


def test_what_nobody_needs_goes_and_all_else_stays(store):
    records = everything(store.root)
    lost, kept = litter(store), needed(store)
    grow_old(*everything(store.root))
    alive = heartbeat(store.root, ALIVE)
    found = rubbish(store.root)
    assert {one.path for one in found} == lost
    assert all(one.bytes == one.path.stat().st_size for one in found)
    # so far nothing but looked at
    assert everything(store.root) == records | lost | kept | {alive}
    assert remove(found) == found
    assert everything(store.root) == records | kept | {alive}
    assert not verify(store.root).orphans and not rubbish(store.root)


def test_nothing_goes_that_changed_within_the_last_hour(store):
    lost = litter(store)
    grow_old(*lost, hours=0.9)
    # by its heartbeat the worker is dead for 54 minutes, which may be a laptop that slept
    assert not rubbish(store.root, damaged=True, policies=True)


def test_a_file_that_changes_after_it_was_listed_stays(store):
    lost = litter(store)
    grow_old(*lost)
    found = rubbish(store.root)
    again = found[0].path
    again.write_bytes(b"written by a bench")
    assert len(remove(found)) == len(found) - 1 and again.exists()


def test_damaged_files_and_policies_go_on_request_alone(store):
    flip(next(store.root.rglob("*.parquet")), 60, 1)
    moved = set(verify(store.root, repair=True).moved.values())
    checkpoint_ = write(store.root / "checkpoints" / "d.damaged")
    grow_old(*everything(store.root))
    policies = {path for path in (store.root / "runs").rglob("*.safetensors")}
    assert policies and moved
    assert not rubbish(store.root)
    assert {x.path for x in rubbish(store.root, damaged=True)} == moved | {checkpoint_}
    assert {x.path for x in rubbish(store.root, policies=True)} == policies


def test_the_files_of_a_damaged_record_stay_for_repair(store):
    mark = next(path for path in store.records() if store.whole(path.stem))
    flip(mark, 20, 1)
    grow_old(*everything(store.root))
    before = contents(store.root)
    assert not remove(rubbish(store.root)) and contents(store.root) == before


def test_an_episode_file_that_another_writer_left_beside_a_whole_record_goes(store):
    run = spec(seed=5)
    mark = store.append(run, episodes(), provenance())
    other = write(mark.with_name(f"{run.run_id}.deadbeef.parquet"))
    grow_old(*everything(store.root))
    assert [one.path for one in remove(rubbish(store.root))] == [other]
    assert not verify(store.root).faults


def test_what_is_no_results_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no results folder"):
        rubbish(tmp_path)
