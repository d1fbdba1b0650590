"""The scaling policy and the strategy that a configuration names."""
from __future__ import annotations

import base64
import importlib
import os
import pickle
from dataclasses import fields
from typing import Any

from shardmem.config import Config
from shardmem.errors import ConfigError
from shardmem.policy import InvalidPolicy, LeastLoad, LeastSlots, ScalingPolicy, Strategy


def policy_of(config: Config) -> ScalingPolicy:
    """Raises ConfigError with every fault."""
    settings = config.policy_settings()
    preset = settings.pop("preset", "default")
    base = getattr(ScalingPolicy, preset, ScalingPolicy.default)(os.cpu_count() or 1)
    known = {each.name for each in fields(ScalingPolicy)}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ConfigError([f"policy.{name} is not a setting; there are {', '.join(sorted(known))}" for name in unknown])
    try:
        return ScalingPolicy(**{**{name: getattr(base, name) for name in known}, **settings})
    except InvalidPolicy as error:
        raise ConfigError([f"policy: {fault}" for fault in error.faults]) from None


def strategy_of(config: Config) -> Strategy:
    """least_load, least_slots, or "module:Class" of the user's own: an object with `allocate` and `rebalance`."""
    named = config.strategy or "least_load"
    if named in ("least_load", "least_slots"):
        return LeastLoad() if named == "least_load" else LeastSlots()
    module, _, name = named.partition(":")
    try:
        found: Any = pickle.loads(base64.b64decode(name)) if module == "pickle" else getattr(importlib.import_module(module), name)
        made = found() if isinstance(found, type) else found
    except Exception as error:
        raise ConfigError(f"strategy={named!r} cannot be loaded: {type(error).__name__}: {error}") from None
    missing = [method for method in ("allocate", "rebalance") if not callable(getattr(made, method, None))]
    if missing:
        raise ConfigError(f"strategy={named!r} has no {' and no '.join(missing)}; a strategy has allocate(slot, view) and "
                          f"rebalance(view), see shardmem.policy.Strategy")
    return made
