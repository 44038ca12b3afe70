#!/usr/bin/env bash
# Has the training of one worker record its next ten steps, while it goes on.
#
#   profile.sh --name NAME --zone ZONE [--worker I] [--project PROJECT] [--dry-run]
#
#   --worker I   which worker of the slice (default: 0); of several slices name one, such as NAME-2
#
# The trace comes to DIR/profile, DIR being the training's --workdir; look at it with Perfetto or xprof (fetch.sh).

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_options "$@"
set -- "${REST[@]}"
worker=0
while [[ $# -gt 0 ]]; do
  case $1 in
    --worker) worker=$(value "$@") || exit; shift ;;
    *) refuse "$1 is no option" ;;
  esac
  shift
done
place
[[ $worker =~ ^[0-9]+$ ]] || refuse "--worker is its number, not $worker"
[[ $SLICES == 1 ]] || refuse 'a host is profiled alone: name one slice, and no --slices'

# The training in a container, if there is one. The bracket keeps pkill from finding the shell that runs it.
run gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker "$worker" --command \
  'sudo docker kill --signal USR2 jmm-train 2> /dev/null || pkill -USR2 -f "[j]mm train"'
