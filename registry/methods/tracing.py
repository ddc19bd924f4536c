"""Follow the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import InvalidInput
from registry.methods.comparing import Comparing
from registry.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

    from registry.trajectory.results import Trace


class Tracing(Comparing):
    """Methods that follow runs."""

    def trace(
        self,
        name: str,
        *,
        base: str | None = None,
        metrics: Sequence[str] = (),
        weights: bool = False,
        prompts: Sequence[str | Sequence[int]] = (),
        data: str | Path | None = None,
        column: str = "text",
        length: int | None = None,
        max_tokens: int | None = None,
        batch_size: int = 4,
        dtype: str | torch.dtype = "float32",
        device: str | None = None,
        workers: int | None = None,
        dask: str | None = None,
        executor: Executor | None = None,
        progress: Progress = no_progress,
    ) -> Trace:
        """Follow a run over its steps: what Trainer logged, recorded metrics, and which tensors changed; from records.

        Args:
            name: a model, whose versions with a step are the run; or the ref of a run's last version, from which it is
                walked back for as long as training was continued.
            base: what the steps are compared with; without it, the parent of the first step, or else that step.
            metrics: recorded metrics, as `loss.perplexity` or `perplexity`, or a whole suite's; none: all but those of
                parity and structure.
            weights: read the weights of every step, and say how far each layer and component moved.
            prompts: texts, or lists of tokens, on which every step's predictions are compared with the base's.
            data: a .txt or .jsonl file, or a folder that `datasets` saved, instead of prompts; of its `column`, windows
                of `length` tokens (None: n_ctx), `max_tokens` in all, `batch_size` at a time.
            dtype: in which networks run.
            device: where they run.
            workers, dask, executor: measure steps elsewhere, as in `validate`.
            progress: called with the stage and how far it is.

        Raises:
            InvalidInput: there is no version with a step, or no step has one of the metrics.
            WorkerMismatch, WorkerLost, ClusterUnavailable: as in `validate`.
        """
        from registry.executors import Place
        from registry.trajectory.trace_run import trace_run

        place = Place(workers, dask, executor)

        if prompts and data is not None:
            raise InvalidInput("There are both prompts and data.", hint="Give one of them.")
        options = None
        if weights or prompts or data is not None:
            from registry.load_options import name_dtype
            from registry.trajectory.measure_step import StepOptions

            options = StepOptions(
                weights=weights,
                prompts=tuple(one if isinstance(one, str) else tuple(one) for one in prompts),
                data=None if data is None else str(Path(data).expanduser().absolute()),
                column=column,
                length=length,
                max_tokens=max_tokens,
                batch_size=batch_size,
                dtype=str(name_dtype(dtype)),
                device=device,
            )
        return trace_run(self, name, base, metrics, options, place, progress)
