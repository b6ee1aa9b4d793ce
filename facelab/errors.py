"""Mistakes that a user can mend: what is wrong, where, and what to do. Any other exception is a fault of the code.

The library raises these and never exits; a door shows their text without a traceback.
"""

import re

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys instead of showing them, or that turn the order of others; bytes that are no text.

Newline and tab are none of them: a message may have lines.
"""


def printable(text: str) -> str:
    r"""Write the bytes of a file name that are not UTF-8 as ``\udcXX``: no terminal, log or file takes them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def visible(text: str) -> str:
    r"""Write what is not seen of a text but obeyed, see :data:`OBEYED`, as ``\x1b`` or ``\u202e``."""
    return OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


class FacelabError(Exception):
    """A mistake of the user's; also the base of those with a place of their own."""

    def __str__(self) -> str:
        return visible(super().__str__())


class ConfigError(FacelabError):
    """A value that a part of the configuration refuses.

    A part names its own argument and knows nothing of where it is mounted; who builds the part adds that with
    :meth:`mount`. So ``ConfigError("scale_limit", " must be in [0, 1), got 2")`` of an ``Augmentation`` reads
    ``augment.scale_limit must be in [0, 1), got 2``.

    Args:
        key: dotted name of the value, relative to the part that refuses it; empty for the part itself.
        problem: the rest of the sentence that begins with the key, with its ``=``, ``:`` or space.
        mounted: whether the key is that of the whole configuration already.
    """

    def __init__(self, key: str, problem: str, mounted: bool = False) -> None:
        super().__init__(key, problem, mounted)
        self.key, self.problem, self.mounted = key, problem, mounted

    def mount(self, key: str) -> None:
        """Give the value its key in the whole configuration, unless it has that already."""
        if not self.mounted:
            self.key, self.mounted = key, True

    def __str__(self) -> str:
        return visible(f"{self.key}{self.problem}" if self.key else self.problem.removeprefix(": "))


class DatasetError(FacelabError):
    """A dataset on disk that cannot be used as it is, with its file and line."""


class ImageError(FacelabError):
    """A file that cannot be read as a whole image."""


class CheckpointError(FacelabError):
    """A file that is no checkpoint of this project, or one that cannot be opened here."""


class TrainingError(FacelabError):
    """A training that cannot continue, as its loss is not finite."""


class RunError(FacelabError):
    """The folder of a run or of a sweep that cannot be used so."""
