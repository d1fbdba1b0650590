"""Makes `bench` importable, here and in the processes that are started from here, and nothing else of the checkout.

The checkout's own `shardmem` has no compiled extension when a wheel is installed, and would be found before the wheel:
then every figure of ours read "not installed", and nobody was told. So `bench` is reached by a link in a directory that
holds nothing else.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

BENCH = Path(__file__).resolve().parent
_PLACE = "SHARDMEM_BENCH_PATH"  # told to the processes below, which need none of their own


def use() -> None:
    """Ends the program when no shardmem is installed: there is nothing to measure."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (BENCH, BENCH.parent)]
    if _PLACE not in os.environ:
        place = tempfile.mkdtemp(prefix="smb-path-")
        owner = os.getpid()
        atexit.register(lambda: shutil.rmtree(place) if os.getpid() == owner else None)
        os.symlink(BENCH, os.path.join(place, "bench"))
        os.environ[_PLACE] = place
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))
    sys.path.insert(0, os.environ[_PLACE])
    try:
        found = importlib.util.find_spec("shardmem._native")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise SystemExit(f"shardmem is not installed in {sys.prefix}: pip install {BENCH.parent}")
