#!/bin/sh
# Everything worth knowing about a device in ten minutes: bench/gpu.sh [DEVICE] [OUT.json]. Results are one JSON.
# It needs `make` to have run once; exit status 1 if a check or a test fails.
set -u
device=${1:-cuda}
out=${2:-gpu.json}
cd "$(dirname "$0")/.." || exit 2
.venv/bin/python bench/gpu.py --device "$device" --out "$out" --budget 420 || exit 2
tests=0
timeout 150 .venv/bin/python -m pytest -q -m gpu tests/nowcast_server tests/trainer_worker/test_snapshots.py -k "not all_is_well" || tests=1
.venv/bin/python - "$out" "$tests" <<'END'
import json, pathlib, sys
path, tests = pathlib.Path(sys.argv[1]), sys.argv[2] == "0"
report = json.loads(path.read_text())
report["tests_ok"] = tests
path.write_text(json.dumps(report, indent=1) + "\n")
print(f"{path}: selftest {'ok' if report['selftest']['ok'] else 'FAILED'}, tests {'ok' if tests else 'FAILED'}")
sys.exit(0 if tests and report["selftest"]["ok"] else 1)
END
