"""Save every picture of a comparison as a file of its own: PNG on white, with the two versions above it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import StorageError
from registry.report.figures import write_png
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
    from matplotlib.figure import Figure

    from registry.compare_versions import Comparison


def save_pictures(found: Comparison, folder: str | Path) -> list[Path]:
    """Write the pictures into a folder, which is made if need be; return their paths.

    Raises StorageError if they cannot be written, and PackageMissing without matplotlib.
    """
    target = Path(folder)
    paths = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, title, figure in _draw_all(found):
            if figure is not None:
                if title:
                    figure.suptitle(f"{found.a} → {found.b}: {title}", size=9, parse_math=False)
                path = target / f"{name}.png"
                path.write_bytes(write_png(figure))
                paths.append(path)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.", hint="Name another folder.") from error
    return paths


def _draw_all(found: Comparison) -> Iterator[tuple[str, str, Figure | None]]:
    if found.weights is not None and found.weights.n_changed:
        yield "weights-by-component", "how far components moved", draw_parts(found.weights)
        yield "weights-by-head", "how far queries (W_Q) moved", draw_weight_heads(found.weights)
    behaviour = found.behaviour
    if behaviour is None:
        return
    yield "residual-stream", "the residual stream", draw_layers(behaviour)
    yield "patterns-by-head", "how far attention patterns diverge", draw_pattern_heads(behaviour)
    yield "attributions", "direct logit attribution", draw_attributions(behaviour)
    yield "attributions-by-head", "direct logit attribution of heads", draw_head_attributions(behaviour)
    if len(behaviour.positions) > 1:
        yield "positions", "next-token distributions", draw_positions(behaviour)
    for one in behaviour.patterns:  # which have the versions above each side
        yield f"pattern-{one.layer}.{one.head}", "", draw_patterns(one, behaviour.a, behaviour.b)
