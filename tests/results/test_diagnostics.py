"""The numbers of chunk lengths and values against loops over rows, and the pictures of them."""

import numpy as np
import pandas as pd
import pytest
from support.records import episodes, provenance, spec

from offbench.bench.logged import evaluation_means
from offbench.cli import main
from offbench.errors import UserError
from offbench.results.diagnostics import COLUMNS, mean_lengths, measure, start_values, write
from offbench.results.store import Store

GAMMA = 0.9
CURVES = {
    "update": [50, 100],
    "planned_length": [1.4, 1.8],
    "planned_1": [0.6, 0.2],
    "planned_2": [0.4, 0.8],
    "prefix_spread": [1.0, 0.5],
}


def chunked(seed: int, n: int = 12) -> pd.DataFrame:
    """Monitor episodes after half of the updates and test episodes, of chunks of 1 or 2 steps."""
    generator = np.random.default_rng(seed)
    frames = []
    for stream, update in (("monitor", 50), ("test", 100)):
        counts = generator.integers(1, 9, (n, 2))
        counts[: n // 3, 1] = 0  # of some, single steps only
        frames.append(
            episodes(n, update=update, stream=stream).assign(
                length=counts @ [1, 2],
                plans=counts.sum(1),
                chunk_lengths=counts.tolist(),
                success=generator.random(n) < 0.5,
                terminated=generator.random(n) < 0.5,
                start_value=generator.normal(size=n),
                discounted_return=generator.normal(size=n),
            )
        )
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def store(tmp_path) -> Store:
    """An entry with adaptive chunks, one with chunks of two steps, and one without."""
    store = Store(tmp_path)
    protocol = {"episodes": 12, "monitor_at": [0.5]}
    pipeline = {"gamma": GAMMA}
    for seed in (0, 1):
        common = {"protocol": protocol, "pipeline": pipeline, "seed": seed}
        curves = {
            k: [x * (1 + seed) for x in v] if k == "prefix_spread" else v for k, v in CURVES.items()
        }
        sent = chunked(seed)
        store.append(
            spec(**common, hparams={"chooses": True}), sent, provenance(entry="chooses"), curves
        )
        fixed = sent.assign(
            length=2 * sent["plans"],
            chunk_lengths=[[0, n] for n in sent["plans"]],
            terminated=True,
        )
        store.append(spec(**common, hparams={"chooses": False}), fixed, provenance(entry="fixed"))
        single = sent.assign(plans=sent["length"], chunk_lengths=None, start_value=None)
        store.append(
            spec(**common, method="bc"),
            single,
            provenance(entry="bc"),
            {"update": [50], "loss": [1]},
        )
    return store


def everything(store: Store) -> tuple:
    return store.episodes(), store.runs(), store.curves()


def test_executed_lengths_are_the_shares_of_all_chunks_at_an_evaluation(store):
    numbers = measure(*everything(store)).query("what == 'executed' and entry == 'chooses'")
    sent = pd.concat([chunked(0), chunked(1)])
    for update in (50, 100):
        total = [0, 0]
        for counts in sent[sent["update"] == update]["chunk_lengths"]:
            total = [a + b for a, b in zip(total, counts, strict=True)]
        mine = numbers[numbers["update"] == update]
        assert mine["length"].tolist() == [1, 2] and mine["n"].tolist() == total
        assert mine["value"].tolist() == pytest.approx([x / sum(total) for x in total])


def test_what_was_planned_and_the_spread_are_means_over_seeds(store):
    numbers = measure(*everything(store))
    planned = numbers[numbers["what"] == "planned"].sort_values(["update", "length"])
    assert planned["value"].tolist() == [0.6, 0.4, 0.2, 0.8] and set(planned["n"]) == {2}
    spread = numbers[numbers["what"] == "prefix spread"]
    assert spread[["value", "low", "high"]].to_numpy().tolist() == [
        [1.5, 1.0, 2.0],
        [0.75, 0.5, 1.0],
    ]
    assert set(spread["entry"]) == {"chooses"}


def test_success_by_length_counts_test_episodes_of_chunked_policies(store):
    numbers = measure(*everything(store))
    found = numbers[(numbers["what"] == "success") & (numbers["entry"] == "chooses")]
    bins: dict[float, list] = {}
    for row in pd.concat([chunked(0), chunked(1)]).query("stream == 'test'").to_dict("records"):
        mean = row["length"] / row["plans"]
        bins.setdefault(round(2 * mean) / 2, []).append((mean, row["success"]))
    assert len(bins) > 1 and len(found) == len(bins)
    for line, (_, mine) in zip(found.itertuples(), sorted(bins.items()), strict=True):
        lengths, won = zip(*mine, strict=True)
        assert (line.length, line.value) == pytest.approx((np.mean(lengths), np.mean(won)))
        assert line.n == len(mine) and line.low <= line.value <= line.high
    assert numbers[(numbers["what"] == "success") & (numbers["entry"] == "fixed")][
        "length"
    ].tolist() == [2.0]
    assert set(mean_lengths(store.episodes())["entry"]) == {
        "chooses",
        "fixed",
    }  # bc executes no chunks


def test_a_mean_difference_is_given_only_where_every_return_is_whole(store):
    data = store.episodes(), store.runs()
    known = start_values(*data)
    assert set(known["entry"]) == {"chooses", "fixed"} and set(known["stream"]) == {"test"}
    for row in known.to_dict("records"):
        assert row["whole"] == (row["terminated"] or GAMMA ** row["length"] < 0.01)
    assert not known[known["entry"] == "chooses"]["whole"].all()
    numbers = measure(*data, {})
    assert set(numbers[numbers["entry"] == "chooses"]["what"]) == {
        "executed",
        "success",
        "start value",
        "whole returns",
    }
    found = numbers[(numbers["entry"] == "fixed") & (numbers["what"] == "value minus return")].iloc[
        0
    ]
    test = [chunked(s).query("stream == 'test'") for s in (0, 1)]
    of_seed = [(x["start_value"] - x["discounted_return"]).mean() for x in test]
    half = 12.706204736432095 * np.std(of_seed, ddof=1) / np.sqrt(2)
    mean = np.mean(of_seed)
    assert [found[k] for k in ("value", "low", "high", "n")] == pytest.approx(
        [mean, mean - half, mean + half, 24]
    )


def test_a_run_of_unknown_discount_is_whole_where_it_ended(store):
    known = start_values(store.episodes(), store.runs().drop(columns="pipeline.gamma"))
    assert (known["whole"] == known["terminated"]).all()


def test_numbers_and_pictures_are_written(store, tmp_path):
    folder = tmp_path / "board" / "toy-diagnostics"
    paths = write(*everything(store), folder)
    assert [p.name for p in paths] == [
        "numbers.csv",
        "toy--point-v0-chunks.png",
        "toy--point-v0-values.png",
    ]
    assert all(p.stat().st_size > 10_000 for p in paths[1:])
    assert tuple(pd.read_csv(paths[0])) == COLUMNS


def test_records_from_before_lengths_and_values_were_kept_show_what_they_have(store, tmp_path):
    data, runs, curves = everything(store)
    for name in ("chunk_lengths", "start_value", "discounted_return"):
        data[name] = None
    names = [p.name for p in write(data, runs, curves, tmp_path / "old")]
    assert names == ["numbers.csv", "toy--point-v0-chunks.png"]


def test_nothing_to_show_is_said_in_one_line(store, tmp_path, capsys):
    data, runs, curves = everything(store)
    with pytest.raises(UserError, match="no run here executes chunks"):
        write(data[data["entry"] == "bc"], runs, curves, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    for root in (tmp_path / "absent", tmp_path):  # of another suite only
        assert main(["diagnose", f"results={root}"]) == 2
        error = capsys.readouterr().err
        assert (
            error.count("\n") == 1 and "nothing recorded for quick" in error and str(root) in error
        )


def test_two_configurations_of_an_entry_are_not_drawn_as_one(store, tmp_path):
    data, runs, curves = everything(store)
    other = runs.index[runs["seed"] == 0][0]
    runs.loc[other, "config_id"] = "another"
    with pytest.raises(UserError, match="different configurations"):
        write(data, runs, curves, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_loggers_show_executed_lengths_and_what_was_expected():
    frame = chunked(0).query("stream == 'test'")
    shown = evaluation_means(frame)
    assert shown["test/start_value"] == pytest.approx(frame["start_value"].mean())
    assert shown["test/executed_length"] == frame["length"].sum() / frame["plans"].sum()
    without = evaluation_means(frame.assign(start_value=None))
    assert set(without) == set(shown) - {"test/start_value"}
