"""`python -m support.programs MODULE:FUNCTION`: see command_of."""

from __future__ import annotations

import importlib
import sys

module, _, name = sys.argv[1].partition(":")
getattr(importlib.import_module(module), name)()
