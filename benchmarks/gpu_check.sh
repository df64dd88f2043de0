#!/usr/bin/env bash
# All that needs a CUDA GPU: its tests, the cost of a step, and the sampler beside diffusers' pipelines, as one dated table.
#
#   bash benchmarks/gpu_check.sh [FOLDER]      # default: benchmarks/gpu; PYTHON names another interpreter than python
#
# Needs torch, torchvision, diffusers, torch-fidelity, scikit-learn, safetensors, typer, pandas and pytest; neither Ray nor
# Optuna. --quick first makes it a trial of the script itself: one batch size and few images.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
batches="16 32 64 128" images=1024 rounds=9
if [ "${1:-}" = --quick ]; then
    shift
    batches="16" images=64 rounds=2
fi
folder=${1:-benchmarks/gpu}
mkdir -p "$folder"
"$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "error: no CUDA GPU; allowed: a machine with one")'
device=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')
report=$folder/$(date +%Y-%m-%d)-$device.md

{
    echo "# $device, $(date +%Y-%m-%d)"
    echo
    "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
    echo
    "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py 2>&1 | tail -n 20 || true
    for precision in float32 bfloat16; do
        "$python" -m benchmarks.step_cost --device cuda --precision "$precision" --batch-sizes "$batches" --rounds "$rounds"
    done
    "$python" -m benchmarks.sampling_speed --network cifar10 --device cuda --samplers "ddim:100" --images "$images" \
        --batch-sizes "64 256 1024" --rounds 3
} | tee "$report.part"
mv "$report.part" "$report"
echo "written: $report"
