"""The daemon: the supervisor process, the workers it spawns, and the ways to start and reach it."""
