#!/usr/bin/env bash
# Everything that only a machine with a GPU can tell, in one call of less than ten minutes.
#
#   bash benchmarks/gpu_run.sh          builds, tests, sanitizes, measures, profiles
#   bash benchmarks/gpu_run.sh --dry    the same steps on a machine without a GPU, in a minute:
#                                       device cpu, tiny shapes, what needs a GPU left out by name
#
# Results, at most eight files in one folder: report.md and result.json to read and to keep, the
# suite's suite.json, and a log a step. Each step has a time box, none stops the next, and the report
# is written anew after each. The exit status is 1 where a test, a gate or the sanitizer failed.
#
#   OUT=folder          default benchmarks/results/DATE-GPU (--dry: a temporary folder)
#   PYTHON=python3      with torch and pytest; wheels in .whl/ (git-ignored) are put in front of it
#   BUDGET=570          seconds for everything
#   SEQREC_COMMIT=hash  where the tree travels without its .git
#
# What the wheels are for: polars and polars-runtime-32 (seqrec reads logs with them), and the peers
# cut-cross-entropy and liger-kernel. Without a wheel its peer is left out, with the reason.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
BUDGET=${BUDGET:-570}
DRY=0
[ "${1:-}" = --dry ] && DRY=1
if [ $# -gt $DRY ]; then
  echo "gpu_run.sh takes --dry or nothing, not: $*" >&2
  exit 2
fi
export PYTHONUNBUFFERED=1 SEQREC_COMMIT=${SEQREC_COMMIT:-}

if [ $DRY = 0 ]; then
  GPU=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name(0))' 2>/dev/null) || {
    echo "gpu_run.sh: $PYTHON finds no CUDA device; gpu_run.sh --dry runs without one" >&2
    exit 2
  }
  DEVICE=cuda
  NAME=$(printf %s "$GPU" | tr -cs 'A-Za-z0-9\n' - | tr 'A-Z' 'a-z')
  OUT=${OUT:-benchmarks/results/$(date +%F)-$NAME}
else
  DEVICE=cpu
  OUT=${OUT:-$(mktemp -d)}
fi
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
STEPS=$WORK/steps.tsv
: >"$STEPS"
for log in setup tests sanitizer suite ncu; do : >"$OUT/$log.log"; done
rm -f "$OUT/suite.json"

left() { echo $((BUDGET - SECONDS)); }

note() { # STEP STATUS SECONDS LOG FIRST LAST REASON: one step's outcome, and the report anew
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$STEPS"
  "$PYTHON" -m benchmarks.report "$OUT" "$STEPS" "$DRY" >"$WORK/verdict" 2>"$WORK/report.err"
  VERDICT=$?
}

skip() { # STEP REASON
  echo "== $1: skipped, $2"
  note "$1" - 0 "" 0 0 "$2"
}

step() { # STEP LOG LIMIT COMMAND...: runs it for at most LIMIT seconds and what is left of BUDGET
  local name=$1 log=$OUT/$2.log limit=$3 start=$SECONDS first status
  shift 3
  [ "$limit" -gt "$(left)" ] && limit=$(left)
  if [ "$limit" -lt 5 ]; then
    skip "$name" "no time left of $BUDGET s"
    return
  fi
  echo "== $name (at most $limit s): $*"
  first=$(wc -l <"$log")
  printf '== %s: %s\n' "$name" "$*" >>"$log"
  timeout --kill-after=5 "$limit" "$@" >>"$log" 2>&1 </dev/null
  status=$?
  note "$name" "$status" $((SECONDS - start)) "$log" "$first" "$(wc -l <"$log")" ""
  tail -n 3 "$log" | cut -c1-300
}

has() { command -v "$1" >/dev/null 2>&1; }

# ---- what is here --------------------------------------------------------------------------------

