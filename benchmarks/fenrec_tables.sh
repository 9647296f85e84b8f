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

# name of the row, method, what differs from the preset
rows=(
  "sasrec sasrec"
  "icsrec icsrec"
  "fenrec fenrec"
  "fenrec-without-soft-labels fenrec method.gamma=0"
  "fenrec-without-hard-negatives fenrec method.contrast=info-nce"
)

run() {  # DIRECTORY METHOD FILE PRESET SEED [key=value] [words ...]
  local directory=$1 method=$2 file=$3 preset=$4 seed=$5 change=$6
  shift 6
  if [ -e "$directory/result.json" ]; then
    echo "finished before: $directory" >&2
  elif [ -e "$directory/config.toml" ]; then
    "${seqrec[@]}" resume "$directory"
  else
    "${seqrec[@]}" train "$method" --data "$file" --preset "$preset" --seed "$seed" \
      --out "$directory" ${change:+--set "$change"} "$@"
  fi
}

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
      mkdir -p "$(dirname "$directory")"
      run "$directory" "$method" "$file" "$preset" "$seed" "$change" "$@"
      finished+=("$directory")
    done
  done
done
[ ${#finished[@]} = 0 ] || "${seqrec[@]}" compare "${finished[@]}"
