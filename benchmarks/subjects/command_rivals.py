"""The other registries' commands, and what has to be there for them to answer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hub_cache import fill_cache
from registry import Registry

GIT = {f"GIT_{who}_{what}": "bench@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@dataclass(frozen=True)
class Prepared:
    """Where a rival's commands run, and with which environment variables."""

    folder: Path
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Rival:
    """A program, its nearest command to each of ours, and how to give it something to answer with."""

    environment: str
    program: str
    commands: Mapping[str, Sequence[str]]
    fill: Callable[[Path, Path, Mapping[str, str]], None]

    def write(self, kind: str) -> str:
        """Write one of its commands for the page."""
        return f"`{' '.join([self.program, *self.commands[kind]])}`"

    def prepare(self, below: Path, program: Path) -> Prepared:
        """Set up what its commands ask, in a folder of its own; raises CalledProcessError."""
        folder = below / self.environment
        folder.mkdir()
        (folder / "model.bin").write_bytes(b"weights")
        variables = {
            "HOME": str(folder),
            "PATH": f"{program.parent}:/usr/bin:/bin",
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_HUB_OFFLINE": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "BENTOML_DO_NOT_TRACK": "true",
            "BENTOML_HOME": str(folder / "bentoml"),
            "TRACKIO_DIR": str(folder / "trackio"),
            "DVC_NO_ANALYTICS": "1",
            "PYTHONPATH": "",
            **GIT,
        }
        self.fill(folder, program, variables)
        return Prepared(folder, variables)


def register_bytes(home: Path) -> str:
    """Register a tiny checkpoint in the registry in `home`, and return its ref."""
    from benchmarks.checkpoints import Shape, save_checkpoint

    source = home / "source"
    save_checkpoint(source, Shape(2, 64, 4, d_vocab=300))
    registry = Registry(str(home / "registry.db"), home / "store")
    registry.register("tiny", source, parity="skip")
    registry.close()
    return "tiny"


def _run(folder: Path, variables: Mapping[str, str], *commands: Sequence[str | Path]) -> None:
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=dict(variables))


def _run_python(code: str) -> Callable[[Path, Path, Mapping[str, str]], None]:
    def fill(folder: Path, program: Path, variables: Mapping[str, str]) -> None:
        _run(folder, variables, [program.with_name("python"), "-c", code])

    return fill


def _fill_hub(folder: Path, program: Path, variables: Mapping[str, str]) -> None:
    fill_cache(folder / "hub", "org/model")


def _fill_dvc(folder: Path, program: Path, variables: Mapping[str, str]) -> None:
    _run(
        folder,
        variables,
        ["git", "init", "--quiet"],
        [program, "init", "--quiet"],
        [program, "config", "core.check_update", "false"],
        [program, "add", "--quiet", "model.bin"],
        [program, "remote", "add", "--quiet", "--default", "local", folder / "remote"],
        ["git", "add", "--all"],
        ["git", "commit", "--quiet", "--message", "model"],
        [program, "push", "--quiet"],
    )


def _fill_gto(folder: Path, program: Path, variables: Mapping[str, str]) -> None:
    _run(
        folder,
        variables,
        ["git", "init", "--quiet"],
        ["git", "add", "model.bin"],
        ["git", "commit", "--quiet", "--message", "model"],
        [program, "register", "model", "--version", "v1.0.0"],
    )


RIVALS = (
    Rival(
        "mlflow",
        "mlflow",
        {
            "--help": ["--help"],
            "path": ["artifacts", "download", "--artifact-uri", "models:/model/1"],
            "ls": ["experiments", "search"],  # its registry has no commands
            "show": ["experiments", "get", "--experiment-id", "0"],
        },
        _run_python(
            "from pathlib import Path\n"
            "from mlflow import MlflowClient\n"
            "client = MlflowClient()\n"
            "Path('files').mkdir()\n"
            "Path('files/model.bin').write_bytes(b'weights')\n"
            "client.create_registered_model('model')\n"
            "client.create_model_version('model', source=str(Path('files').absolute()))\n"
        ),
    ),
    Rival(
        "huggingface-hub",
        "hf",
        {"--help": ["--help"], "path": ["download", "org/model", "config.json"], "ls": ["cache", "ls"]},
        _fill_hub,
    ),
    Rival(
        "dvc",
        "dvc",
        {
            "--help": ["--help"],
            "path": ["get", "--show-url", ".", "model.bin"],
            "ls": ["list", ".", "--dvc-only"],
            "show": ["data", "status"],
        },
        _fill_dvc,
    ),
    Rival(
        "gto",
        "gto",
        {"--help": ["--help"], "path": ["show", "model@latest", "--ref"], "ls": ["show"], "show": ["show", "model"]},
        _fill_gto,
    ),
    Rival(
        "bentoml",
        "bentoml",
        {
            "--help": ["--help"],
            "path": ["models", "get", "model:latest", "-o", "path"],
            "ls": ["models", "list"],
            "show": ["models", "get", "model:latest"],
        },
        _run_python(
            "import bentoml\n"
            "with bentoml.models.create('model') as model:\n"
            "    open(model.path_of('model.bin'), 'wb').write(b'weights')\n"
        ),
    ),
    Rival(
        "trackio",
        "trackio",
        {
            "--help": ["--help"],
            "ls": ["list", "artifacts", "--project", "bench"],
            "show": ["get", "artifact", "--project", "bench", "--name", "model"],
        },
        _run_python(
            "import trackio\n"
            "trackio.init(project='bench', name='run', embed=False, auto_log_gpu=False, auto_log_cpu=False)\n"
            "artifact = trackio.Artifact('model', type='model')\n"
            "artifact.add_file('model.bin')\n"
            "trackio.log_artifact(artifact)\n"
            "trackio.log({'loss': 1.0})\n"
            "trackio.finish()\n"
        ),
    ),
)
