"""What the compiler makes of every kernel, without a GPU: registers, spills, shared memory, instructions.

`python -m benchmarks.compiled cuda 90` compiles all kernels in all launch configurations for one architecture
and prints a JSON line each. A new op adds a module here, with `jobs(dtypes, target)`, and its name to `OPS`.
"""

OPS = ("biwkv", "token_shift", "entropy_params", "mix", "gaussian", "exact", "rans")
