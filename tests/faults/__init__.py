"""Faults, provoked again and again on real parts: `make faults`, and ten times longer `make faults-long`.

scenario.py    what a scenario is and what it reports
invariant.py   what must hold after any fault
__main__.py    runs them all within a time, prints the table, and fails on a breach or on a blind control
*.py           the scenarios, by what is struck: each has a list SCENARIOS
"""
