"""The whole corpus."""

from __future__ import annotations

from tests.hostile import (
    gguf_cases,
    json_files,
    link_files,
    other_layouts,
    pickle_cases,
    safetensors_files,
    tokenizer_cases,
)
from tests.hostile.case import ACCEPTED, BASES, Case

CASES: tuple[Case, ...] = (
    *(Case(f"whole-{base}", "whole (controls)", lambda _: None, ACCEPTED, base=base) for base in BASES),
    *safetensors_files.CASES,
    *json_files.CASES,
    *tokenizer_cases.CASES,
    *link_files.CASES,
    *gguf_cases.CASES,
    *other_layouts.CASES,
    *pickle_cases.CASES,
)
IN_CHILDREN = pickle_cases.IN_CHILDREN
