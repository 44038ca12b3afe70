#!/usr/bin/env bash
# Copies the project to every worker and installs it there, in a virtual environment of its own.
#
#   install.sh --name NAME --zone ZONE [--slices N] [--project PROJECT] [--extra EXTRAS] [--dry-run]
#
#   --extra EXTRAS   extras beside tpu, separated by commas, such as quickstart
#
# Copied are the files that git knows, with what was changed in them. Run it again to bring changes to the workers.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_options "$@"
set -- "${REST[@]}"
extras=tpu
while [[ $# -gt 0 ]]; do
  case $1 in
    --extra) extras="tpu,$(value "$@")" || exit; shift ;;
    *) refuse "$1 is no option" ;;
  esac
  shift
done
place

archive=$(mktemp -t jmm-XXXXXX.tar.gz)
trap 'rm -f "$archive"' EXIT
(cd "$HERE/.." && git ls-files -z | tar --null --files-from - --ignore-failed-read -czf "$archive")
for node in $(nodes); do
  run gcloud compute tpus tpu-vm scp "$archive" "$node:jmm.tar.gz" "${PLACE[@]}" --worker all
done
on_workers "rm -rf jmm && mkdir jmm && tar -xzf jmm.tar.gz -C jmm && python3 -m venv env \
&& env/bin/pip install --quiet --editable 'jmm[$extras]'"
