"""A tour on a real model: what `make demo` and `lensreg demo` show."""
