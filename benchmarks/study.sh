#!/usr/bin/env bash
# The study of docs/study.md: every method at one width and one budget, on two logs and on the
# synthetic one, and two splits of ml-100k.
#   benchmarks/study.sh DATA OUT [further words for `seqrec train`, such as --device cuda]
# DATA holds Beauty.txt, Toys_and_Games.txt, ml-100k.inter; what is missing is left out and named.
# Call it again after a stop: finished runs are kept, others go on where they stood.
# SETS="synthetic Beauty Toys_and_Games ml-100k" and ROWS (all) choose; SEQREC="seqrec" is the command.
set -euo pipefail
data=$1 out=$2
shift 2
read -ra seqrec <<<"${SEQREC:-seqrec}"
. "$(dirname "${BASH_SOURCE[0]}")/train_or_resume.sh"

width="encoder.dim=64"
prefixes="training.epochs=12 training.patience=12"
fenrec="method.gamma=0.2 method.contrast=hard-negative method.warmup_epochs=3"
unmixed="method.mask_same=true method.mix_weight=0"
# name of the row, method, seeds, what differs from the method's defaults
rows=(
  "sasrec sasrec 0,1,2 training.epochs=40"
  "sasrec-prefixes sasrec 0 method.rows=prefixes $prefixes"
  "cl4srec cl4srec 0 $prefixes"
  "duorec duorec 0 $prefixes"
  "icsrec icsrec 0 $prefixes"
  "fenrec fenrec 0 $prefixes method.warmup_epochs=3"
  "cl4srec-fenrec-unmixed cl4srec 0 $prefixes $fenrec $unmixed"
  "duorec-fenrec-unmixed duorec 0 $prefixes $fenrec $unmixed"
)
# FENRec's loss whole, on frameworks without intent clusters: it runs away; once is enough to see it
runaway=(
  "cl4srec-fenrec cl4srec 0 $prefixes $fenrec"
  "duorec-fenrec duorec 0 $prefixes $fenrec"
  "cl4srec-fenrec-masked cl4srec 0 $prefixes $fenrec method.mask_same=true"
)
# minutes on the log whose best possible figures are known
quick="encoder.dropout=0.2 training.lr=0.005 training.epochs=16 training.patience=16"
known=(
  "sasrec-prefixes sasrec 0 method.rows=prefixes $quick"
  "cl4srec cl4srec 0 $quick"
  "duorec duorec 0 $quick"
  "icsrec icsrec 0 $quick method.clusters=64"
  "fenrec fenrec 0 $quick method.clusters=64 method.warmup_epochs=4"
)
splits=(
  "leave-one-out sasrec 0,1,2 data.split=leave-one-out"
  "global-time sasrec 0,1,2 data.split=global-time"
)

finished=()
for set in ${SETS:-synthetic Beauty Toys_and_Games ml-100k}; do
  case $set in
    synthetic) file=synthetic list=("${known[@]}") ;;
    ml-*) file="$data/$set.inter" list=("${splits[@]}") ;;
    Beauty) file="$data/$set.txt" list=("${rows[@]}" "${runaway[@]}") ;;
    *) file="$data/$set.txt" list=("${rows[@]}") ;;
  esac
  if [ "$file" != synthetic ] && [ ! -e "$file" ]; then
    echo "left out: there is no $file" >&2
    continue
  fi
  for row in "${list[@]}"; do
    read -r name method seeds changes <<<"$row"
    if [ -n "${ROWS:-}" ] && [[ " $ROWS " != *" $name "* ]]; then
      continue
    fi
    read -ra changes <<<"$changes"
    for seed in ${seeds//,/ }; do
      directory="$out/$set/$name/seed-$seed"
      train_or_resume "$directory" "$method" --data "$file" --seed "$seed" \
        --set "$width" "${changes[@]}" "$@"
      finished+=("$directory")
    done
  done
done
[ ${#finished[@]} = 0 ] || "${seqrec[@]}" compare "${finished[@]}"
