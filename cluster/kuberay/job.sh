#!/usr/bin/env bash
# attribute -> aggregate -> publish on the Ray cluster that this runs in: the entrypoint of rayjob.yaml.
# The variables are those of the Slurm scripts.
set -euo pipefail

refuse() {
  echo "$1" >&2
  exit 2
}

for name in SEQ MODEL ATTR STORE; do
  [[ -n "${!name:-}" ]] || refuse "job.sh needs $name: add it to the variables of the head in rayjob.yaml."
done
[[ "${RAY_AUTH_MODE:-disabled}" == token && -n "${RAY_AUTH_TOKEN:-}" ]] ||
  refuse "This Ray cluster has no token, so anyone on the network can run code in it: keep authOptions in rayjob.yaml."

attribute=(whenwhy attribute "$SEQ" --model "$MODEL" --out "$ATTR" --method "${METHOD:-integrated_gradients}")
[[ -z "${GPUS_PER_WORKER:-}" ]] || attribute+=(--gpus-per-worker "$GPUS_PER_WORKER")
[[ -z "${THREADS:-}" ]] || attribute+=(--threads "$THREADS")
read -ra more <<<"${ATTRIBUTE_OPTIONS:-}"
"${attribute[@]}" "${more[@]}" --ray-address auto
read -ra more <<<"${AGGREGATE_OPTIONS:-}"
whenwhy aggregate "$ATTR" --out "$STORE" "${more[@]}"
