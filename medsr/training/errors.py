"""TrainingError: what a user can cause while training."""

__all__ = ["TrainingError"]


class TrainingError(ValueError):
    """A training that cannot begin or go on: expected, found and cure."""
