#!/usr/bin/env bash
# Keep a run as evidence: its configuration, result and log, without weights, ranks or state.
#   benchmarks/keep.sh runs/sasrec-toys/seed-0 sasrec-toys/seed-0
set -euo pipefail
target="$(dirname "$0")/results/$2"
mkdir -p "$target"
cp "$1"/{config.toml,result.json,log.jsonl} "$target"
