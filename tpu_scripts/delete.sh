#!/usr/bin/env bash
# Deletes slices, and the queued resource that made them. What lies on their disks is lost.
#
#   delete.sh --name NAME --zone ZONE [--slices N] [--queued] [--project PROJECT] [--dry-run]
#
#   --queued   they came through a queued resource, as several slices and reserved ones always do

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_options "$@"
set -- "${REST[@]}"
queued=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --queued) queued=1 ;;
    *) refuse "$1 is no option" ;;
  esac
  shift
done
place
if [[ $queued || $SLICES != 1 ]]; then
  run gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
else
  run gcloud compute tpus tpu-vm delete "$NAME" "${PLACE[@]}" --quiet
fi
