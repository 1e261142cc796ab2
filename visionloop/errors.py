"""The error tree: each fault that a user can mend is one of these, and says what was expected, found, and to do."""


class VisionLoopError(Exception):
    """Root of the tree. `str(error)` is one message that names the way out."""


class ConfigError(VisionLoopError):
    """A project file or a `VISIONLOOP_*` setting is wrong; the message carries file and line where there is one."""


class DataError(VisionLoopError):
    """A batch, image or label file cannot be used as delivered."""


class StoreError(VisionLoopError):
    """A server that the loop needs is down or refused; the message names the server and its address."""


class NotFound(StoreError):
    """An object, record, model version or project that was asked for does not exist."""


class Conflict(StoreError):
    """A conditional write lost: somebody else wrote first. Read again, then decide again."""


class IntegrityError(VisionLoopError):
    """A digest, a signature or a record does not match what it vouches for."""


class StageError(VisionLoopError):
    """A stage could not finish for a reason that its inputs cannot mend (for example a model that does not load)."""


class StackError(VisionLoopError):
    """An embedded server did not start or stop; the message says which, why, and where its log is."""
