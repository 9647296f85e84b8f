# For scripts that make many runs; sourced. `seqrec` is an array, the command.
# train_or_resume DIRECTORY [words of `seqrec train`]: a finished run is kept, one that was stopped
# goes on where it stood.
train_or_resume() {
  local directory=$1
  shift
  if [ -e "$directory/result.json" ]; then
    echo "finished before: $directory" >&2
  elif [ -e "$directory/config.toml" ]; then
    "${seqrec[@]}" resume "$directory"
  else
    mkdir -p "$(dirname "$directory")"
    "${seqrec[@]}" train "$@" --out "$directory"
  fi
}
