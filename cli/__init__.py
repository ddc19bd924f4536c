"""The `lensreg` command: parse, one library call, one output call."""
