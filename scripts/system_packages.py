"""The programs outside Python that the tests drive: Chromium, PostgreSQL's server, and fonts for the pages.

    python3 -m scripts.system_packages

Installs what is missing with apt-get where that is allowed without a question; elsewhere prints the command to run.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping

Lookup = Callable[[str], "str | None"]


def has_chromium(which: Lookup = shutil.which) -> bool:
    return any(which(name) for name in ("chromium", "chromium-browser", "google-chrome"))


def has_postgresql(which: Lookup = shutil.which) -> bool:
    """Whether the server's programs are there; Debian keeps them off the PATH, one directory a version."""
    return which("initdb") is not None or bool(glob.glob("/usr/lib/postgresql/*/bin/initdb"))


def has_font() -> bool:
    """Whether a text font is installed: without one Chromium draws empty boxes, and screenshots show nothing."""
    if shutil.which("fc-list") is None:
        return False
    listing = subprocess.run(["fc-list", ":lang=en", "family"], capture_output=True, text=True, check=False)
    return bool(listing.stdout.strip())


PACKAGES: Mapping[str, Callable[[], bool]] = {
    "chromium": has_chromium,
    "postgresql": has_postgresql,
    "fontconfig fonts-dejavu-core fonts-liberation": has_font,
}


def missing_packages(packages: Mapping[str, Callable[[], bool]] = PACKAGES) -> list[str]:
    """Debian's names of the packages that are not there."""
    return [name for names, present in packages.items() if not present() for name in names.split()]


def privilege(
    is_root: bool = os.geteuid() == 0,
    which: Lookup = shutil.which,
    run: Callable[..., subprocess.CompletedProcess[bytes]] = subprocess.run,
) -> list[str] | None:
    """What goes before `apt-get`: nothing for root, sudo where it asks no password, None where neither is given."""
    if which("apt-get") is None:
        return None
    if is_root:
        return []
    if which("sudo") and run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0:
        return ["sudo", "-n"]
    return None


def main() -> int:
    missing = missing_packages()
    if not missing:
        return 0
    before = privilege()
    if before is None:
        command = f"sudo apt-get update && sudo apt-get install -y {' '.join(missing)}"
        print(f"The tests need programs that are not installed. On Debian or Ubuntu run: {command}", file=sys.stderr)
        return 1
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", *missing]):
        command_line = [*before, *environment, "apt-get", *arguments]
        print(" ".join(command_line), flush=True)
        outcome = subprocess.run(command_line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
        if outcome.returncode:
            print(f"`{' '.join(command_line)}` did not succeed; the lines above say why.", file=sys.stderr)
            return 1
    still_missing = missing_packages()
    if still_missing:
        print(f"apt-get ended well, and yet these are not found: {' '.join(still_missing)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
