"""Errors that a user can correct: their messages contain the problem, its place and what to do.

Any other exception is a fault of the code. The library raises these errors and never exits; a script prints their
message without a traceback.
"""

import re

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal interprets instead of showing, or that reverse the order of others, and bytes that are not
text.

Newline and tab are excluded, because a message may have several lines.
"""


def printable(text: str) -> str:
    r"""Escape the bytes of a file name that are not UTF-8 as ``\udcXX``: no terminal, log or file accepts them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def visible(text: str) -> str:
    r"""Escape the :data:`CONTROLS` of a text, for instance as ``\x1b`` or ``\u202e``."""
    return CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


class FacelabError(Exception):
    """Mistake of the user, and base class of the more specific errors."""

    def __str__(self) -> str:
        return visible(super().__str__())


class ConfigError(FacelabError):
    """Value that a part of the configuration refuses.

    A part names only its argument, not its place in the configuration. The code that builds the part adds the place
    with :meth:`mount`. ``ConfigError("scale_limit", " must be in [0, 1), got 2")`` of an ``Augmentation``, for example,
    is shown as ``augment.scale_limit must be in [0, 1), got 2``.

    Args:
        key: dotted name of the value, relative to the part that refuses it; empty for the part itself.
        problem: the rest of the sentence that begins with the key, with its ``=``, ``:`` or space.
        mounted: whether the key is already that of the whole configuration.
    """

    def __init__(self, key: str, problem: str, mounted: bool = False) -> None:
        super().__init__(key, problem, mounted)
        self.key, self.problem, self.mounted = key, problem, mounted

    def mount(self, key: str) -> None:
        """Set the key of the value in the whole configuration, unless it is already set."""
        if not self.mounted:
            self.key, self.mounted = key, True

    def __str__(self) -> str:
        return visible(f"{self.key}{self.problem}" if self.key else self.problem.removeprefix(": "))


class DatasetError(FacelabError):
    """Dataset on disk that cannot be used as it is, with file and line."""


class ImageError(FacelabError):
    """File that cannot be read as a complete image."""


class CheckpointError(FacelabError):
    """File that is not a checkpoint of this project, or that cannot be opened here."""


class TrainingError(FacelabError):
    """Training that cannot continue, because its loss is not finite."""


class RunError(FacelabError):
    """Folder of a run or of a sweep that cannot be used in this way."""
