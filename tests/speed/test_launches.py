"""A step launches no more on a GPU than the table says, counted in inductor's code without a GPU."""

import pytest
from support.paths import ROOT

from offbench.cli import main
from offbench.errors import UserError
from offbench.speed import launches as table
from offbench.speed import lowering
from offbench.speed.contenders import shipped
from offbench.speed.invented import CARDS
from offbench.speed.lowering import Code, Launches, can_lower

TABLE = ROOT / "results" / "launches.csv"
ROWS = table.read(TABLE)
NEEDS_TRITON = pytest.mark.skipif(not can_lower(), reason="triton is not installed")
COUNTED = Launches(
    kernels=16, products=8, other=0, draw=22, minibatches=1, flops=10**9, bytes=10**6
)


def test_what_is_launched_is_counted_in_the_code():
    source = """
triton_poi_0 = async_compile.triton('triton_poi_0', '''triton_never.run(''')
async_compile.wait(globals())
def call(args):
    triton_poi_0.run(arg0_1, 64, stream=stream0)
    extern_kernels.bmm(buf0, buf1, out=buf2)
    extern_kernels.addmm(arg1_1, buf0, buf1, out=buf3)
    triton_poi_0.run(arg0_1, 64, stream=stream0)
    torch.ops.aten.index_put_.default(buf4, [buf5], buf6, True)
    buf7.copy_(buf8, False)
"""
    assert Code(source, 0, 0).calls == {
        "kernels": ["triton_poi_0", "triton_poi_0"],
        "products": ["bmm", "addmm"],
        "other": ["aten.index_put_.default", "copy_"],
    }


def test_a_step_of_two_minibatches_is_shared_by_both():
    counted = COUNTED._replace(kernels=10, products=20, other=2, draw=32, minibatches=2)
    assert counted.per_step == 33 and counted.per_minibatch == 16.5


def test_more_launches_are_said_in_one_line_and_fewer_are_not():
    row = table.row_of(table.Case("bc"), COUNTED)
    assert table.grown(row, COUNTED) is None
    assert table.grown(row, COUNTED._replace(kernels=10)) is None
    said = table.grown(row, COUNTED._replace(kernels=18))
    assert said == (
        "bc x16 on h100 launches more: kernels 16 -> 18, products 8, other 0, draw 22; if it has to:"
        " offbench speed --audit launches=true methods=[bc]"
    )


def test_rewriting_some_rows_keeps_the_others_and_what_was_before(tmp_path, monkeypatch):
    path = tmp_path / "launches.csv"
    monkeypatch.setattr(table, "launches", lambda name, **k: COUNTED)
    table.rewrite(path, table.cases(["bc", "iql"]))
    monkeypatch.setattr(table, "launches", lambda name, **k: COUNTED._replace(kernels=6))
    table.rewrite(path, table.cases(["iql"]))
    rows = {(r["method"], r["seeds"]): r for r in table.read(path)}
    assert set(rows) == {(m, n) for m in ("bc", "iql") for n in ("1", "16")}
    assert rows["bc", "16"]["kernels"] == "16"
    new = rows["iql", "16"]
    assert (new["kernels"], new["before"], new["per_minibatch"]) == ("6", "24.7", "14.7")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is no table of launches"):
        table.read(tmp_path / "other.csv")


def test_the_table_is_of_methods_of_the_package_and_adds_up():
    assert {r["method"] for r in ROWS} == set(shipped())
    for row in ROWS:
        total = sum(int(row[n]) for n in ("kernels", "products", "other")) + int(row["draw"]) / 32
        assert float(row["per_minibatch"]) == pytest.approx(
            total / int(row["minibatches"]), abs=0.06
        )


@pytest.mark.skipif(can_lower(), reason="triton is installed")
def test_without_triton_one_line_says_how_to_get_it(capsys, tmp_path):
    out = tmp_path / "launches.csv"
    assert main(["speed", "--audit", "launches=true", "methods=[bc]", f"out={out}"]) == 2
    assert "pip install triton" in capsys.readouterr().err and not out.exists()


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['method']}-{r['seeds']}-{r['card']}")
def test_no_method_launches_more_than_before(row):
    case = table.Case(row["method"], int(row["seeds"]), card=row["card"])
    assert case.key.items() <= row.items()
    now = table.row_of(case, COUNTED)
    if (now["torch"], now["triton"]) != (row["torch"], row["triton"]):
        pytest.skip(f"counted with torch {row['torch']} and triton {row['triton']}")
    said = table.grown(row, case.measure())
    assert said is None, said


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("card", CARDS)
def test_every_kernel_of_a_program_is_compiled_for_the_card(card):
    from offbench.speed.cubins import compile_kernels

    small = dict(seeds=2, hidden=(32,), batch_size=32, card=card)
    for _, code in lowering.lowered("bc", **small):
        if code is not None:
            compiled = compile_kernels(code, card)
            assert len(compiled) == len(set(code.calls["kernels"]))
            assert all(c.bytes > 0 and not c.error for c in compiled)
            # not what the card before was
            wanted = {"h100": 90, "a100": 80}[card]
            assert {c.arch for c in compiled} == {wanted}
