#!/usr/bin/env bash
# FENRec's Tables 1 and 3 (AAAI 2025), with the authors' settings: every run, then one table.
#   benchmarks/fenrec_tables.sh DATA OUT [further words for `seqrec train`, such as --device cuda]
# DATA holds Sports_and_Outdoors.txt, Beauty.txt, Toys_and_Games.txt, Yelp.txt; what is missing is
# left out and named. Call it again after a stop: finished runs are kept, others go on where they
# stood. SEEDS="0 1 2 3 4" by default; SEQREC="seqrec" is the command.
set -euo pipefail
data=$1 out=$2
shift 2
read -ra seqrec <<<"${SEQREC:-seqrec}"
. "$(dirname "${BASH_SOURCE[0]}")/train_or_resume.sh"

# name of the row, method, what differs from the preset
rows=(
  "sasrec sasrec"
  "icsrec icsrec"
  "fenrec fenrec"
  "fenrec-without-soft-labels fenrec method.gamma=0"
  "fenrec-without-hard-negatives fenrec method.contrast=info-nce"
)

finished=()
for set in Sports_and_Outdoors:sports Beauty:beauty Toys_and_Games:toys Yelp:yelp; do
  file="$data/${set%:*}.txt" preset="official-${set#*:}"
  if [ ! -e "$file" ]; then
    echo "left out: there is no $file" >&2
    continue
  fi
  for seed in ${SEEDS:-0 1 2 3 4}; do
    for row in "${rows[@]}"; do
      read -r name method change <<<"$row"
      if [ "$method" = icsrec ] && [ "$preset" = official-yelp ]; then
        continue  # its authors give no setting for Yelp
      fi
      directory="$out/${preset#official-}/$name/seed-$seed"
      train_or_resume "$directory" "$method" --data "$file" --preset "$preset" --seed "$seed" \
        ${change:+--set "$change"} "$@"
      finished+=("$directory")
    done
  done
done
[ ${#finished[@]} = 0 ] || "${seqrec[@]}" compare "${finished[@]}"
