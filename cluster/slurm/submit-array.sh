#!/usr/bin/env bash
# Submits an array of N parts, and the job that finishes behind it; prints the number of the latter.
#
#   export SEQ=/data/seq MODEL=/data/model ATTR=/data/attr STORE=/data/store
#   cluster/slurm/submit-array.sh N [OPTIONS OF sbatch FOR BOTH...]
set -euo pipefail

if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  echo "submit-array.sh needs the number of parts: cluster/slurm/submit-array.sh 8" >&2
  exit 2
fi
parts=$1
shift
for name in SEQ MODEL ATTR STORE; do
  if [[ -z "${!name:-}" ]]; then
    echo "submit-array.sh needs $name: export $name=PATH, then submit it again." >&2
    exit 2
  fi
done

script=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/whenwhy-array.sbatch
array=$(sbatch --parsable --array="1-$parts" "$@" "$script")
array=${array%%;*}
# afterany: whatever a lost task has left undone is done by the job that finishes.
finish=$(sbatch --parsable --dependency="afterany:$array" "$@" "$script")
echo "Submitted array $array of $parts parts, and behind it the job that finishes:" >&2
echo "${finish%%;*}"
