"""``python -m db upgrade`` brings the tables up to date; ``python -m db status`` says where they stand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from db.engine import resolve_url, schema_revision, upgrade
from db.errors import StoreError
from db.migrations import HEAD
from db.sessions import Database


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 2 and one line on stderr if the database cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m db", description=__doc__)
    parser.add_argument("command", choices=("upgrade", "status"))
    chosen = parser.parse_args(arguments)
    try:
        database = Database(resolve_url())
        if chosen.command == "upgrade":
            print(f"{database.shown_url}: {'upgraded to' if upgrade(database) else 'already at'} schema {HEAD}")
        else:
            print(f"{database.shown_url}: schema {schema_revision(database) or 'none'}, this Plumbline knows {HEAD}")
        database.close()
    except StoreError as error:
        print(f"db: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
