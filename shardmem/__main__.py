"""`python -m shardmem` is the command line."""

from shardmem.console.cli import main

main(prog_name="shardmem")
