"""What the process tests share. `tests` is on the path of Python, so this is the package `support` wherever pytest
runs. The root of the source tree is not: its `shardmem` would hide the package that is installed.
"""
