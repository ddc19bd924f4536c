"""Suites of validations: what they are given, what they measure, and which there are."""
