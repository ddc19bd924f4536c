"""`lensreg check` and `lensreg fetch`: look at a source without registering it, and get what --lazy left elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from cli.options import Session, output_option, parity_option, ref_argument, registry_options
from cli.output import say

if TYPE_CHECKING:
    from registry.check import Check
    from registry.fetch import ParityChoice


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option("--parent", "parents", multiple=True, metavar="REF", help="What it was made from; may be given again.")
@click.option("--allow", multiple=True, metavar="FIELD", help="Architecture field that may differ from the parent's.")
@click.option(
    "--weights", type=click.Choice(["safetensors", "bin"]), help="Which one counts where the folder holds both."
)
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Config file of a bare state dict.")
@click.option("--strict", is_flag=True, help="Refuse what brings code along or asks for some.")
@output_option("table", "json")
@registry_options
@click.pass_context
def check(
    ctx: click.Context,
    source: str,
    parents: tuple[str, ...],
    allow: tuple[str, ...],
    weights: Literal["safetensors", "bin"] | None,
    config: str | None,
    strict: bool,
) -> None:
    """Say whether SOURCE would load, from its config and safetensors headers alone.

    SOURCE is what `add` takes; of a model on the Hub only the beginnings of its files are read. Nothing is registered,
    and no registry is needed without --parent. Values (NaN), parity and the tokenizer are for `add` to judge.

    Exit code 0: it would load; 3: it would be refused, for the reason printed; 1: it could not be checked.
    """
    session: Session = ctx.obj
    done = session.open().check(source, parent=parents, allow=allow, weights=weights, config=config, strict=strict)
    _print(done, session.output)
    if done.fault:
        ctx.exit(3)


@click.command()
@ref_argument()
@parity_option
@click.option(
    "--allow", multiple=True, metavar="unrelated-parent", help="Keep a parent that its weights do not come from."
)
@output_option("table", "json", "ids")
@registry_options
@click.pass_obj
def fetch(session: Session, ref: str, parity: ParityChoice | None, allow: tuple[str, ...]) -> None:
    """Fetch the weights that `add --lazy` left on the Hub, and verify them; loading REF does it by itself.

    They must be the bytes whose digests were recorded then, and come from the parents that were declared. A version
    that is here already is left as it is.
    """
    from cli.output import print_card, print_json
    from cli.progress import show_progress
    from cli.versions import describe_version, version_dict

    with show_progress() as progress:
        version = session.open().fetch(ref, parity=parity, allow=allow, progress=progress)
    if session.output == "json":
        print_json(version_dict(version))
    elif session.output == "ids":
        say(version.ref)
    else:
        print_card(f"{version.ref} is here", describe_version(version))


def _print(done: Check, output: str) -> None:
    from cli.output import print_card, print_error, print_json

    if output == "json":
        print_json(_as_dict(done))
    elif done.fault:
        print_error(done.fault, output)
    else:
        print_card(f"{done.source} would load, as far as config and headers tell", _facts(done))


def _facts(done: Check) -> dict[str, str | None]:
    from cli.output import format_parameters
    from registry.check import ONLY_ADD

    weights = done.weights
    return {
        "commit": done.commit,
        "step": None if done.step is None else f"{done.step}",
        "weights": f"{format_parameters(weights.n_parameters)} parameters, {weights.dtype}" if weights else None,
        "architecture": f"{done.family}  (sha256:{done.architecture.fingerprint[:16]})" if done.architecture else None,
        "admitted": ", ".join(one.field for one in done.admitted_differences) or None,
        "findings": "\n".join(finding.message for finding in done.findings) or None,
        "only add can tell": ", ".join(ONLY_ADD),
    }


def _as_dict(done: Check) -> dict[str, Any]:
    from registry.check import ONLY_ADD

    fault = done.fault
    return {
        "ok": fault is None,
        "source": done.source,
        "commit": done.commit,
        "step": done.step,
        "family": done.family,
        "fingerprint": done.architecture.fingerprint if done.architecture else None,
        "n_parameters": done.weights.n_parameters if done.weights else None,
        "dtype": done.weights.dtype if done.weights else None,
        "admitted_differences": [one.as_dict() for one in done.admitted_differences],
        "findings": [finding.as_dict() for finding in done.findings],
        "not_checked": list(ONLY_ADD),
        "error": fault and {"code": fault.code, "message": fault.message, "hint": fault.hint, **fault.fields},
    }
