"""The user's mistakes: one line that says what, what was got, what was expected and what to do.

`steerlift.commands.main` prints the line and exits with code 2. Everything else that goes wrong is a bug and keeps its
traceback.
"""


class SteerliftError(Exception):
    """Root of every error that steerlift raises on purpose."""


class InputError(SteerliftError, ValueError):
    """A value that the user gave (flag, file content, vector, weight) cannot be used."""


class MissingInputError(SteerliftError, FileNotFoundError):
    """A file, folder, model or data set that the user named is not there."""

    def __str__(self) -> str:
        # OSError's own __str__ would print an errno that we do not have.
        return str(self.args[0]) if self.args else ""


class MissingDependencyError(SteerliftError, ImportError):
    """An option needs a package that is not installed."""


class NotFiniteError(SteerliftError, ArithmeticError):
    """A model's logits are infinite or not numbers."""


class TrainingDivergedError(NotFiniteError):
    """The loss, the gradient or the trained model's logits are no longer finite."""


class CheckpointError(SteerliftError):
    """A checkpoint cannot be written; the one before it is whole."""


class OutOfMemoryError(SteerliftError, MemoryError):
    """The machine or the GPU has too little memory for what was asked."""


class ServerError(SteerliftError):
    """A vLLM server does not answer, fails, or answers nonsense."""
