"""What type checkers are told of settings and options is what is declared."""

from __future__ import annotations

import inspect
from typing import Any, get_args, get_type_hints

import numpy.typing

import shardmem
from shardmem import config, policy
from shardmem.client import engine_settings
from shardmem.client.engine_settings import EngineSettings
from shardmem.policy import placement
from shardmem.runtime.call import MODES
from shardmem.runtime.producer import Producer, ProducerOptions
from shardmem.settings import declared

UNITS = {
    "number": int,
    "microseconds": int,
    "text": str,
    "switch": bool,
    "bytes": (int, str),
    "seconds": (float, str),
    "names": str,
}


def kinds(hint: Any) -> set[Any]:
    return set(get_args(hint)) or {hint}


def test_the_settings_of_an_engine_are_those_of_its_configuration_with_their_types():
    names = {"DTypeLike": numpy.typing.DTypeLike, "ScalingPolicy": policy.ScalingPolicy, "Strategy": placement.Strategy}
    hints = get_type_hints(EngineSettings, localns=vars(engine_settings) | names)
    settings = {name: each for name, each in declared(config.Config).items() if name not in ("name", "handler")}

    assert list(settings) == list(EngineSettings.__annotations__)
    for name, each in settings.items():
        found = kinds(hints[name])
        assert (each.default is None) == (type(None) in found), name
        found = {kind for part in found - {type(None)} for kind in kinds(part)}
        if each.choices:
            assert found == set(each.choices), name
        elif name == "retry_on":
            assert found == {str, str | type[BaseException]}
        elif each.unit != "object":
            wanted = UNITS[each.unit]
            assert found == (set(wanted) if isinstance(wanted, tuple) else {wanted}), name


def test_the_options_of_a_producer_are_its_parameters():
    parameters = inspect.signature(Producer).parameters.values()
    named = {each.name: each.annotation for each in parameters if each.kind is each.KEYWORD_ONLY}

    assert named == {name: hint.__forward_arg__ for name, hint in ProducerOptions.__annotations__.items()}
    assert MODES == config.BACKPRESSURE


def test_the_literal_list_of_public_names_is_where_they_are_imported_from():
    assert shardmem.__all__ == sorted([*shardmem._HOME, "__version__"])
