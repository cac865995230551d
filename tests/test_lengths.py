"""The picture of chunk lengths, from records made here."""

import numpy as np
import pandas as pd
import pytest
from test_records import episodes, provenance, spec

from offbench.errors import UserError
from offbench.lengths import executed, plot
from offbench.records import Store


def test_lengths_are_taken_from_test_episodes_and_split_by_success(tmp_path):
    sent = episodes()
    test = sent["stream"] == "test"
    sent["length"] = np.where(test, 12, 10)
    sent["plans"] = pd.array(np.where(test, 4, 5), "Int64")
    sent["success"] = pd.array([i % 2 == 0 for i in range(len(sent))], "boolean")
    store = Store(tmp_path)
    curves = {"update": [1, 2], "planned_length": [1.5, 2.0], "planned_1": [0.6, 0.3],
              "planned_2": [0.4, 0.7], "prefix_spread": [1.0, 0.5]}  # fmt: skip
    store.append(spec(), sent, provenance(), curves)
    (found,) = executed(store).values()
    assert set(found) == {True, False} and all((x == 3).all() for x in found.values())
    assert sum(map(len, found.values())) == test.sum()
    assert plot(tmp_path).stat().st_size > 5000


def test_records_without_adaptive_chunks_say_so(tmp_path):
    store = Store(tmp_path)
    store.append(spec(), episodes(), provenance())
    assert executed(store) == {}
    with pytest.raises(UserError, match="no record of a method that chooses the length"):
        plot(tmp_path)
