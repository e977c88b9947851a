"""The one error of the lock generator: a sentence for the person at the terminal."""


class LockError(Exception):
    """The lock cannot be made; the message says what is wrong and what to do about it."""
