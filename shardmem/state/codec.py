"""Values of state as bytes: MessagePack by the declared type (msgspec), or pickle if asked for."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from shardmem.errors import StateError

PLAIN = (int, float, str, bytes, bool)  # cannot change in place, and are what their type says: no look inside needed


class Codec:
    """version: of the values that are written. upgrade: makes a value of today of (version, value) of an older one; the
    value is what MessagePack says without a type: dict, list, str, bytes, numbers."""

    def __init__(
        self,
        declared: Any,
        *,
        version: int = 1,
        upgrade: Callable[[int, Any], Any] | None = None,
        pickled: bool = False,
    ) -> None:
        self.declared, self.version, self._upgrade, self._pickled = declared, version, upgrade, pickled
        self.encode_plain = _encode
        self.plain: type | None = declared if declared in PLAIN and not pickled else None
        try:
            self._decoder = None if pickled else msgspec.msgpack.Decoder(declared)
        except TypeError as error:
            raise TypeError(
                f"a value of type {declared!r} cannot be saved: {error}. Declare a dataclass, a msgspec.Struct or "
                f"built-in types, or say pickle=True"
            ) from None

    def encode(self, value: Any) -> bytes:
        """Raises TypeError, ValueError or OverflowError for what would not come back as it is declared."""
        if self._pickled:
            return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        encoded = _encode(value)
        if self._decoder is not None and self.plain is None:
            try:
                self._decoder.decode(encoded)
            except msgspec.ValidationError as error:
                raise TypeError(f"it is not of the declared type: {error}") from None
        return encoded

    def plain_value(self, value: Any) -> Any:
        """The value of a plain type: numpy's numbers become Python's, an int a float where one is declared."""
        if isinstance(value, np.generic):
            value = value.item()
        if self.plain is float and type(value) is int:
            value = float(value)
        if type(value) is not self.plain:
            if not isinstance(value, self.plain or object) or isinstance(value, bool):
                declared = getattr(self.declared, "__name__", self.declared)
                raise TypeError(f"it is a {type(value).__name__}, and declared is {declared}")
            value = self.plain(value) if self.plain else value
        _encode(value)  # an int can be too large
        return value

    def decode(self, data: bytes, version: int) -> Any:
        """Raises StateError with the reason."""
        try:
            if version == self.version:
                return pickle.loads(data) if self._decoder is None else self._decoder.decode(data)
            if self._upgrade is None:
                raise ValueError("there is no upgrade")
            old = pickle.loads(data) if self._pickled else msgspec.msgpack.decode(data)
            value = self._upgrade(version, old)
            self.encode(value)
            return value
        except Exception as error:
            if version == self.version:
                what, hint = "cannot be read", "If the declared type has changed, raise `version` and give `upgrade`"
            else:
                what, hint = f"of version {version} cannot be upgraded", None
            raise StateError(f"it {what}: {type(error).__name__}: {error}", hint=hint) from error


_encode = msgspec.msgpack.Encoder().encode
