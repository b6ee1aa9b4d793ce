"""Files that are either whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name beside it and rename it when the block ends well.

    A reader never sees half a file, and a crash leaves the old one.

    Args:
        path: of the file; its folder is made.

    Yields:
        The temporary path to write to, with the same suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{uuid4().hex}{path.suffix}")
    try:
        temporary.touch(exist_ok=False)  # open to whom the umask says; tempfile's are the owner's alone
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105  the name says that an existing file is meant
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
