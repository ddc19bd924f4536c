-- {role} owns the registry: it may upgrade the schema, and alter or delete anything, the audit trail too.
-- Run this as a superuser, or as the present owner if that is a member of {role}.
GRANT USAGE, CREATE ON SCHEMA {schema} TO {role};
DO $lensreg$
DECLARE
    one record;
BEGIN
    -- views too; a sequence goes with its table
    FOR one IN
        SELECT c.relname AS name FROM pg_catalog.pg_class c
        WHERE c.relnamespace = {schema_text}::regnamespace AND c.relkind IN ('r', 'v')
    LOOP
        EXECUTE format('ALTER TABLE {schema}.%I OWNER TO {role}', one.name);
    END LOOP;
END
$lensreg$;
