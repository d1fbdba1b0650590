"""Every setting of an engine as a row: its value, its default, and where it was set. Secrets are not among them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from shardmem.config import Config
from shardmem.policy import ScalingPolicy
from shardmem.settings import Setting, declared
from shardmem.settings_sources import Origin
from shardmem.sources.kinds import without_secrets
from shardmem.supervisor.configured import OF_THE_ENGINE, policy_of, preset_of


def policy_settings() -> Iterator[Setting]:
    """Those of [policy]; the others of ScalingPolicy are the engine's."""
    return (each for name, each in declared(ScalingPolicy).items() if name not in OF_THE_ENGINE)


def rows(config: Config, origins: Mapping[str, Origin], made_up: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every setting, and where it was set. made_up: names of those whose value stands in for one that nobody gave."""
    found = []
    for name, each in declared(Config).items():
        value = each.default if name in made_up else getattr(config, name)
        value = without_secrets(value) if each.unit == "object" else value
        origin = None if name in made_up else origins.get(name)
        is_table = name == "policy" and isinstance(value, dict)
        table = f"as below, on preset {value.get('preset', 'default')}" if is_table else None
        found.append(_row(each, name, value, origin, table))
    preset, policy = preset_of(config), policy_of(config)
    for each in policy_settings():
        row = _row(each, f"policy.{each.name}", getattr(policy, each.name), origins.get(f"policy.{each.name}"))
        row["default"], row["default_text"] = getattr(preset, each.name), each.text(getattr(preset, each.name))
        found.append(row)
    return found


def _row(each: Setting, name: str, value: Any, origin: Any, text: str | None = None) -> dict[str, Any]:
    def plain(thing: Any) -> Any:
        return thing if thing is None or isinstance(thing, (bool, int, float, str, dict)) else str(thing)

    shown = each.text(value) if each.secret else plain(None if each.required and value is each.default else value)
    return {
        "name": name,
        "value": shown,
        "text": text or each.text(value),
        "unit": each.unit,
        "required": each.required,
        "default": None if each.required else plain(each.default),
        "default_text": each.text(each.default),
        "from": origin.kind if origin else "default",
        "place": origin.text if origin else "default",
        "line": origin.line if origin else None,
        "help": each.help,
        "limits": each.limits,
    }
