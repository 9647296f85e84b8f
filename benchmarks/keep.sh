#!/usr/bin/env bash
# Keep a run as evidence: its configuration, result and log, without weights and state.
#   benchmarks/keep.sh [--ranks] runs/sasrec-toys/seed-0 sasrec-toys/seed-0
# --ranks keeps ranks/ too, compressed (of 20,000 users about 0.1 MB): what intervals need.
set -euo pipefail
ranks=0
if [ "${1:-}" = --ranks ]; then
  ranks=1
  shift
fi
target="$(dirname "$0")/results/$2"
mkdir -p "$target"
cp "$1"/{config.toml,result.json,log.jsonl} "$target"
[ $ranks = 1 ] || exit 0
mkdir -p "$target/ranks"
for part in valid test; do
  "${PYTHON:-python3}" -c 'import sys, numpy as np
with np.load(sys.argv[1]) as ranks:
    np.savez_compressed(sys.argv[2], **ranks)' {"$1","$target"}/ranks/$part.npz
done
