"""For all tests: no deadline on a property's examples, because a busy machine is slow and nothing is timed here."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
