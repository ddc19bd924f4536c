"""The command's entry: the list of commands, and the one place that turns errors into lines and exit codes.

Exit codes: 0 done, 1 could not, 2 wrong usage, 3 a check ran and found a fault.
"""

from __future__ import annotations

import atexit
import gc
import sys
import warnings
from importlib import import_module
from typing import TextIO

import click

from cli.options import Session, registry_options

# command -> where it is; imported when it is called, so that `lensreg` starts fast
COMMANDS = {
    "add": "cli.add:add",
    "add-run": "cli.add_run:add_run",
    "check": "cli.check:check",
    "fetch": "cli.check:fetch",
    "identify": "cli.identify:identify",
    "ls": "cli.versions:ls",
    "show": "cli.versions:show",
    "history": "cli.versions:history",
    "path": "cli.versions:path",
    "lineage": "cli.lineage:lineage",
    "join": "cli.lineage:join",
    "weigh": "cli.weigh:weigh",
    "diff": "cli.diff:diff",
    "trace": "cli.trace:trace",
    "validate": "cli.validate:validate",
    "gate": "cli.gate:gate",
    "leaderboard": "cli.gate:leaderboard",
    "search": "cli.search:search",
    "sql": "cli.search:sql",
    "alias": "cli.alias:alias",
    "push": "cli.transfer:push",
    "pull": "cli.transfer:pull",
    "export": "cli.transfer:export",
    "import": "cli.transfer:import_",
    "retire": "cli.versions:retire",
    "restore": "cli.versions:restore",
    "protect": "cli.retain:protect",
    "retain": "cli.retain:retain",
    "suite": "cli.suite:suite",
    "verify": "cli.verify:verify",
    "audit": "cli.audit:audit",
    "attest": "cli.attest:attest",
    "doctor": "cli.doctor:doctor",
    "cache": "cli.cache:cache",
    "gc": "cli.collect:collect",
    "backup": "cli.backup:backup",
    "db": "cli.db:db",
    "demo": "cli.demo.tour:demo",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed, listed in the order of COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog='Completion: eval "$(_LENSREG_COMPLETE=bash_source lensreg)" (or zsh_source, fish_source).',
)
@click.version_option(package_name="lens-registry", prog_name="lensreg")
@registry_options
def lensreg() -> None:
    """Register checkpoints, and get them back by name as correctly converted HookedTransformers.

    A REF is NAME, NAME@vN, NAME@step-N, NAME@step~N (the nearest step), NAME@last (the highest), NAME@ALIAS or
    sha256:PREFIX; a bare NAME is its newest version.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command; every RegistryError becomes one line on stderr and exit code 1."""
    from registry.errors import RegistryError

    session = Session()
    warnings.showwarning = _show_warning
    atexit.register(gc.freeze)  # or the interpreter looks through all the libraries for garbage before it ends
    try:
        lensreg.main(arguments, prog_name="lensreg", obj=session)
    except RegistryError as error:
        from cli.output import print_error

        print_error(error, session.output)
        sys.exit(1)
    finally:
        session.close()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, once, instead of where in the code it was raised."""
    from cli.output import print_warning

    print_warning(str(message))


if __name__ == "__main__":
    main()
