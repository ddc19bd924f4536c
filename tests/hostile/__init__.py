"""Files and folders that mean harm or are damaged, and what the registry says to each; see RELIABILITY B1 to B15.

case.py     what a case is, and the whole checkpoints that cases damage
watch.py    what a process does, by audit events, and how much memory it took for it
judge.py    hands one case to a registry, in a process of its own, and says what came of it
*.py        the corpus, by what is damaged: each has a list CASES
__main__.py runs them all and prints a table; `--write` puts it into docs/reliability.md
"""
