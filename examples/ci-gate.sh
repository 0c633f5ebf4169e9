#!/usr/bin/env bash
# Build a proven model for every device of a product, and fail if any of them loses more than one point of accuracy.
set -euo pipefail

out=${1:-build}
eqdeploy export --profile onnxruntime-x86 --profile snpe-dsp --profile tensorrt \
    --max-drop 0.01 --force --out "$out" --json "$out.json"
python3 - "$out.json" <<'SUMMARY'
import json
import sys

document = json.load(open(sys.argv[1], encoding="utf-8"))
for artifact in document["result"]:
    print(f"{artifact['directory']}: {artifact['report']['verdict']}, {artifact['report']['accuracy']['summary']}")
SUMMARY
