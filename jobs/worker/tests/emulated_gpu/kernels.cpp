// Every kernel of the worker, compiled for the CPU. KERNELS names a file that includes them all.
#include KERNELS

#include "checks.cu"
