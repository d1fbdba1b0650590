"""The daemon: the supervisor process, the workers it spawns, and what it decides and carries out."""
