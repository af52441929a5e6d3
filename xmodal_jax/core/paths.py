"""File names that come out of files: they must not lead out of the folder that holds them."""

from __future__ import annotations

import pathlib


def leaves_folder(name: str) -> bool:
    r"""Whether a file name read from an index or from metadata leads out of its folder: it is absolute, or has ``..``.

    Backslashes count as slashes, and a drive (``C:\``) as absolute, so that a name is judged alike on all systems.
    Links are followed: whoever makes a link in a folder decides what it points to.

    Example::

        leaves_folder("images/1.png"), leaves_folder("../1.png")  # False, True
    """
    path = pathlib.PureWindowsPath(name)  # knows both kinds of slashes, and drives
    return bool(path.root) or ".." in path.parts
