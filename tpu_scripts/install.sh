#!/usr/bin/env bash
# Copies the project to every worker and installs it there, in a virtual environment of its own; or has every worker
# train in a container.
#
#   install.sh --name NAME --zone ZONE [--slices N] [--project PROJECT] [--extra EXTRAS] [--dry-run]
#   install.sh --name NAME --zone ZONE [--slices N] [--project PROJECT] --image IMAGE [--mount DIR …] [--dry-run]
#
#   --extra EXTRAS   extras beside tpu, separated by commas, such as quickstart
#   --image IMAGE    a container image in whose working folder the project lies, installed with its extra tpu; the
#                    workers pull it with docker, and need only the scripts
#   --mount DIR      a folder of the workers that the container sees too, such as a mounted bucket; can be repeated
#
# Copied are the files that git knows, with what was changed in them. Run it again to bring changes to the workers.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_options "$@"
set -- "${REST[@]}"
extras='' image='' mounts=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --extra) extras=$(value "$@") || exit; shift ;;
    --image) image=$(value "$@") || exit; shift ;;
    --mount)
      folder=$(value "$@") || exit
      [[ $folder == /* && $folder != *:* ]] || refuse "--mount is a folder from / on, without a colon, not $folder"
      mounts+=$(printf ' --volume %q' "$folder:$folder")
      shift
      ;;
    *) refuse "$1 is no option" ;;
  esac
  shift
done
place
if [[ $image ]]; then
  [[ ! $extras ]] || refuse '--extra is for what is installed on the workers; an image brings its own'
  # Under the name that worker.sh calls. One container has all chips of its worker, so one name is enough; profile.sh
  # finds it by that.
  command="#!/bin/sh
exec sudo docker run --rm --name jmm-train --privileged --network host --ipc host$mounts $(printf %q "$image") jmm \"\$@\""
  install="sudo docker pull $(printf %q "$image") && rm -rf env && mkdir -p env/bin \
&& printf '%s\n' $(printf %q "$command") > env/bin/jmm && chmod +x env/bin/jmm"
else
  [[ ! $mounts ]] || refuse '--mount is for a container, which --image IMAGE names'
  install="python3 -m venv env && env/bin/pip install --quiet --editable 'jmm[tpu${extras:+,$extras}]'"
fi

archive=$(mktemp -t jmm-XXXXXX.tar.gz)
trap 'rm -f "$archive"' EXIT
(cd "$HERE/.." && git ls-files -z | tar --null --files-from - --ignore-failed-read -czf "$archive")
for node in $(nodes); do
  run gcloud compute tpus tpu-vm scp "$archive" "$node:jmm.tar.gz" "${PLACE[@]}" --worker all
done
on_workers "rm -rf jmm && mkdir jmm && tar -xzf jmm.tar.gz -C jmm && $install"
