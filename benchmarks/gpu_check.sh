#!/usr/bin/env bash
# All that needs a CUDA GPU: its tests, the operations on masks, the cost of a step, the sampler beside diffusers'
# pipelines, and networks on torch's 2:4 kernels, as one dated table.
#
#   bash benchmarks/gpu_check.sh [FOLDER]      # default: benchmarks/gpu; PYTHON names another interpreter than python
#
# BATCHES, COMPILED (batch sizes with compiled networks), IMAGES, PIPELINES (batch sizes of diffusers') and ROUNDS change
# what is measured.
# Needs torch, torchvision, diffusers, torch-fidelity, scikit-learn, safetensors, typer, pandas and pytest; neither Ray nor
# Optuna. Takes about ten minutes on an H100. --quick first makes it a trial of the script itself: one batch size and few
# images.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
batches=${BATCHES:-16 32 64 128} compiled=${COMPILED:-32 128}
images=${IMAGES:-512} pipelines=${PIPELINES:-256 512} rounds=${ROUNDS:-3}
if [ "${1:-}" = --quick ]; then
    shift
    batches="16" compiled="16" images=64 pipelines="64" rounds=1
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
    # Other versions of torch than the tested ones warn of other things.
    "$python" -m pytest -q --tb=line --show-capture=no -W default -p no:cacheprovider tests/test_gpu.py tests/test_kernels.py 2>&1 | tail -n 20 || true
    "$python" -W ignore -m benchmarks.mask_operations
    step_cost=("$python" -W ignore -m benchmarks.step_cost --networks cifar10 --device cuda --rounds "$rounds")
    "${step_cost[@]}" --batch-sizes "$batches" --precision bfloat16
    "${step_cost[@]}" --batch-sizes "$compiled" --precision bfloat16 --compile
    "${step_cost[@]}" --batch-sizes "$batches" --precision float32
    "$python" -W ignore -m benchmarks.sampling_speed --network cifar10 --device cuda --samplers "ddim:100" \
        --images "$images" --batch-sizes "$pipelines" --rounds "$rounds"
    "$python" -W ignore -m benchmarks.latency || [ $? -eq 2 ] # a GPU without sparse tensor cores
} | tee "$report.part"
mv "$report.part" "$report"
echo "written: $report"
