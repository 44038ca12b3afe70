# shellcheck shell=bash
# What the scripts of this folder share; each sources it first.
#
# A node is one slice. Several slices that train as one are the nodes NAME-0, NAME-1, …

set -euo pipefail

# shellcheck disable=SC2034  # the scripts that source this use it
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DRY_RUN=${DRY_RUN:-}
NAME='' ZONE='' PROJECT='' SLICES=1
REST=()

# The comment at the head of the script that calls it.
usage() {
  awk 'NR > 1 && /^#/ { sub(/^# ?/, ""); print; next } NR > 1 { exit }' "$0"
}

# One sentence, and the exit code for a wrong command.
refuse() {
  printf '%s: %s; see --help\n' "$(basename "$0")" "$1" >&2
  exit 2
}

# Runs a command, or prints it as a shell would read it.
run() {
  if [[ $DRY_RUN ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# The value behind an option.
value() {
  [[ $# -ge 2 && $2 != --* ]] || refuse "$1 needs a value"
  printf '%s' "$2"
}

# Reads the options that all scripts know; the others are left in REST.
read_options() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      -h | --help)
        usage
        exit 0
        ;;
      --dry-run) DRY_RUN=1 ;;
      --name) NAME=$(value "$@") || exit; shift ;;
      --zone) ZONE=$(value "$@") || exit; shift ;;
      --project) PROJECT=$(value "$@") || exit; shift ;;
      --slices) SLICES=$(value "$@") || exit; shift ;;
      --)
        REST+=("$@")
        break
        ;;
      *) REST+=("$1") ;;
    esac
    shift
  done
  [[ $NAME ]] || refuse '--name NAME is missing'
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || refuse "--slices is how many there are, not $SLICES"
}

# Where the slices are, as gcloud is told.
place() {
  [[ $ZONE ]] || refuse '--zone ZONE is missing'
  PLACE=(--zone "$ZONE")
  [[ ! $PROJECT ]] || PLACE+=(--project "$PROJECT")
}

# Names of the slices.
nodes() {
  if [[ $SLICES == 1 ]]; then
    printf '%s\n' "$NAME"
  else
    local i
    for ((i = 0; i < SLICES; i++)); do printf '%s-%d\n' "$NAME" "$i"; done
  fi
}

# Runs a line of shell on every worker of every slice.
on_workers() {
  local node
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" "${PLACE[@]}" --worker all --command "$1"
  done
}

# How often a training may start again at most; and what is for jmm train, behind --: a file and a workdir.
check_training() {
  [[ $1 =~ ^[0-9]+$ ]] || refuse "--restarts is how often at most, not $1"
  [[ $# -ge 3 ]] || refuse 'nothing stands behind --: FILE.py --workdir DIR'
  [[ " $* " == *' --workdir '* ]] || refuse '--workdir DIR is missing behind --'
}
