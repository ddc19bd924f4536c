"""Search: a small language over models, versions, architectures, tags, measurements and lineage.

    text ─► tree ─► condition ─► versions
    grammar.py      compile.py   run.py
    syntax.py       fields.py  columns.py  values.py  patterns.py

Importing this imports lark, so it is imported when somebody searches.
"""

from registry.search.run import Search, search_refs, search_versions

__all__ = ["Search", "search_refs", "search_versions"]
