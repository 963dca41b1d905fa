"""What can go wrong with the store.

::

    StoreError
    ├── StoreUnavailable      the database cannot be reached, opened or written at present; trying again may help
    ├── SchemaMismatch        the database was made by a newer Plumbline
    ├── NotFound              there is no record of that id
    ├── InvalidRecord         what was given cannot be stored (also a ValueError)
    ├── Conflict              somebody else changed the record since it was read
    └── StaleAttempt          the job is no longer this attempt's: another worker has it, or it has ended

Each message is one line for people, without SQL and without passwords.
"""


class StoreError(Exception):
    """The store could not do what was asked; the message is one line and fit to be shown."""


class StoreUnavailable(StoreError):
    """The database cannot be reached, opened or written at present."""


class SchemaMismatch(StoreError):
    """The database's schema is newer than this code knows."""


class NotFound(StoreError):
    """There is no record of that id."""


class InvalidRecord(StoreError, ValueError):
    """What was given cannot be stored."""


class Conflict(StoreError):
    """The record changed since it was read; read it again before changing it."""


class StaleAttempt(StoreError):
    """The job is no longer this attempt's, so nothing was written."""
