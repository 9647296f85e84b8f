#!/usr/bin/env bash
# R2NS and the samplers it is measured against, on the published by-user split of Beauty.
#   benchmarks/r2ns_beauty.sh DATA OUT [further words for `seqrec train`, such as --device cuda]
# DATA holds Beauty_by_user.txt and Beauty_by_user.roles.txt. Call it again after a stop: finished
# runs are kept, others go on where they stood. SEEDS="0 1 2" and ROWS (all) choose; EPOCHS=60;
# SEQREC="seqrec" is the command.
#
# Encoder, batch, learning rate, protocol and selection are the published ones. A row is a sequence
# of which every place trains, seven times cheaper than its prefixes one by one: 128 sequences hold
# about 1,000 targets, as a published batch does. The curriculum is as published, but begins after
# 10 epochs and narrows by k = .15, the fastest published: M is 200 in epoch 11 and 5 from epoch 38.
set -euo pipefail
data=$1 out=$2
shift 2
read -ra seqrec <<<"${SEQREC:-seqrec}"
. "$(dirname "${BASH_SOURCE[0]}")/train_or_resume.sh"
file="$data/Beauty_by_user.txt" epochs=${EPOCHS:-60}

shared=(
  data.split=by-user "data.roles=$data/Beauty_by_user.roles.txt"
  encoder.name=sasrec-postnorm encoder.dim=64 encoder.layers=2 encoder.heads=2 encoder.dropout=0.5
  method.rows=positions training.batch=128 training.lr=0.001 training.clip_norm=0
  "training.epochs=$epochs" "training.patience=$epochs"
  evaluation.seen=zero evaluation.select=NDCG@20
)
# name of the row, method, what differs; dns+ as in its author's log of this split, and the full
# softmax, which is first to overfit, stops early
rows=(
  "rns sasrec-sampled negatives.sampler=uniform"
  "full-softmax sasrec training.patience=15"
  "dns+ sasrec-sampled negatives.sampler=dns+ negatives.top_m=10"
  "r2ns r2ns method.warmup_epochs=10 negatives.decay=0.15"
)

finished=()
for seed in ${SEEDS:-0 1 2}; do
  for row in "${rows[@]}"; do
    read -r name method changes <<<"$row"
    if [ -n "${ROWS:-}" ] && [[ " $ROWS " != *" $name "* ]]; then
      continue
    fi
    read -ra changes <<<"$changes"
    directory="$out/$name/seed-$seed"
    train_or_resume "$directory" "$method" --data "$file" --seed "$seed" \
      --set "${shared[@]}" "${changes[@]}" "$@"
    finished+=("$directory")
  done
done
[ ${#finished[@]} = 0 ] || "${seqrec[@]}" compare "${finished[@]}"
