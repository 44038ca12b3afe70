#!/usr/bin/env bash
# Starts a training on every worker, in the background; it starts again after a preemption or a lost worker.
#
#   launch.sh --name NAME --zone ZONE [--slices N] [--project PROJECT] [--restarts N] [--dry-run] \
#       -- experiments/FILE.py --workdir DIR [--field.sub value …]
#
#   --restarts N     how often at most (default: 100)
#
# DIR must be one folder that all workers see, such as a mounted bucket. What stands behind -- goes to jmm train.
# Look at it with logs.sh; a second launch while one runs is refused by the workers.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_options "$@"
set -- "${REST[@]}"
restarts=100
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --restarts) restarts=$(value "$@") || exit; shift ;;
    *) refuse "$1 is no option; what is for jmm train stands behind --" ;;
  esac
  shift
done
place
check_training "$restarts" "$@"
shift

on_workers "cd jmm && nohup tpu_scripts/worker.sh $restarts $(printf '%q ' "$@")> ~/train.log 2>&1 < /dev/null &"
