"""Tables in Markdown."""

from offbench.results import markdown


def test_a_label_is_shown_as_it_is_written():
    assert markdown.table(["entry"], [["a<b>c"], ["bc<!--"]]).splitlines()[2:] == [
        "| a&lt;b>c |",
        "| bc&lt;!-- |",
    ]


def test_numbers_are_to_the_right_and_a_pipe_ends_no_cell():
    assert markdown.table(["entry", "a|b"], [["iql", "1.0"], ["x|y", "2.0"]]).splitlines() == [
        r"| entry | a\|b |",
        "| --- | ---: |",
        "| iql | 1.0 |",
        r"| x\|y | 2.0 |",
    ]
    assert markdown.table(["n", "name", "of"], [], left=(1, 2)).endswith("| ---: | --- | --- |")
