"""For all tests: no deadline on a property's examples, because a busy machine is slow and nothing is timed here.

What is imported stays until the end, so the garbage collector need not look through it again and again.
"""

import gc

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
gc.disable()


def pytest_collection_finish() -> None:
    """From here on it collects, but for the modules."""
    gc.freeze()
    gc.enable()