if [ $DRY = 0 ] && compgen -G '.whl/*.whl' >/dev/null; then
  step wheels setup 40 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
    --no-cache-dir --upgrade --target "$WORK/site" .whl/*.whl
  export PYTHONPATH=$WORK/site${PYTHONPATH:+:$PYTHONPATH}
else
  skip wheels "$([ $DRY = 1 ] && echo "dry: nothing is installed" || echo "no .whl/*.whl")"
fi

environment() {
  local tool
  for tool in nvidia-smi "nvcc --version" "compute-sanitizer --version" "ncu --version"; do
    echo "-- $tool"
    if has "${tool%% *}"; then $tool; else echo "not here"; fi
  done
  echo "-- commit"
  git log -1 --format='%H %cI' 2>/dev/null || echo "no .git; SEQREC_COMMIT=$SEQREC_COMMIT"
  git status --short -uno 2>/dev/null
  echo "-- seqrec doctor"
  "$PYTHON" -c 'from seqrec.doctor import lines; print(*lines(), sep="\n")'
}
export -f environment has
export PYTHON
step environment setup 60 bash -c environment

# ---- build, tests --------------------------------------------------------------------------------

if [ $DRY = 0 ]; then
  step build setup 110 "$PYTHON" setup.py build_ext --inplace --parallel 8
else
  # compiling is another test's business (tests/seqrec/test_install.py), and not in a shared tree
  step plan setup 60 "$PYTHON" -c \
    'import os, setup; built, out = setup.plan(os.environ); print("would build:", *built, *out)'
fi

WORKERS=()
if [ $DRY = 0 ] && "$PYTHON" -c 'import xdist' 2>/dev/null; then
  WORKERS=(-n 6) # most of the time goes into compiling kernels, one core each
fi
step tests tests 150 "$PYTHON" -m pytest tests -m gpu -q -ra -p no:cacheprovider "${WORKERS[@]}"

# ---- sanitizer -----------------------------------------------------------------------------------

step small_shapes sanitizer 60 "$PYTHON" -m benchmarks.small_shapes --device $DEVICE
for tool in memcheck racecheck; do
  if [ $DRY = 1 ]; then
    skip $tool "dry: compute-sanitizer watches GPUs"
  elif ! has compute-sanitizer; then
    skip $tool "compute-sanitizer is not on the PATH"
  else
    # the suite keeps four minutes; every tensor is an allocation of its own, so that what runs past one is seen
    limit=$(($(left) - 240))
    step $tool sanitizer $((limit < 45 ? limit : 45)) env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool \
      --error-exitcode 99 "$PYTHON" -m benchmarks.small_shapes --device $DEVICE --unchecked
  fi
done

# ---- epochs ---------------------------------------------------------------------------------------

if [ $DRY = 1 ]; then
  step epochs suite 150 "$PYTHON" -m benchmarks.captured_epochs --device cpu --tiny --epochs 1
else
  step epochs suite 60 "$PYTHON" -m benchmarks.captured_epochs --device cuda
fi

# ---- the suite -----------------------------------------------------------------------------------

# catalog_topk has two paths on a GPU: "ours" is what dispatch takes, the other one a rival beside it
# ("seqrec native": the selection in CUDA C++). Where a rival's ratio is below 1x on most shapes, it
# belongs in front, in seqrec_kernels/ops/catalog_topk/__init__.py.
# The sampled losses, recall and re-ranking run in CUDA C++ there, with "seqrec blocked" as the rival:
# what has a ratio below 1x on most shapes should not run.
NCU=40 # seconds kept for the last step
SUITE=$(($(left) - NCU))
LAST_START=$((SUITE > 40 ? SUITE - 35 : 5)) # so that the box is not what ends it
if [ $DRY = 1 ]; then
  step suite suite 150 "$PYTHON" -m benchmarks.run --device cpu --shapes tiny \
    --dtypes float32,bfloat16 --rounds 3 --out "$OUT/suite.json"
else
  step suite suite $SUITE "$PYTHON" -m benchmarks.run --device cuda --seconds $LAST_START \
    --out "$OUT/suite.json"
fi

# ---- ncu -----------------------------------------------------------------------------------------

if [ $DRY = 1 ]; then
  skip ncu "dry: ncu reads a GPU's counters"
elif ! has ncu; then
  skip ncu "ncu is not on the PATH"
else
  # clocks are left alone
  step ncu ncu $NCU ncu --clock-control none --section SpeedOfLight --section Occupancy \
    --section LaunchStats --kernel-name 'regex:_kernel$' --launch-count 24 \
    "$PYTHON" -m benchmarks.small_shapes --device cuda --unchecked --shapes paper
fi

echo
cat "$OUT/report.md" "$WORK/verdict" "$WORK/report.err"
echo "in $OUT after $SECONDS s"
exit "$VERDICT"
