"""Write a comparison as one HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from registry.plain_text import escape
from registry.report.files import save_whole
from registry.report.frame import write_figure, write_page, write_table
from registry.report.pictures import (
    draw_attributions,
    draw_head_attributions,
    draw_layers,
    draw_parts,
    draw_pattern_heads,
    draw_patterns,
    draw_positions,
    draw_weight_heads,
)

if TYPE_CHECKING:
    from registry.compare.results import BehaviourComparison
    from registry.compare.weights import WeightComparison
    from registry.compare_versions import Comparison

N_LISTED = 25
_DIGEST, _DIGITS = re.compile("[0-9a-f]{40,64}"), 16


def write_report(found: Comparison) -> str:
    """Write the page. Raises PackageMissing without matplotlib."""
    title = f"{found.a} → {found.b}"
    parts = [_write_records(found)]
    if found.weights is not None:
        parts.append(_write_weights(found.weights))
    if found.behaviour is not None:
        parts.append(_write_behaviour(found.behaviour))
    parts += [f"<h2>Not compared</h2>\n<p>{escape(one.message)}</p>\n" for one in found.obstacles]
    return write_page(title, parts)


def save_report(found: Comparison, path: str | Path) -> None:
    """Write the page to a file, which appears when it is whole. Raises StorageError if it cannot be written."""
    save_whole(write_report(found), path)


def _write_records(found: Comparison) -> str:
    records = found.records
    rows = [(name, _show(one), _show(other)) for name, (one, other) in records.facts.items()]
    rows += [(one.field, _show(one.parent), _show(one.checkpoint)) for one in records.architecture]
    table = write_table(("", records.a, records.b), rows) if rows else "<p>The records do not differ.</p>"
    tensors = f"<p>Tensors, by their digests: {escape(str(records.tensors))}.</p>" if records.tensors else ""
    return f"<h2>What is recorded</h2>\n{table}{tensors}"


def _write_weights(found: WeightComparison) -> str:
    changed = sorted((one for one in found.tensors if one.largest_change > 0), key=lambda one: -one.relative_distance)
    after = f", after {', '.join(found.processing)}" if found.processing else ""
    said = [
        f"<p>{found.n_changed:,} of {len(found.tensors):,} tensors changed{after}; together by "
        f"{found.relative_distance:.3%} of the norm of {escape(found.a)}.</p>"
    ]
    for one in found.permuted:
        order = ", ".join(map(str, one.order))
        said.append(
            f"<p>Layer {one.layer}: the {one.kind} heads are those of {escape(found.a)} in the order {order}.</p>"
        )
    for names, whose in ((found.only_a, found.a), (found.only_b, found.b), (tuple(found.misshapen), "")):
        if names:
            what = f"Only in {escape(whose)}" if whose else "Of other shapes, and not compared"
            said.append(f"<p>{what}: {escape(', '.join(names[:N_LISTED]))}{_more(names)}.</p>")
    figures = write_figure(draw_parts(found), "How far each component moved, as a share of its norm.")
    figures += write_figure(
        draw_weight_heads(found), "How far each head's queries (W_Q) moved, as a share of their norm."
    )
    rows = [
        (
            one.name,
            "×".join(map(str, one.shape)),
            f"{one.relative_distance:.3%}",
            "" if one.cosine is None else f"{one.cosine:.6f}",
            f"{one.largest_change:.3g}",
            "" if one.rank is None else f"{one.rank:,}",
            "" if one.effective_rank is None else f"{one.effective_rank:.1f}",
        )
        for one in changed[:N_LISTED]
    ]
    names = ("tensor", "shape", "moved by", "cosine", "largest change", "rank", "effective rank")
    table = f"<h3>What moved most</h3>\n{write_table(names, rows)}" if rows else ""
    return f"<h2>Weights</h2>\n{''.join(said)}{figures if rows else ''}{table}"


def _write_behaviour(found: BehaviourComparison) -> str:
    after = f", after {', '.join(found.processing)}" if found.processing else ""
    rows = [
        ("prompts" if found.data_digest is None else "prompts and windows of data", f"{found.n_prompts:,}"),
        ("tokens", f"{found.n_tokens:,}"),
        ("KL of the next token", f"{found.kl:.5g} nats"),
        ("the same top-1 token", f"{found.top1_agreement:.2%}"),
    ]
    if found.loss_a is not None and found.loss_b is not None:
        rows.append(("loss", f"{found.loss_a:.4f} → {found.loss_b:.4f} nats per token"))
    rows.append(("digest of the tokens", f"sha256:{found.tokens_digest[:16]}"))
    if found.data_digest is not None:
        rows.append(("digest of the data", f"sha256:{found.data_digest[:16]}"))
    notes = "".join(f"<p>{escape(note)}</p>" for note in found.notes)
    heads = sorted((one for one in found.heads if one.pattern_jsd > 0), key=lambda one: -one.pattern_jsd)
    head_rows = [(f"{one.layer}.{one.head}", f"{one.pattern_jsd:.4g}") for one in heads[:10]]
    table = f"<h3>Heads that look elsewhere</h3>\n{write_table(('head', 'JSD (nats)'), head_rows)}" if head_rows else ""
    return (
        f"<h2>Behaviour</h2>\n<p>On the same tokens, in {escape(found.dtype)}{after}.</p>"
        + write_table(("", ""), rows)
        + notes
        + write_figure(draw_layers(found), "The residual stream, averaged over tokens.")
        + write_figure(
            draw_pattern_heads(found), "How far each head's attention pattern diverges: Jensen–Shannon, in nats."
        )
        + write_figure(
            draw_attributions(found),
            "Direct logit attribution: how much more each component adds in the second.",
        )
        + write_figure(draw_head_attributions(found), "The same by head: orange is less in the second, blue more.")
        + (write_figure(draw_positions(found), "By position.") if len(found.positions) > 1 else "")
        + table
        + _write_patterns(found)
    )


def _write_patterns(found: BehaviourComparison) -> str:
    figures = [
        write_figure(
            draw_patterns(one, found.a, found.b),
            f"Head {one.layer}.{one.head}, on the tokens where it moved most: each row is a token that looks, each "
            "column one that is looked at; colours are in proportion to the root, so that faint ones show.",
        )
        for one in found.patterns
    ]
    return f"<h3>Attention patterns, side by side</h3>\n{''.join(figures)}" if figures else ""


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - N_LISTED:,} more" if len(names) > N_LISTED else ""


def _show(value: object) -> str:
    shown = "—" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"{shown[:_DIGITS]}…" if _DIGEST.fullmatch(shown) else shown
