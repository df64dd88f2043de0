#!/usr/bin/env bash
# Runs the stages of this folder in order, each for a number of minutes. Interrupted stages resume; finished ones don't run.
#
#   bash benchmarks/cifar10/run.sh OUT STAGE=MINUTES ... [-- IMAGES ...]
#   bash benchmarks/cifar10/run.sh results dense=5 features=0.7 search=3.5 methods=2 check=1.5 -- train-1.zip train-2.zip test.zip
#   bash benchmarks/cifar10/run.sh results --tiny [-- IMAGES ...]              # a rehearsal of all but `check` on a CPU
#
# After each stage OUT gets results.tar.gz (tables, time lines, grids, records, features, logs) and the network in parts
# below 16 MiB (cat ddpm_cifar10_small.tar.* | tar x). Stages: dense, features, search, methods, check (gpu_check.sh).
# WORK: the stages' folder, default results/cifar10_benchmark. MODEL: a dense network, default
# pretrained/ddpm_cifar10_small where there is one and stage dense isn't named. PYTHON: the interpreter. After a stage that
# fails or runs out of time the next ones still run.
set -uo pipefail
out=$(realpath -m "${1:?OUT is missing; allowed: a folder for the results}"); shift
cd "$(dirname "$0")/../.."
python=${PYTHON:-python} work=${WORK:-results/cifar10_benchmark}
declare -A minutes=()
images=() tiny=() order=()
while [ $# -gt 0 ]; do
    case $1 in
        --) shift; for path in "$@"; do images+=(--images "$path"); done; break ;;
        --tiny) tiny=(--tiny); minutes=([dense]=2 [features]=0.03 [search]=20 [methods]=10); order=(dense features search methods)
            DENSE_OPTIONS=${DENSE_OPTIONS:---max-steps 20} ;;
        dense=* | features=* | search=* | methods=* | check=*) minutes[${1%%=*}]=${1#*=}; order+=("${1%%=*}") ;;
        *) echo "error: $1 is no stage; allowed: dense=6, features=1, search=4, methods=3, check=2, --tiny" >&2; exit 2 ;;
    esac
    shift
done
mkdir -p "$out" "$work"
model=()
if [ -n "${MODEL:-}" ]; then
    model=(--model "$MODEL")
elif [ -z "${minutes[dense]:-}" ] && [ ! -d "$work/ddpm_cifar10_small" ] && [ -d pretrained/ddpm_cifar10_small ]; then
    model=(--model pretrained/ddpm_cifar10_small)
fi
common=(--work "$work" "${images[@]}" "${tiny[@]}")

stage() {
    local name=$1; shift
    echo "=== $name: ${minutes[$name]} minutes, begun at $(date +%H:%M:%S)"
    "$python" -W ignore -m "$@" --minutes "${minutes[$name]}" "${common[@]}" 2>&1 | tee -a "$work/$name.log"
    local status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || { echo "=== $name ended with status $status"; failed=1; }
}

failed=0
for name in "${order[@]}"; do
    case $name in
        dense) stage dense benchmarks.cifar10.train_dense ${DENSE_OPTIONS:-} ;;
        features) stage features benchmarks.cifar10.train_features ;;
        search) stage search benchmarks.cifar10.search "${model[@]}" ${SEARCH_OPTIONS:-} ;;
        methods) stage methods benchmarks.cifar10.methods "${model[@]}" ${METHODS_OPTIONS:-} ;;
        check)
            echo "=== check: ${minutes[check]} minutes, begun at $(date +%H:%M:%S)"
            BATCHES=${BATCHES:-32 128} COMPILED=${COMPILED:-32} IMAGES=${IMAGES:-256} PIPELINES=${PIPELINES:-256} \
                ROUNDS=${ROUNDS:-1} PYTHON=$python timeout "${minutes[check]}m" \
                bash benchmarks/gpu_check.sh "$work/report/check" || failed=1
            ;;
    esac
    # After every stage: what is done is safe if the machine goes away in the next.
    cp -r "$work"/features.pt "$work"/features.json "$work"/methods.jsonl "$work/report/" 2>/dev/null
    tar czf "$out/results.tar.gz" -C "$work" report $(cd "$work" && ls ./*.log 2>/dev/null)
    if [ "$name" = dense ] && [ -d "$work/ddpm_cifar10_small" ]; then
        tar cf - -C "$work" ddpm_cifar10_small | split -b 15M - "$out/ddpm_cifar10_small.tar."
    fi
done
cat "$work"/report/[0-9]*.md > "$work/report/cifar10.md" 2>/dev/null && cat "$work/report/cifar10.md"
tar czf "$out/results.tar.gz" -C "$work" report $(cd "$work" && ls ./*.log 2>/dev/null)
du -sh "$out"/*
exit "$failed"
