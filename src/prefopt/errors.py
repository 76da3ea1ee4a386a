"""Errors that a user can cause. Each message is one line: what is wrong with which value, where, what to do.

Every class also inherits the matching standard-library error, takes the finished message as its only
argument (so that it pickles across processes), and makes the command line exit with code 2 without a
traceback. Anything else that escapes is a bug: traceback, exit code 1.
"""


class PrefoptError(Exception):
    """Root of everything a user can cause."""

    everywhere = False
    """Whether all processes of a launch raise this one, which has come up in the main process."""


class RecordError(PrefoptError, ValueError):
    """A row of data is wrong; the message names file and line, or the record id."""


class ConfigError(PrefoptError, ValueError):
    """A recipe or an override is wrong; the message names the key."""


class ModelError(PrefoptError, RuntimeError):
    """A model folder, tokenizer or adapter cannot be used as asked."""


class ResumeError(PrefoptError, RuntimeError):
    """A run cannot go on from what is on disk."""


class StorageError(PrefoptError, OSError):
    """Something could not be written or read: full disk, missing file, no permission."""


class NonFiniteError(PrefoptError, ArithmeticError):
    """A loss, log-probability or gradient is not finite; the message names step and records."""


class JudgeError(PrefoptError, RuntimeError):
    """A judge or server failed for good."""


class SandboxError(PrefoptError, RuntimeError):
    """Model-written code cannot be isolated or run."""


class AgentError(PrefoptError, RuntimeError):
    """An environment that agents act in cannot be started or used."""


class MissingExtraError(PrefoptError, ImportError):
    """A command needs an optional dependency; the message names the extra to install."""
