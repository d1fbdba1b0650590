"""Which engine is meant when none is named."""

from __future__ import annotations

import re

import pytest

from shardmem.client import client
from shardmem.errors import NotRunning
from shardmem.memory.segment import control_name


@pytest.fixture
def here(monkeypatch):
    monkeypatch.delenv("SHARDMEM_NAME", raising=False)

    def make(names, running):
        monkeypatch.setattr(client, "engine_names", lambda: names)
        monkeypatch.setattr(client.lease, "is_free", lambda name, byte: name not in map(control_name, running))

    return make


def test_the_one_that_runs_is_meant_and_else_the_one_that_has_left_its_memory(here):
    here(["a", "b", "c"], ["b"])
    assert "b" == client.only_engine()
    here(["a"], [])
    assert "a" == client.only_engine()


def test_the_one_that_the_environment_names_is_meant_wherever_others_run(here, monkeypatch):
    here(["a", "b"], ["a", "b"])
    monkeypatch.setenv("SHARDMEM_NAME", "b")
    assert "b" == client.only_engine()


def test_waiting_for_an_engine_that_never_comes_ends_and_says_what_is_missing(here):
    here([], [])
    with pytest.raises(TimeoutError, match="an engine is not ready after 0.01 s: no engine is running here"):
        client.wait_ready(None, 0.01)


@pytest.mark.parametrize(
    "names, running, text",
    [
        ([], [], "no engine is running here$"),
        (["a", "b"], ["a", "b"], "several engines run here: a, b$"),
        (["a", "b"], [], "several engines have left their memory here: a, b$"),
        ([f"e{number}" for number in range(20)], [], "e0, e1, e2, e3, e4, e5, e6, e7 and 12 more$"),
    ],
)
def test_when_it_cannot_be_known_a_few_are_named(here, names, running, text):
    here(names, running)
    with pytest.raises(NotRunning) as error:
        client.only_engine()
    assert re.search(text, str(error.value)) and error.value.hint
