"""Versions on their way from one registry to another: docs/transfer.md says what moves, and in which form."""
