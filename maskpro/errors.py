"""The error of a user's mistake: one sentence with the field, the value and what is allowed."""


class MaskproError(ValueError):
    """A mistake in what the user gave; the commands print its sentence instead of a traceback."""
