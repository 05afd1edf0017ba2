#!/usr/bin/env bash
# Wheels for a GPU machine without network: bash benchmarks/gpu_wheels.sh FOLDER; there, gpu.sh --carry FOLDER.
#   GPU_PYTHON=3.12        the Python of that machine (Linux, x86-64)
#   PYTHON=path            an interpreter here with pip, setuptools and torch (DeepSpeed is built, not downloaded)
# Holds benchmarks/requirements_gpu.txt, without dependencies, in under 64 MiB; what else the machine needs
# (torch 2.11 or later, numpy, pyarrow, tokenizers, ...) gpu.sh names at its start.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="${1:?the folder for the wheels}"
python="${PYTHON:-python}"
mkdir -p "$folder"
platforms=()
for version in 2_34 2_28 2_27 2_24 2_17 2_12 2_5; do platforms+=(--platform "manylinux_${version}_x86_64"); done
for name in manylinux2014 manylinux2010 manylinux1; do platforms+=(--platform "${name}_x86_64"); done
for requirement in $(grep -v '^#' "$here/requirements_gpu.txt"); do
    case "$requirement" in
        # No wheels are published of these; what is built of them is pure Python.
        deepspeed==*) DS_BUILD_OPS=0 "$python" -m pip wheel -q --no-deps --no-build-isolation -w "$folder" "$requirement" ;;
        hjson==*) "$python" -m pip wheel -q --no-deps -w "$folder" "$requirement" ;;
        *)
            "$python" -m pip download -q --no-deps --only-binary=:all: --implementation cp \
                --python-version "${GPU_PYTHON:-3.12}" "${platforms[@]}" -d "$folder" "$requirement"
            ;;
    esac
done
mebibytes="$(du -sm "$folder" | cut -f1)"
echo "$(ls "$folder" | wc -l) wheels, $mebibytes MiB, in $folder"
[ "$mebibytes" -lt 60 ] || { echo "that is more than 60 MiB, which is all that some machines take" >&2; exit 1; }
