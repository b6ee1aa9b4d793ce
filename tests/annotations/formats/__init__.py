"""Formats of datasets on disk, one file each, named as the reader in facelab/annotations.

The tests find these files by listing the folder. Each defines

* ``write(root)``: write a small set in the official format, with points from :func:`writing.some_points`,
* ``read(root, *, skip=False)``: return the reader of that folder; ``skip`` is ``data.skip_unpaired``,
* ``KNOWN``: path of a photo of one face, below the root, and the points ``(N, 2)`` that must be read, or, for a
  detection dataset, ``BOX``: path of a photo and the boxes ``(F, 4)`` of its faces,

and, where applicable,

* ``LINE``: path of a text file, number of a line of coordinates (from 1), and separator (None: spaces),
* ``MAY_BE_MISSING``: whether ``nan nan`` is a point that is not annotated; without it, NaN is refused,
* ``REAL``: names of folders in FACE_DATA in this format, each with its splits.
"""
