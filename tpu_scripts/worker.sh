#!/usr/bin/env bash
# Trains on this worker, and again where that helps. launch.sh starts it on each.
#
#   worker.sh RESTARTS FILE.py --workdir DIR [--field.sub value …]
#
# It starts again when the worker was told to stop and has saved (143), was killed (137), or lost another (75; 134 where
# jax noticed first).
# Everything else is final: 0 is the end of the training, and any other code is a mistake that would come again.

set -euo pipefail

if [[ $# -lt 2 || $1 == --help ]]; then
  awk 'NR > 1 && /^#/ { sub(/^# ?/, ""); print; next } NR > 1 { exit }' "$0"
  [[ ${1:-} == --help ]] && exit 0
  exit 2
fi
restarts=$1
shift
exec 9> "${TMPDIR:-/tmp}/jmm-train.lock"
flock --nonblock 9 || {
  echo 'worker.sh: a training runs on this worker already; stop it first' >&2
  exit 1
}
jmm=${JMM:-$HOME/env/bin/jmm}
for ((count = 0; ; count++)); do
  code=0
  "$jmm" train "$@" --cluster || code=$?
  case $code in
    75 | 134 | 137 | 143) ;;
    *) break ;;
  esac
  if [[ $count -ge $restarts ]]; then
    echo "worker.sh: ended with $code after $count restarts, which is the limit" >&2
    break
  fi
  echo "worker.sh: ended with $code; starting again ($((count + 1)) of at most $restarts)" >&2
  sleep "${PAUSE:-10}"
done
exit "$code"
