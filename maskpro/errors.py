"""The errors of a user's mistake: one sentence with the field, the value and what is allowed."""


class MaskproError(ValueError):
    """A mistake in what the user gave; the commands print its sentence instead of a traceback."""


class ModelNotFoundError(MaskproError):
    """A model could not be had; the message says what was looked for, where, and the option that fixes it."""
