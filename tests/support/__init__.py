"""What the process tests share. `tests` is on the path of Python, so this is the package `support` wherever pytest runs:
the root of the source tree is not, for its `shardmem` would hide the package that is installed.
"""
