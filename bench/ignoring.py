"""A handler that does nothing, in a module that imports nothing."""


def handle(batch: object) -> None:
    pass
