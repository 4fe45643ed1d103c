#!/usr/bin/env bash
# cuda-root.sh WORKER CUBLAS NCCL ROOT: puts into ROOT what worker-cuda-small.Dockerfile makes an image of: the program,
# the libraries of CUBLAS and NCCL (two folders), and what all of them need of this machine's C and C++ libraries.
set -euo pipefail
worker=$1 cublas=$2 nccl=$3 root=$4

rm -rf "$root"
mkdir -p "$root/lib" "$root/lib64"
install -m 755 "$worker" "$root/drydock-worker"
# Linked where the file system allows it: most of a gigabyte need not lie there twice.
opened=("$cublas/libcublas.so.13" "$cublas/libcublasLt.so.13" "$nccl/libnccl.so.2")
for library in "${opened[@]}"; do
    cp --link --dereference "$library" "$root/lib/" 2>/dev/null || cp --dereference "$library" "$root/lib/"
done

# needed FILE...: the libraries of the system that they are linked to, and the program that loads them.
needed() { LD_LIBRARY_PATH=$cublas ldd "$@" | sed -nE 's/^[[:space:]]*([^ ]+ => )?(\/[^ ]+) \(0x.*/\2/p' | sort -u; }

loader=
while read -r file; do
    case $file in
        "$cublas"/* | "$(realpath "$cublas")"/*) ;;
        */ld-linux*) loader=$file && install -m 755 "$file" "$root/lib64/" ;;
        *) install -m 755 "$file" "$root/lib/" ;;
    esac
done < <(needed "$worker" "${opened[@]}")
[ -n "$loader" ] || { echo "cuda-root: $worker is not linked dynamically, and could open no driver" >&2; exit 1; }

# What a driver's libraries are linked to, though it is all in libc.so.6 by now.
libraries=$(dirname "$(needed "$worker" | grep '/libc\.so')")
for library in libdl.so.2 libpthread.so.0 librt.so.1; do
    [ -e "$root/lib/$library" ] || install -m 755 "$libraries/$library" "$root/lib/"
done
