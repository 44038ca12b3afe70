#!/usr/bin/env bash
# Copies a folder from the first worker to here: a workdir, its report, a profile.
#
#   fetch.sh --name NAME --zone ZONE --from DIR --to FOLDER [--slices N] [--project PROJECT] [--dry-run]

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_options "$@"
set -- "${REST[@]}"
from='' to=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --from) from=$(value "$@") || exit; shift ;;
    --to) to=$(value "$@") || exit; shift ;;
    *) refuse "$1 is no option" ;;
  esac
  shift
done
place
[[ $from ]] || refuse '--from DIR is missing'
[[ $to ]] || refuse '--to FOLDER is missing'
[[ ! -e $to ]] || refuse "$to is there already: name a new folder"
first=$(nodes | head -n 1)
run gcloud compute tpus tpu-vm scp --recurse "$first:$from" "$to" "${PLACE[@]}" --worker 0
