"""`lensreg attest`: a version's in-toto statement, and a signature over its files."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import Session, ref_argument, registry_options
from cli.output import say

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@ref_argument()
@click.option("--sign", "key", metavar="KEY", type=_FILE, help="Private key (PEM, elliptic curve) to sign with.")
@click.option("--ask-password", is_flag=True, help="The key is encrypted: ask for its password.")
@click.option(
    "--to", "folder", metavar="FOLDER", type=click.Path(path_type=Path), help="Write statement and signature there too."
)
@registry_options
@click.pass_obj
def attest(session: Session, ref: str, key: Path | None, ask_password: bool, folder: Path | None) -> None:
    """Say in an in-toto statement what the version REF is: its files with their SHA-256, name, architecture, parents.

    With --sign every file is read, and the statement is signed together with all files (OpenSSF model-signing), so that
    the signature binds the name to the bytes. It is kept in the audit trail; lensreg verify REF --key PUBLIC checks it.
    """
    import json

    password = click.prompt("Password of the key", hide_input=True, err=True) if ask_password else None
    attestation = session.open().attest(ref, sign=key, password=password, folder=folder)
    if key is None and folder is None:
        say(json.dumps(attestation.statement, indent=2, sort_keys=True))
    else:
        done = "signed" if key else "described"
        say(f"{done} {attestation.version.ref}: {len(attestation.version.files)} files", err=True)
