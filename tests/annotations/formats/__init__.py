"""Formats of datasets on disk, one file each, named as the reader in facelab/annotations.

The tests list these files. Each has

* ``write(root)``: write a small set of the official format, whose points :func:`writing.some_points` draws,
* ``read(root, *, skip=False)``: return the reader of that folder; ``skip`` is ``data.skip_unpaired``,
* ``KNOWN``: path of a photo of one face, below the root, and the points ``(N, 2)`` that must be read,

and, where it has a meaning,

* ``LINE``: of a text file: its path, the number of a line of coordinates (from 1), and the separator (None: spaces),
* ``MAY_BE_MISSING``: whether ``nan nan`` is a point that is not annotated; without it, NaN is refused,
* ``REAL``: name of a folder in FACE_DATA that has this format to the splits that are there.
"""
