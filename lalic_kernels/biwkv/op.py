from lalic_kernels.biwkv import scan


def biwkv(w, u, k, v, *, backend=None):
    return scan.biwkv(w, u, k, v)
