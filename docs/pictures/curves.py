"""Draw curves.svg from the benchmark's runs: `python docs/pictures/curves.py [RUNS]`, or from those kept with the project."""

import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PROBLEMS: Final = ("bible", "colour", "diamonds", "fm-bn")
NAMES: Final = {
    "adam+ema": "Adam",
    "ademamix+ema": "AdEMAMix",
    "muon+ema": "Muon",
    "spectral+ema": "Nowcast",
    "spectral+muon+ema": "Nowcast on Muon",
}

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "bench/acceleration"))
    import report

    report.COLUMNS = 2
    runs = report.read(Path(sys.argv[1]) if len(sys.argv) > 1 else report.KEPT)
    shown = {name: {NAMES[arm]: curves for arm, curves in runs[name].items() if arm in NAMES} for name in PROBLEMS}
    report.draw(shown, ROOT / "docs/pictures/curves.svg", only=list(NAMES.values()))
