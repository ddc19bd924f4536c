"""`lensreg add`: register a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from cli.options import (
    Session,
    complete_parent,
    complete_relation,
    output_option,
    parity_option,
    parse_tags,
    registry_options,
    split_relations,
)
from cli.output import say

if TYPE_CHECKING:
    from registry.fetch import ParityChoice
    from registry.registration import Registration


@click.command()
@click.argument("name", metavar="NAME")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--parent",
    "parents",
    multiple=True,
    metavar="[RELATION=]REF",
    shell_complete=complete_parent,
    help="What it was made from; may be given again.",
)
@click.option(
    "--parent-absent",
    "absent_parents",
    multiple=True,
    metavar="[RELATION=]ORG/NAME@REVISION[#sha256:DIGEST]",
    help="What it was made from and is not registered, on the Hub; joined when it is.",
)
@click.option(
    "--relation",
    metavar="RELATION",
    shell_complete=complete_relation,
    help="What it is to its parents: finetuned (default), continued, adapter-merged, merged (default if there are "
    "several), converted, quantised or distilled.",
)
@click.option("--step", type=int, metavar="N", help="Training step, for NAME@step-N.")
@click.option(
    "--allow",
    multiple=True,
    metavar="FIELD",
    help="Architecture field that may differ from the parent's; or unrelated-parent.",
)
@click.option("--tag", "tags", multiple=True, metavar="K=V", callback=parse_tags, help="Tag; may be given again.")
@click.option("--note", metavar="TEXT", help="Remark for people.")
@parity_option
@click.option(
    "--weights", type=click.Choice(["safetensors", "bin"]), help="Which one counts where the folder holds both."
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    help="Config file of what has none of its own: a bare state dict, or a folder.",
)
@click.option("--lazy", is_flag=True, help="Leave a Hub model's large files there until the first load.")
@click.option("--link", is_flag=True, help="Hard-link the files into the store instead of copying them.")
@click.option("--strict", is_flag=True, help="Refuse what brings code along or asks for some.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@output_option("table", "json", "ids")
@registry_options
@click.pass_obj
def add(
    session: Session,
    name: str,
    source: str,
    parents: tuple[str, ...],
    absent_parents: tuple[str, ...],
    relation: str | None,
    step: int | None,
    allow: tuple[str, ...],
    tags: dict[str, str],
    note: str | None,
    parity: ParityChoice | None,
    weights: Literal["safetensors", "bin"] | None,
    config: str | None,
    lazy: bool,
    link: bool,
    strict: bool,
    dry_run: bool,
) -> None:
    """Register SOURCE as the next version of the model NAME.

    SOURCE is a Hugging Face folder (safetensors or .bin; a Trainer's or FSDP's checkpoint), a PEFT adapter's folder,
    which is merged into its one --parent, a TransformerLens state dict (.safetensors, .pt), which needs a --parent or a
    --config, a GGUF file, or a model on the Hub: ORG/NAME or ORG/NAME@REVISION, pinned to the commit that the revision
    is now. A path that exists wins over a Hub id of the same spelling; hf://ORG/NAME always means the Hub.

    Parents may each have their RELATION before them: --parent merged=REF. One that is not registered is recorded with
    --parent-absent, and joined when the commit or the digest that it names is registered, or by `lensreg join`.

    It is converted and verified first: a checkpoint whose architecture is not its parent's is refused, and so is one
    whose converted network does not compute what the checkpoint does.
    """
    from cli.progress import show_progress

    with show_progress() as progress:
        done = session.open().register(
            name,
            source,
            parent=split_relations(parents),
            absent_parents=split_relations(absent_parents),
            relation=relation,
            step=step,
            allow=allow,
            tags=tags,
            note=note,
            parity=parity,
            weights=weights,
            config=config,
            lazy=lazy,
            link=link,
            strict=strict,
            dry_run=dry_run,
            progress=progress,
        )
    _print(done, session.output)


def _print(done: Registration, output: str) -> None:
    from cli.output import print_card, print_json
    from cli.versions import describe_version, version_facts

    if output == "json":
        print_json(_as_dict(done))
    elif output == "ids":
        say(done.version.ref if done.version else "")
    elif done.version is None:
        print_card(f"{done.name} would be registered; nothing was written", _plan_facts(done))
    elif done.outcome == "unchanged":
        print_card(f"{done.version.ref} holds this already; nothing was changed", version_facts(done.version))
    else:
        print_card(f"registered {done.version.ref}", describe_version(done.version))


def _plan_facts(done: Registration) -> dict[str, str | None]:
    from cli.output import format_parameters
    from cli.versions import describe_parity, name_weights

    return {
        "weights": f"{name_weights(done.weights_digest)}  {format_parameters(done.n_parameters)} parameters",
        "architecture": f"sha256:{done.architecture.fingerprint[:16]}",
        "admitted": ", ".join(one.field for one in done.admitted_differences) or None,
        "parity": describe_parity(done.parity.as_dict()) if done.parity else "not measured",
        "findings": "\n".join(finding.message for finding in done.findings) or None,
    }


def _as_dict(done: Registration) -> dict[str, Any]:
    version = done.version
    return {
        "outcome": done.outcome,
        "model": done.name,
        "version": version.number if version else None,
        "ref": version.ref if version else None,
        "weights_digest": done.weights_digest,
        "fingerprint": done.architecture.fingerprint,
        "n_parameters": done.n_parameters,
        "admitted_differences": [one.as_dict() for one in done.admitted_differences],
        "parity": done.parity.as_dict() if done.parity else None,
        "findings": [finding.as_dict() for finding in done.findings],
    }
