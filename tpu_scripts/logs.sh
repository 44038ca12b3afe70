#!/usr/bin/env bash
# Follows what the workers print.
#
#   logs.sh --name NAME --zone ZONE [--slices N] [--project PROJECT] [--lines N] [--once] [--dry-run]
#
#   --lines N   how many of the last lines to begin with (default: 20)
#   --once      print them, and do not follow

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_options "$@"
set -- "${REST[@]}"
lines=20 follow='--follow=name --retry'
while [[ $# -gt 0 ]]; do
  case $1 in
    --lines) lines=$(value "$@") || exit; shift ;;
    --once) follow='' ;;
    *) refuse "$1 is no option" ;;
  esac
  shift
done
place
[[ $lines =~ ^[0-9]+$ ]] || refuse "--lines is how many, not $lines"

command="tail --lines $lines${follow:+ $follow} train.log | sed \"s/^/\$(hostname): /\""
if [[ ! $follow || $SLICES == 1 || $DRY_RUN ]]; then
  on_workers "$command"
else # all slices at once
  for node in $(nodes); do
    gcloud compute tpus tpu-vm ssh "$node" "${PLACE[@]}" --worker all --command "$command" &
  done
  wait
fi
