"""Composed sets: what an id says, and that the arrays are exactly that."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offbench.data import compose, composition
from offbench.data.compose import build
from offbench.data.composition import Composition, parse
from offbench.data.replay import Episode, episode_returns, fingerprint, from_episodes
from offbench.errors import UserError


def made(name: str, n: int, length: int, level: float, dims: int = 3):
    """Episodes of differing lengths; every number says where it came from."""
    rng = np.random.default_rng(sum(map(ord, name)))
    out = []
    for i in range(n):
        steps = length - i % 3
        terminal = np.zeros(steps, bool)
        terminal[-1] = i % 2 == 0
        obs = rng.normal(level, 1, (steps + 1, dims)).astype(np.float32)
        action = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
        reward = np.full(steps, level + i / n, np.float32)
        out.append(Episode(obs, action, reward, terminal))
    return out


EPISODES = {
    "x/good-v0": made("x/good-v0", 20, 50, 10.0),
    "x/bad-v0": made("x/bad-v0", 60, 20, 0.0),
    "x/wide-v0": made("x/wide-v0", 5, 20, 0.0, dims=4),
}
SETS = {name: from_episodes(e) for name, e in EPISODES.items()}
GOOD, BAD = SETS["x/good-v0"], SETS["x/bad-v0"]


def load(name):
    return SETS[name]


def of(dataset_id):
    return build(dataset_id, load)


def rebuilt(composed, *names):
    """The set its index list describes, by the one constructor."""
    chosen = []
    for part, episode, steps in composed.index.tolist():
        e = EPISODES[names[part]][episode]
        cut = steps < len(e.action)
        chosen.append(
            Episode(e.obs[: steps + 1], e.action[:steps], e.reward[:steps], e.terminal[:steps])
            if cut
            else e
        )
    return from_episodes(chosen)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


# --- ids ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written, canonical",
    [
        ("mix@5%@3:a/b-v0:c-v1", "mix@0.05@3:a/b-v0:c-v1"),
        ("mix@.5:a:b", "mix@0.5@0:a:b"),
        ("truncate@10k:a", "truncate@10000:a"),
        ("truncate@1M:a", "truncate@1000000:a"),
        ("subset@top@10%:a", "subset@top@0.1:a"),
        ("subset@return@-5@1e3:a", "subset@return@-5@1000:a"),
        ("subset@rows@2k:mix@1%@1:a:b", "subset@rows@2000@0:mix@0.01@1:a:b"),
        ("mix@1%@1:truncate@5:a:noise@obs@.1@2:b", "mix@0.01@1:truncate@5:a:noise@obs@0.1@2:b"),
    ],
)
def test_an_id_has_one_canonical_form(written, canonical):
    assert str(parse(written)) == canonical
    assert str(parse(canonical)) == canonical and composition.is_composed(written)


def test_a_plain_id_is_itself():
    for name in ("d4rl/hopper-medium-v2", "hf://user/set-v0", "D4RL/door/human-v2"):
        assert parse(name) == name and not composition.is_composed(name)
        with pytest.raises(UserError, match="not a composition"):
            of(name)


@pytest.mark.parametrize(
    "broken, words",
    [
        ("mix@2@0:a:b", "share between 0 and 1"),
        ("mix@0@0:a:b", "share between 0 and 1"),
        ("mix@nan@0:a:b", "share between 0 and 1"),
        ("mix@x@0:a:b", "mix@SHARE@SEED:GOOD:OTHER"),
        ("mix@:a:b", "mix@SHARE@SEED:GOOD:OTHER"),
        ("mix@.5@-1:a:b", "not a seed"),
        ("mix@.5@0@1:a:b", "too many"),
        ("mix@.5@0:a", "missing"),
        ("mix@.5@0:a:", "missing"),
        ("mix@.5@0::b", "missing"),
        ("mix@.5@0:a:b:c", "one part too many"),
        ("mx@.5@0:a:b", "did you mean 'mix'"),
        ("mix@.5@0:a:trunc@5:b", "did you mean 'truncate'"),
        ("truncate@0:a", "positive whole number"),
        ("truncate@1.5:a", "positive whole number"),
        ("truncate@inf:a", "positive whole number"),
        ("subset@worst@5%:a", "none of rows, episodes"),
        ("subset@return@5@1:a", "no interval"),
        ("subset@rows:a", "subset@rows@N@SEED:ID"),
        ("noise@action@.1:a", "neither reward nor obs"),
        ("noise@obs@-1:a", "positive scale"),
        ("noise@obs@inf:a", "positive scale"),
        ("truncate@5:" * 20 + "a", "nested"),
    ],
)
def test_a_broken_id_is_told_in_one_line(broken, words):
    with pytest.raises(UserError, match=words) as error:
        parse(broken)
    assert "\n" not in str(error.value)


def test_an_id_needs_no_quotes_in_a_shell_or_in_hydra():
    import shlex

    from hydra.core.override_parser.overrides_parser import OverridesParser

    for name in (
        "mix@5%@3:a/b-v0:c/d-v2",
        "subset@return@-5@1e3:truncate@10k:noise@obs@0.1@0:a/b.c-v2",
    ):
        assert shlex.quote(name) == name
        parser = OverridesParser.create()
        assert parser.parse_override(f"task={name}").value() == name
        assert parser.parse_override(f"tasks=[{name},x]").value() == [name, "x"]


def test_leaves_and_base_of_a_nested_id():
    what = parse("mix@1%@1:truncate@5:a:mix@.5@0:b:a")
    assert isinstance(what, Composition) and what.leaves == ("a", "b") and what.base == "a"


# --- mix ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.5, 1.0])
def test_a_mixture_has_the_share_by_transitions_in_whole_trajectories(share):
    mixed = of(f"mix@{share}@0:x/good-v0:x/bad-v0")
    n, longest = GOOD.n_transitions, 50
    good = mixed.index[mixed.index[:, 0] == 0, 2].sum()
    assert share * n <= good < share * n + longest
    assert n <= mixed.data.n_transitions < n + (20 if share < 1 else longest)
    assert mixed.card["rows_from"] == [good, mixed.data.n_transitions - good]
    assert same(mixed.data, rebuilt(mixed, "x/good-v0", "x/bad-v0"))


def test_the_good_ones_come_back_and_the_others_only_when_all_were_there():
    mixed = of("mix@0.9@0:x/good-v0:x/bad-v0")
    good = mixed.index[mixed.index[:, 0] == 0, 1]
    assert len(set(good)) < len(good)
    other = of("mix@0.01@0:x/good-v0:x/bad-v0").index
    other = other[other[:, 0] == 1, 1]
    assert sorted(set(other)) == sorted(other)
    many = compose.mix(GOOD, compose.take(BAD, np.arange(2)), 0.01, 0).origin
    assert set(np.bincount(many[many[:, 0] == 1, 1]).tolist()) <= {24, 25, 26}


def test_a_share_that_is_met_exactly_is_not_exceeded():
    ten = from_episodes([e for e in EPISODES["x/bad-v0"] if len(e.action) == 20])
    mixed = compose.mix(ten, BAD, 0.1, 0)  # 20 episodes of 20: 0.1 is 40 steps, two episodes
    assert (mixed.origin[:, 0] == 0).sum() == 2


def test_a_composition_is_a_function_of_its_id():
    a, b, c = (of(f"mix@0.1@{seed}:x/good-v0:x/bad-v0") for seed in (0, 0, 1))
    assert same(a.data, b.data) and a.card == b.card
    assert a.card["sha256"] == fingerprint(a.data) != c.card["sha256"]
    assert of("mix@10%:x/good-v0:x/bad-v0").id == a.id
    # pinned: another numpy or torch must give the same set
    assert a.index[:4].tolist() == [[0, 17, 48], [0, 12, 50], [0, 10, 49], [1, 33, 20]]


def test_parts_that_differ_in_dimensions_are_refused():
    with pytest.raises(UserError, match=r"differ in dimensions \(x/good-v0 3\+2, x/wide-v0 4\+2\)"):
        of("mix@0.5@0:x/good-v0:x/wide-v0")


# --- truncate, subset, noise ------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 20, 21, 100, 1140])
def test_the_first_rows_are_kept_exactly_and_a_cut_bootstraps(rows):
    cut = of(f"truncate@{rows}:x/bad-v0")
    assert cut.data.n_transitions == rows
    assert same(cut.data, rebuilt(cut, "x/bad-v0"))
    assert cut.index[:, 1].tolist() == list(range(len(cut.index)))
    if rows == 21:
        assert not cut.data.terminal[-3:].any() and cut.data.terminal.sum() == 1


def test_more_than_there_is_cannot_be_taken():
    for name in ("truncate@1141:x/bad-v0", "subset@rows@1141@0:x/bad-v0"):
        with pytest.raises(UserError, match="only 1140 transitions"):
            of(name)
    with pytest.raises(UserError, match="only 60 episodes"):
        of("subset@episodes@61@0:x/bad-v0")


def test_subsets_take_what_they_say():
    returns = episode_returns(BAD)
    few = of("subset@episodes@7@3:x/bad-v0")
    assert few.data.n_episodes == 7 and same(few.data, rebuilt(few, "x/bad-v0"))
    assert of("subset@episodes@7@4:x/bad-v0").index.tolist() != few.index.tolist()
    rows = of("subset@rows@105@3:x/bad-v0")
    assert rows.data.n_transitions == 105 and same(rows.data, rebuilt(rows, "x/bad-v0"))
    top, bottom = of("subset@top@10%:x/bad-v0"), of("subset@bottom@10%:x/bad-v0")
    ranked = torch.argsort(returns)
    assert set(top.index[:, 1].tolist()) == set(ranked[-6:].tolist())
    assert set(bottom.index[:, 1].tolist()) == set(ranked[:6].tolist())
    some = of("subset@return@5@10:x/bad-v0")
    kept = episode_returns(some.data)
    assert kept.min() >= 5 and kept.max() <= 10
    assert len(kept) == int(((returns >= 5) & (returns <= 10)).sum())
    with pytest.raises(UserError, match="no return lies there"):
        of("subset@return@1e6@1e7:x/bad-v0")


def test_noise_has_the_scale_it_says_and_touches_nothing_else():
    noisy = of("noise@reward@0.5@0:x/bad-v0").data
    valid = BAD.valid
    spread = (noisy.reward - BAD.reward)[valid].double().std() / BAD.reward[valid].double().std()
    assert float(spread) == pytest.approx(0.5, rel=0.1)  # 1140 draws: 4 sigma is 8 %
    assert torch.equal(noisy.reward[~valid], BAD.reward[~valid])
    assert all(
        torch.equal(getattr(noisy, k), getattr(BAD, k)) for k in BAD._fields if k != "reward"
    )
    blurred = of("noise@obs@0.1@0:x/bad-v0").data
    ratio = (blurred.obs - BAD.obs).double().std(0) / BAD.obs.double().std(0)
    assert ((ratio - 0.1).abs() < 0.01).all()
    assert torch.equal(blurred.reward, BAD.reward)
    assert not same(blurred, of("noise@obs@0.1@1:x/bad-v0").data)


def test_compositions_nest():
    nested = of("mix@0.5@1:subset@top@50%:x/good-v0:truncate@500:x/bad-v0")
    inner = of("subset@top@50%:x/good-v0")
    assert nested.card["parts"][0]["sha256"] == fingerprint(inner.data)
    again = compose.mix(inner.data, of("truncate@500:x/bad-v0").data, 0.5, 1)
    assert same(nested.data, again.data) and nested.card["base"] == "x/good-v0"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 59), min_size=1, max_size=30),
    st.lists(st.integers(1, 25), min_size=30, max_size=30),
)
def test_taking_episodes_equals_building_them_anew(chosen, steps):
    steps = np.asarray(steps[: len(chosen)])
    taken = compose.take(BAD, np.asarray(chosen), steps)
    kept = []
    for i, n in zip(chosen, steps.tolist()):
        e = EPISODES["x/bad-v0"][i]
        kept.append(Episode(e.obs[: n + 1], e.action[:n], e.reward[:n], e.terminal[:n]))
    assert same(taken, from_episodes(kept))


def test_the_parts_are_left_as_they_were():
    before = fingerprint(GOOD), fingerprint(BAD)
    of("noise@reward@1@0:mix@0.5@0:truncate@77:x/good-v0:x/bad-v0")
    assert (fingerprint(GOOD), fingerprint(BAD)) == before


# --- cards ------------------------------------------------------------------------------------


def test_the_card_and_the_list_of_trajectories_are_kept(tmp_path):
    made = of("truncate@100:mix@5%@0:x/good-v0:x/bad-v0")
    path = compose.save_index(made, tmp_path)
    content = json.loads(path.read_text())
    assert content["id"] == made.id == "truncate@100:mix@0.05@0:x/good-v0:x/bad-v0"
    assert np.asarray(content["index"]).tolist() == made.index.tolist()
    assert content["parts"][0]["parts"][1] == {"id": "x/bad-v0", "sha256": fingerprint(BAD)}
    assert content["rows"] == 100 and content["sha256"] == fingerprint(made.data)
    assert path.parent == tmp_path and ":" not in path.name


def test_the_mixed_benchmark_has_32_sets_that_parse():
    assert len(composition.MIXED) == 32 == len(set(composition.MIXED.values()))
    for name, dataset_id in composition.MIXED.items():
        what = parse(dataset_id)
        assert isinstance(what, Composition) and what.op == "mix" and str(what) == dataset_id
        good, other = what.parts
        env, _, _ = name.removeprefix("mixed/").partition("-")
        assert other == f"d4rl/{env}-random-v2" and good in (
            f"d4rl/{env}-medium-v2",
            f"d4rl/{env}-expert-v2",
        )
        assert what.args[0] in (0.01, 0.05, 0.1, 0.5)
