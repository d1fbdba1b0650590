"""The scaling policy and the strategy that a configuration names."""

from __future__ import annotations

import base64
import difflib
import importlib
import os
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from shardmem.config import PRESETS, Config
from shardmem.errors import ConfigError
from shardmem.policy import InvalidPolicy, LeastLoad, LeastSlots, ScalingPolicy, Strategy
from shardmem.runtime.handler import HandlerRef
from shardmem.settings import declared

OF_THE_ENGINE = ("min_shards", "max_shards", "auto_scale")  # settings that the policy takes from there


def preset_of(config: Config) -> ScalingPolicy:
    """What the settings that [policy] does not name are taken from. Raises ConfigError."""
    name = config.policy_settings().get("preset", "default")
    if name not in PRESETS:
        raise ConfigError(f"policy.preset={name!r} is not one of {', '.join(PRESETS)}")
    preset: Callable[[int], ScalingPolicy] = getattr(ScalingPolicy, name)
    return preset(os.cpu_count() or 1)


def policy_of(config: Config) -> ScalingPolicy:
    """Raises ConfigError with every fault."""
    base, known, faults = preset_of(config), declared(ScalingPolicy), []
    settings = {**{name: getattr(base, name) for name in known}, **config.policy_settings()}
    settings.pop("preset", None)
    for name in list(settings):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            faults.append(
                f"policy.{name} is not a setting; "
                + (f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}")
            )
            del settings[name]
        elif isinstance(settings[name], str):  # a duration as text
            settings[name] = known[name].read(settings[name], lambda fault: faults.append(f"policy.{fault}"))
        elif name in OF_THE_ENGINE and isinstance(config.policy, Mapping) and name in config.policy:
            faults.append(f"policy.{name} is a setting of the engine: write {name} outside of policy")
    try:
        policy = ScalingPolicy(**settings)
    except InvalidPolicy as error:
        faults += [f"policy.{fault}" for fault in error.faults]
    if faults:
        raise ConfigError(faults)
    return policy


def faults_of(config: Config) -> list[str]:
    """Of handler, policy and strategy: what `shardmem.config` cannot know."""
    faults = []
    checks: list[Callable[[Config], Any]] = [lambda config: HandlerRef.of(config.handler)] if config.handler else []
    checks += (
        [policy_of] if config.policy is None or isinstance(config.policy, Mapping) or config.policy in PRESETS else []
    )
    checks += [strategy_of] if isinstance(config.strategy, str) and ":" in config.strategy else []
    if config.source is not None:
        from shardmem.sources.configured import sources_in

        checks.append(lambda config: sources_in(config.source, config.schema))
    if config.outbox is not None:
        from shardmem.sources.outbox.configured import library_of

        checks.append(lambda config: library_of(config.outbox_table or {}))
    for check in checks:
        try:
            check(config)
        except ConfigError as error:
            faults += error.faults
    return faults


def strategy_of(config: Config) -> Strategy:
    """least_load, least_slots, or "module:Class" of the user's own: an object with `allocate` and `rebalance`."""
    named = config.strategy or "least_load"
    if named in ("least_load", "least_slots"):
        return LeastLoad() if named == "least_load" else LeastSlots()
    module, _, name = named.partition(":")
    try:
        named_object: Any = (
            pickle.loads(base64.b64decode(name))
            if module == "pickle"
            else getattr(importlib.import_module(module), name)
        )
        made = named_object() if isinstance(named_object, type) else named_object
    except Exception as error:
        raise ConfigError(f"strategy={named!r} cannot be loaded: {type(error).__name__}: {error}") from None
    missing = [method for method in ("allocate", "rebalance") if not callable(getattr(made, method, None))]
    if missing:
        raise ConfigError(
            f"strategy={named!r} has no {' and no '.join(missing)}; a strategy has allocate(slot, view) and "
            f"rebalance(view), see shardmem.policy.Strategy"
        )
    strategy: Strategy = made
    return strategy
