"""Real files of every kind, mutated and handed to a registry: refused with a typed error, or right. `make fuzz`.

mutate.py   damages JSON, safetensors, GGUF, zip archives, tars and bytes, with their structure in mind
sources.py  whole sources, made once, and what is damaged in a copy of one
kinds.py    the kinds of files: to whom they are handed, and with what they are compared
plain.py    what a mutated file says plainly, read by transformers, peft, tokenizers, torch and json
judging.py  one case, and a batch of them in a child
running.py  all cases, in children that are forked once all is imported
paths.py    names and paths that try to lead elsewhere, and what was opened meanwhile
__main__.py the command; `--write` puts the tables into docs/reliability.md
"""
