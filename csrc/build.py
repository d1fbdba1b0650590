"""Build instructions of the extension module `shardmem._native` for cffi's API mode.

The text that cffi parses is the public header itself: a second copy would drift. cffi takes neither include
guards nor other preprocessor lines except integer `#define`s, so those are all that is left out.
"""

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCES = [
    "hash.c",
    "lease.c",
    "fork.c",
    "heap.c",
    "segment.c",
    "park.c",
    "points.c",
    "geometry.c",
    "supervisor.c",
    "observer.c",
    "partition.c",
    "more.c",
    "sender.c",
    "carry.c",
    "send.c",
    "columns.c",
    "frames.c",
    "aside.c",
    "origin.c",
    "follow.c",
    "trials.c",
    "attempt.c",
    "ranges.c",
    "load.c",
    "batch.c",
    "reader.c",
    "shard.c",
    "fastcall.c",
    "decode.c",
    "keyed.c",
    "many.c",
    "store_keys.c",
    "by_key.c",
    "scan.c",
    "scan_combined.c",
    "scan_csv.c",
    "scan_json.c",
    "scan_key.c",
    "scan_lines.c",
    "scan_logfmt.c",
    "scan_member.c",
    "scan_syslog.c",
    "convert.c",
    "kafka.c",
]


def declarations(header: str) -> str:
    """The C declarations of `header`, with its integer constants."""
    kept = []
    for line in header.splitlines():
        words = line.split()
        if line.startswith("#") and not (len(words) == 3 and words[0] == "#define" and words[2].isdigit()):
            continue
        kept.append(line)
    return "\n".join(kept)


ffi = FFI()
ffi.cdef(declarations((HERE / "shardmem.h").read_text()))
ffi.cdef(declarations((HERE / "scan.h").read_text()))
ffi.cdef(declarations((HERE / "kafka.h").read_text()))
ffi.set_source(
    "shardmem._native",
    '#include "shardmem.h"\n#include "scan.h"\n#include "kafka.h"',
    sources=[os.path.join("csrc", name) for name in SOURCES],
    depends=[
        os.path.join("csrc", name)
        for name in (
            "shardmem.h",
            "scan.h",
            "kafka.h",
            "layout.h",
            "internal.h",
            "sender.h",
            "reader.h",
            "objects.h",
            "interpreter.h",
            "keyed.h",
            "record.h",
            "points.h",
            "build.py",
        )
    ],
    include_dirs=["csrc"],
    extra_compile_args=[
        "-std=gnu11",
        "-O3",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-missing-field-initializers",
    ],
)
