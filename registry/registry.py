"""The object people hold: where the database and the store are, and every operation as a method."""

from __future__ import annotations

from registry.methods.adding import Adding
from registry.methods.auditing import Auditing
from registry.methods.repeating import Repeating
from registry.methods.tending import Tending
from registry.methods.tracing import Tracing
from registry.methods.transferring import Transferring


class Registry(Adding, Repeating, Tracing, Tending, Auditing, Transferring):
    """A registry of models: `Registry()` opens the one that $LENSREG_URL and $LENSREG_STORE, or the defaults, name.

    `url` is an SQLAlchemy URL or the path of a SQLite file; `store` a folder. A fresh database is set up on first use;
    one with another schema raises SchemaOutdated or SchemaTooNew.
    """
