#!/usr/bin/env bash
# Wall seconds of whole epochs on Beauty with two threads, validation included, on a quiet machine:
#   benchmarks/epoch_seconds.sh DATA OUT [further words for `seqrec train`]
# DATA holds Beauty.txt. OUT/METHOD-PRECISION is a run of each: sasrec (positions, width 64, the
# defaults else) and fenrec (the authors' setting, its own loss from the first epoch on), in both
# precisions. EPOCHS=3; METHODS and PRECISIONS choose; KEEP=NAME keeps the runs under
# benchmarks/results/NAME; SEQREC="seqrec" is the command. It prints, for each run, the seconds of
# its epochs: steps, clusters and validation together.
set -euo pipefail
data=$1 out=$2
shift 2
read -ra seqrec <<<"${SEQREC:-seqrec}"
epochs=${EPOCHS:-3}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

for method in ${METHODS:-sasrec fenrec}; do
  case $method in
    sasrec) words=(--set encoder.dim=64) ;;
    fenrec) words=(--preset official-beauty --set method.warmup_epochs=0) ;;
    *) words=(--preset official-beauty --set) ;;
  esac
  for precision in ${PRECISIONS:-float32 bfloat16}; do
    directory="$out/$method-$precision"
    mkdir -p "$out"
    "${seqrec[@]}" train "$method" --data "$data/Beauty.txt" --out "$directory" --overwrite \
      --epochs "$epochs" "${words[@]}" "training.precision=$precision" "$@"
    if [ -n "${KEEP:-}" ]; then
      "$(dirname "$0")/keep.sh" "$directory" "$KEEP/$method-$precision"
    fi
    "${PYTHON:-python3}" - "$directory" <<'EOF'
import json, pathlib, sys

log = pathlib.Path(sys.argv[1], "log.jsonl").read_text().splitlines()
epochs = [e for e in map(json.loads, log) if e["event"] == "epoch"]
each = [round(e["seconds"] + e["valid_seconds"], 2) for e in epochs]
print(f"{sys.argv[1]}: {each} s an epoch, of these before the first step "
      f"{[e['prepare_seconds'] for e in epochs]}, validation {[e['valid_seconds'] for e in epochs]}")
EOF
  done
done
