-- {role} may read and register, move aliases, retire, restore and protect.
-- What is written it can neither alter nor delete: events and rows of versions are append-only for it.
REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role};
REVOKE ALL ON ALL SEQUENCES IN SCHEMA {schema} FROM {role};
REVOKE ALL ON SCHEMA {schema} FROM {role};
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};
GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role};
GRANT INSERT ON
    {schema}.models,
    {schema}.architectures,
    {schema}.blobs,
    {schema}.versions,
    {schema}.version_files,
    {schema}.version_parents,
    {schema}.absent_parents,
    {schema}.tensor_digests,
    {schema}.sketches,
    {schema}.aliases,
    {schema}.tags,
    {schema}.validations,
    {schema}.gates,
    {schema}.events
TO {role};
GRANT UPDATE (protected_at) ON {schema}.models TO {role};
GRANT UPDATE (retired_at, weights_digest) ON {schema}.versions TO {role};
GRANT UPDATE (removed_at) ON {schema}.aliases TO {role};
GRANT UPDATE (removed_at) ON {schema}.gates TO {role};
