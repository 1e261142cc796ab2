"""visionloop: the continuous-learning loop that keeps computer-vision models right after they ship."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("visionloop")
except PackageNotFoundError:  # a source tree on PYTHONPATH that was never installed
    __version__ = "0.0.0"
