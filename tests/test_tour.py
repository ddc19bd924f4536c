"""The tour of `make demo`, on the real model: what it prints is what it promises."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cli.demo import tour
from cli.main import main
from registry import Registry

STEPS = 4  # the demo takes more of them, so that its model talks like a pirate
AT_HAND = Path(__file__).parent.parent / ".demo" / Path(tour.GGUF).name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_tour_keeps_its_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tour, "STEPS", STEPS)
    if AT_HAND.is_file():  # `make demo` fetched it already
        shutil.copy(AT_HAND, tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--folder", str(tmp_path)])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert out.count("error[architecture-mismatch]") == 2
    assert "rotary_base" in out and "n_heads" in out
    assert re.search(r"└── pirate@v1  finetuned  [0-9]+ of 210 matrices changed  step 4  @best", out)

    workshop = tmp_path / "lensreg-tour"
    registry = Registry(str(workshop / "registry.db"), workshop / "store")
    assert [model.name for model in registry.models()] == ["pirate", "smollm2"]
    for ref in ("smollm2", f"pirate@step-{STEPS}"):
        version = registry.version(ref)
        assert version.is_verified
        for measured in version.parity.values():
            assert measured.dtype == "float64" and measured.n_samples is not None and measured.n_samples >= 64
            floor = measured.details["noise_floor"]
            assert measured.value is not None and 0 < measured.value <= max(1e-4, 10 * floor)
            assert f"noise floor {floor:.1e}" in out
    registry.close()
