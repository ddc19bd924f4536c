"""Whether this machine, its packages, the database and the store are fit for a registry; read-only, and never raising.

It is needed most when the registry cannot be opened, so nothing here relies on that, and torch is never imported.
"""

from __future__ import annotations

from registry.doctor.finding import STATES as STATES
from registry.doctor.finding import Finding as Finding
from registry.doctor.packages import examine_packages as examine_packages
