#!/usr/bin/env bash
# Creates a TPU slice, or several that train as one, and waits until they are there.
#
#   create.sh --name NAME --zone ZONE --type v5litepod-16 [options]
#
#   --type TYPE        accelerator type: v4-32, v5litepod-16, v5p-128, v6e-256 …
#   --runtime VERSION  software of the machines (default: that of the type's generation)
#   --spot             may be taken away, and costs less
#   --reserved         from the project's reservation
#   --slices N         so many slices, connected by the data centre's network (default: 1)
#   --queued           ask through a queued resource, which waits until there is room;
#                      --reserved and --slices do so anyway
#   --wait SECONDS     how long a queued resource may take (default: 86400)
#   --project PROJECT  (default: that of gcloud)
#   --dry-run          print each command, and run none
#
# Delete what it made with delete.sh, with the same name, zone and --slices: it costs money until then.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_options "$@"
set -- "${REST[@]}"
type='' runtime='' queued='' kind='' patience=86400
while [[ $# -gt 0 ]]; do
  case $1 in
    --type) type=$(value "$@") || exit; shift ;;
    --runtime) runtime=$(value "$@") || exit; shift ;;
    --wait) patience=$(value "$@") || exit; shift ;;
    --spot | --reserved)
      [[ ! $kind || $kind == "$1" ]] || refuse "$kind and $1 exclude each other"
      kind=$1
      ;;
    --queued) queued=1 ;;
    *) refuse "$1 is no option" ;;
  esac
  shift
done
place
[[ $type ]] || refuse '--type TYPE is missing'
if [[ ! $runtime ]]; then
  case $type in
    v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) refuse "no runtime is known for $type: name one with --runtime" ;;
  esac
fi
[[ $SLICES == 1 && $kind != --reserved ]] || queued=1

# What is left behind when something goes wrong, and how it goes away.
left_behind() {
  local again=(--name "$NAME" --zone "$ZONE")
  [[ ! $PROJECT ]] || again+=(--project "$PROJECT")
  [[ $SLICES == 1 ]] || again+=(--slices "$SLICES")
  [[ ! $queued ]] || again+=(--queued)
  printf 'create.sh: %s; what exists of it may cost money: %s/delete.sh %s\n' "$1" "$HERE" "${again[*]}" >&2
  exit 1
}

extra=()
[[ ! $kind ]] || extra=("$kind")
if [[ ! $queued ]]; then
  run gcloud compute tpus tpu-vm create "$NAME" "${PLACE[@]}" --accelerator-type "$type" --version "$runtime" \
    "${extra[@]}" || left_behind "$NAME was not created"
  exit 0
fi

if [[ $SLICES == 1 ]]; then
  extra+=(--node-id "$NAME")
else
  extra+=(--node-count "$SLICES" --node-prefix "$NAME")
fi
run gcloud compute tpus queued-resources create "$NAME" "${PLACE[@]}" --accelerator-type "$type" \
  --runtime-version "$runtime" "${extra[@]}" || left_behind "$NAME was not asked for"

look=(gcloud compute tpus queued-resources describe "$NAME" "${PLACE[@]}" --format 'value(state.state)')
if [[ $DRY_RUN ]]; then
  run "${look[@]}"
  exit 0
fi
until [[ $SECONDS -ge $patience ]]; do
  state=$("${look[@]}") || left_behind "the state of $NAME cannot be read"
  case $state in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDED | SUSPENDING) left_behind "$NAME is $state" ;;
  esac
  printf '%s: %s\n' "$NAME" "$state"
  sleep "${POLL:-30}"
done
left_behind "$NAME is not there after $patience seconds"
