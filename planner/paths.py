"""Where files of this application lie: its own assets, and the directory of what it writes."""

from __future__ import annotations

import os
import pathlib
import sys

ASSETS = pathlib.Path(__file__).resolve().parent.parent / "assets"


def data_directory() -> pathlib.Path:
    """``PLUMBLINE_DATA_DIR``, else the platform's directory for a user's data. It need not exist yet."""
    chosen = os.environ.get("PLUMBLINE_DATA_DIR", "").strip()
    if chosen:
        return pathlib.Path(chosen).expanduser().absolute()
    home = pathlib.Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "plumbline"
    if sys.platform == "win32":
        return pathlib.Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "plumbline"
    return pathlib.Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "plumbline"
