#!/usr/bin/env bash
# build.sh FOLDER: puts the emulated GPU's libraries into FOLDER, under the names by which they are looked for.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
mkdir -p "$out"

for kernel in "$here"/../../cuda/kernels/*.cu; do echo "#include \"$kernel\""; done >"$out/kernels.h"

# compile LIBRARY OPTIONS...
compile() {
    "${CXX:-c++}" -std=c++17 -g1 -fPIC -shared -Wall -Wextra -DEMULATED_GPU -fvisibility=hidden -U_FORTIFY_SOURCE \
        "-I$here" "-Wl,-soname,$1" -o "$out/$1" "${@:2}"
}
# A misaligned address or an index beyond a shared array is a fault on a GPU, so it is one here.
compile libcuda.so -O2 -ffp-contract=off -fsanitize=alignment,bounds -fsanitize-undefined-trap-on-error \
    "-DKERNELS=\"$out/kernels.h\"" "$here"/{kernels,memory,threads,driver}.cpp
# Nobody asks for the order of a product's sums.
compile libcublas.so -O3 -fassociative-math -fno-signed-zeros -fno-trapping-math "$here/cublas.cpp" "-L$out" -lcuda \
    "-Wl,-rpath,\$ORIGIN"
# Sums of ranks are in their order.
compile libnccl.so.2 -O2 -ffp-contract=off "$here/nccl.cpp" "-L$out" -lcuda "-Wl,-rpath,\$ORIGIN"
