"""Writing what a handler makes of its events into a database, so that replays and old owners change nothing.

upsert         one row per key, and never an older one over a newer one
transaction    the user's own statements, and which events they were for, in one transaction: exactly once
"""

from __future__ import annotations

from shardmem.sinks.exactly_once import Transaction, transaction
from shardmem.sinks.latest_rows import Upsert, upsert

__all__ = ["Transaction", "Upsert", "transaction", "upsert"]
