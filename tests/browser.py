"""What a real browser draws of a page."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

needs_browser = pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser: chromium")


def draw_page(page: Path, folder: Path, scheme: str, height: int) -> Any:
    """Draw a page in the `light` or the `dark`; return its pixels, `(height, 1000, 3)`, from 0 to 1."""
    from matplotlib.image import imread

    dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    shot = folder / "shot.png"
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}", f"--window-size=1000,{height}", f"--screenshot={shot}", *dark,
        page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return imread(shot)[..., :3]
