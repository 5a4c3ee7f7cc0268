#!/bin/sh
# What to run on a machine with a GPU, in two calls of about ten minutes each:
#   bench/gpu.sh tests [FOLDER]    the tests that need a GPU
#   bench/gpu.sh bench [FOLDER]    the embedded model and ResNet-101, without and with CUDA graphs
# Logs and tables go to FOLDER, by default build/gpu. PYTHON names another interpreter.
set -eu

step=${1:-}
folder=${2:-build/gpu}
python=${PYTHON:-python3}
mkdir -p "$folder"

"$python" - >"$folder/gpu.txt" <<'EOF'
import sys

import torch
import torchvision

if not torch.cuda.is_available():
    sys.exit("bench/gpu.sh: PyTorch finds no GPU here")
print(torch.cuda.get_device_name(), "torch", torch.__version__, "torchvision", torchvision.__version__)
EOF
cat "$folder/gpu.txt"

case $step in
tests)
    # shellcheck disable=SC2046 - one word for each file
    "$python" -m pytest -q -rs --junit-xml "$folder/tests.xml" \
        $(grep -l "cuda.is_available" tests/unit/*.py) >"$folder/tests.log" 2>&1 || failed=1
    tail -n 40 "$folder/tests.log"
    exit ${failed:-0}
    ;;
bench)
    resnet="$folder/resnet101"
    # Random weights: the time does not depend on them, and the published ones are a download.
    [ -d "$resnet" ] || "$python" -m bench.random_weights resnet101 "$resnet"
    for model in embedded "$resnet"; do
        "$python" -m bench --model "$model" --output "$folder/$(basename "$model")-results" \
            --peers limit loop ours ours-graphs litserve-ours --encodings png dense \
            --clients 1 8 32 --rounds 2 --images 300 --seconds 6
    done
    ;;
*)
    echo "bench/gpu.sh: expected tests or bench, got '$step'" >&2
    exit 2
    ;;
esac
