#!/usr/bin/env bash
# The same on Kubernetes: trains on TPU node pools of a GKE cluster, as a JobSet.
#
#   gke.sh start  --name NAME --topology v5e:16x16 --image IMAGE [--slices N] [--restarts N] [--dry-run] \
#       -- experiments/FILE.py --workdir DIR [--field.sub value …]
#   gke.sh logs   --name NAME [--dry-run]
#   gke.sh delete --name NAME [--dry-run]
#
#   --topology T   generation and shape of a slice: v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:8x8, v7x:4x4x4
#   --image IMAGE  a container image in whose working folder the project lies, installed with its extra tpu
#   --slices N     so many slices train as one (default: 1)
#   --restarts N   how often at most all of them start again together (default: 100)
#
# DIR must be one folder that all pods see. A pod that ends with 1 or 2 made a mistake that would come again: that ends
# the job. kubectl is asked in the cluster and namespace that it is set to.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

verb=${1:-}
case $verb in
  start | logs | delete) shift ;;
  -h | --help)
    usage
    exit 0
    ;;
  *) refuse 'say what to do: start, logs or delete' ;;
esac
read_options "$@"
set -- "${REST[@]}"
topology='' image='' restarts=100
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --topology) topology=$(value "$@") || exit; shift ;;
    --image) image=$(value "$@") || exit; shift ;;
    --restarts) restarts=$(value "$@") || exit; shift ;;
    *) refuse "$1 is no option; what is for jmm train stands behind --" ;;
  esac
  shift
done

case $verb in
  logs)
    run kubectl logs --follow --prefix --max-log-requests 1000 --selector "jobset.sigs.k8s.io/jobset-name=$NAME"
    exit
    ;;
  delete)
    run kubectl delete jobset "$NAME"
    exit
    ;;
esac

[[ $image ]] || refuse '--image IMAGE is missing'
[[ $topology =~ ^(v4|v5e|v5p|v6e|v7x):[0-9]+x[0-9]+(x[0-9]+)?$ ]] ||
  refuse "--topology is a generation and a shape, such as v5e:16x16, not ${topology:-empty}"
check_training "$restarts" "$@"
shift

shape=${topology#*:}
case ${topology%%:*} in
  v4) kind=tpu-v4-podslice ;;
  v5e) kind=tpu-v5-lite-podslice ;;
  v5p) kind=tpu-v5p-slice ;;
  v6e) kind=tpu-v6e-slice ;;
  v7x) kind=tpu7x ;;
esac
chips=$((${shape//x/*}))
host=$((chips < 4 ? chips : 4))

# JSON is YAML, and quotes every word.
quoted() {
  local word text=''
  for word in "$@"; do
    word=${word//\\/\\\\}
    text+="\"${word//\"/\\\"}\", "
  done
  printf '[%s]' "${text%, }"
}

manifest=$(
  cat << EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $((chips / host))
          completions: $((chips / host))
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  operator: In
                  values: [1, 2]
          template:
            spec:
              restartPolicy: Never
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $kind
                cloud.google.com/gke-tpu-topology: $shape
              containers:
                - name: jmm
                  image: $image
                  command: $(quoted jmm train "$@" --cluster)
                  ports:
                    - containerPort: 8471
                    - containerPort: 8482
                  resources:
                    limits:
                      google.com/tpu: $host
EOF
)
if [[ $DRY_RUN ]]; then
  printf '%s\n' "$manifest"
fi
run kubectl apply --filename - <<< "$manifest"
