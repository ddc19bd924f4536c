"""Print what `lensreg diff --weights --prompt` found: tables by layer, and the heads and tensors that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from registry.compare.results import BehaviourComparison
    from registry.compare.weights import WeightComparison
    from registry.compare_versions import Comparison

N_SHOWN = 10


def print_weights(found: WeightComparison) -> None:
    """Print the changes by layer and component, and the tensors that changed most."""
    from cli.output import Column, print_rows, say, say_title

    after = f", after {', '.join(found.processing)}" if found.processing else ""
    total = len(found.tensors)
    say_title(f"\nweights: {found.n_changed:,} of {total:,} tensors changed{after}")
    if found.n_changed:
        say(f"together by {format_share(found.relative_distance)} of the norm of {found.a}\n")
        rows, components = _by_layer(found)
        print_rows(
            rows, [Column("layer", "layer"), *(Column(one, one, True) for one in components)], "table", "", "layer"
        )
        say("")
        print_rows(
            [_describe(one) for one in _most(found.tensors, "relative_distance") if one.largest_change > 0],
            [
                Column("changed most", "name"),
                Column("shape", "shape"),
                Column("by", "distance", True),
                Column("cosine", "cosine", True),
                Column("rank", "rank", True),
                Column("effective", "effective_rank", True),
            ],
            "table",
            "",
            "name",
        )
    for one in found.permuted:
        order = ", ".join(map(str, one.order))
        say(f"layer {one.layer}: the {one.kind} heads are those of {found.a} in another order: {order}")
    for names, whose in ((found.only_a, found.a), (found.only_b, found.b)):
        if names:
            say(f"only in {whose}: {_list(names)}")
    if found.misshapen:
        listed = [f"{name} {_shape(a)} → {_shape(b)}" for name, (a, b) in found.misshapen.items()]
        say(f"of other shapes, and not compared: {_list(listed)}")


def print_behaviour(found: BehaviourComparison) -> None:
    """Print how far the predictions are apart, by layer, and the heads and components that moved most."""
    from cli.output import Column, print_rows, say, say_title

    after = f", after {', '.join(found.processing)}" if found.processing else ""
    prompts = "prompt" if found.n_prompts == 1 else "prompts"
    read = prompts if found.data_digest is None else "prompts and windows of data"
    tokens = "token" if found.n_tokens == 1 else "tokens"
    say_title(f"\nbehaviour on {found.n_prompts:,} {read}, {found.n_tokens:,} {tokens}{after}")
    say(f"KL of the next token {found.kl:.4g} nats, the same top-1 token in {found.top1_agreement:.1%}")
    if found.loss_a is not None and found.loss_b is not None:
        say(f"loss {found.loss_a:.4f} → {found.loss_b:.4f} nats per token")
    say("")
    rows = [
        {
            "block": one.layer - 1 if one.layer else "embed",
            "cosine": "" if one.cosine is None else f"{one.cosine:.4f}",
            "norm": f"{one.norm_a:.4g} → {one.norm_b:.4g}",
            "kl": f"{one.logit_lens_kl:.4g}",
        }
        for one in found.layers
    ]
    columns = [Column("residual stream after block", "block"), Column("cosine", "cosine", True)]
    columns += [Column("norm", "norm", True), Column("logit-lens KL", "kl", True)]
    print_rows(rows, columns, "table", "", "block")
    heads = [
        {"head": f"{one.layer}.{one.head}", "jsd": f"{one.pattern_jsd:.4g}"}
        for one in _most(found.heads, "pattern_jsd")
        if one.pattern_jsd > 0
    ]
    if heads:
        say("")
        print_rows(
            heads, [Column("head", "head"), Column("attention pattern, JSD in nats", "jsd", True)], "table", "", "head"
        )
    parts = [
        {
            "part": one.component if one.layer is None else f"{one.component} {one.layer}",
            "a": f"{one.a:+.4f}",
            "b": f"{one.b:+.4f}",
            "difference": f"{one.difference:+.4f}",
        }
        for one in sorted(found.attributions, key=lambda one: -abs(one.difference))[:N_SHOWN]
    ]
    if parts:
        say("")
        columns = [Column("to the logit of the next token", "part"), Column(found.a, "a", True)]
        print_rows(
            parts, [*columns, Column(found.b, "b", True), Column("more", "difference", True)], "table", "", "part"
        )
    parts = [
        {"head": f"{one.layer}.{one.head}", "difference": f"{one.difference:+.4f}"}
        for one in sorted(found.head_attributions, key=lambda one: -abs(one.difference))[:N_SHOWN]
        if one.difference
    ]
    if parts:
        say("")
        columns = [Column("head", "head"), Column("more to the logit of the next token", "difference", True)]
        print_rows(parts, columns, "table", "", "head")
    for note in found.notes:
        say(note)


def print_summaries(found: Sequence[Comparison], output: str) -> None:
    """Print a line for each of several comparisons with one version."""
    from cli.output import Column, print_rows, say

    rows = [_summarise(one) for one in found]
    names = [name for name in rows[0] if name != "error"] if output == "table" else list(rows[0])
    shown = [name for name in names if any(row[name] is not None for row in rows)] if output == "table" else names
    table = [{name: _show_figure(name, row[name]) for name in names} for row in rows] if output == "table" else rows
    columns = [Column(name.replace("_", " "), name, name not in ("a", "b", "tensors")) for name in shown]
    print_rows(table, columns, output, "", "b")
    for one in found:
        for obstacle in one.obstacles:
            say(f"{one.b}: {obstacle.message}", err=True)


def _summarise(found: Comparison) -> dict[str, Any]:
    weights, behaviour = found.weights, found.behaviour
    return {
        "a": found.a,
        "b": found.b,
        "n_fields": len(found.records.architecture),
        "tensors": str(found.records.tensors) if found.records.tensors else None,
        "n_changed": weights.n_changed if weights else None,
        "relative_distance": weights.relative_distance if weights else None,
        "kl": behaviour.kl if behaviour else None,
        "top1_agreement": behaviour.top1_agreement if behaviour else None,
        "loss_a": behaviour.loss_a if behaviour else None,
        "loss_b": behaviour.loss_b if behaviour else None,
        "error": "; ".join(one.message for one in found.obstacles) or None,
    }


def _show_figure(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "relative_distance":
        return format_share(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def weights_as_dict(found: WeightComparison) -> dict[str, Any]:
    """Give the comparison of weights as plain data."""
    return {
        "n_changed": found.n_changed,
        "relative_distance": found.relative_distance,
        "processing": list(found.processing),
        "tensors": [asdict(one) for one in found.tensors],
        "parts": [asdict(one) for one in found.parts],
        "heads": [asdict(one) for one in found.heads],
        "permuted": [asdict(one) for one in found.permuted],
        "only_a": list(found.only_a),
        "only_b": list(found.only_b),
        "misshapen": {name: {"a": a, "b": b} for name, (a, b) in found.misshapen.items()},
    }


def behaviour_as_dict(found: BehaviourComparison) -> dict[str, Any]:
    """Give the comparison of behaviour as plain data."""
    return {
        **vars(found),
        **{
            name: [asdict(one) for one in getattr(found, name)] for name in ("positions", "layers", "heads", "patterns")
        },
        **{
            name: [{**asdict(one), "difference": one.difference} for one in getattr(found, name)]
            for name in ("attributions", "head_attributions")
        },
    }


def format_share(share: float) -> str:
    """Write a relative distance as people read it."""
    return "0" if share == 0 else f"{share:.2%}" if share >= 0.001 else f"{share * 100:.1e} %"


def _by_layer(found: WeightComparison) -> tuple[list[dict[str, str]], list[str]]:
    """Make a row for each layer, with the relative distance of each component, and list the components."""
    components: list[str] = list(dict.fromkeys(part.component for part in found.parts))
    rows: dict[str, dict[str, str]] = {}
    for part in found.parts:
        layer = "outside" if part.layer is None else str(part.layer)
        row = rows.setdefault(layer, {"layer": layer, **dict.fromkeys(components, "")})
        row[part.component] = format_share(part.relative_distance)
    return list(rows.values()), components


def _describe(one: Any) -> dict[str, str]:
    return {
        "name": one.name,
        "shape": _shape(one.shape),
        "distance": format_share(one.relative_distance),
        "cosine": "" if one.cosine is None else f"{one.cosine:.6f}",
        "rank": "" if one.rank is None else f"{one.rank:,}",
        "effective_rank": "" if one.effective_rank is None else f"{one.effective_rank:.1f}",
    }


def _most(rows: Sequence[Any], name: str) -> list[Any]:
    return sorted(rows, key=lambda one: -getattr(one, name))[:N_SHOWN]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - N_SHOWN:,} more" if len(names) > N_SHOWN else ""
    return ", ".join(names[:N_SHOWN]) + more


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def read_prompts(texts: Sequence[str], file: Any) -> list[str]:
    """Return the prompts that were given, and those of a file, one a line; raises click.UsageError if it has none."""
    prompts = list(texts)
    if file is not None:
        lines = [line.rstrip("\n") for line in file]
        more = [line for line in lines if line.strip()]
        if not more:
            raise click.UsageError(f"{file.name} holds no prompt: it has {len(lines):,} lines, all empty.")
        prompts += more
    return prompts
