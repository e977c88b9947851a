"""The one error of a build: it names the .deb or the path and says what is wrong."""


class BuildError(Exception):
    """The package cannot be built; the message is all that the user sees."""
