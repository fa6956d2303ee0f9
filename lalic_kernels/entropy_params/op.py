from lalic_kernels.entropy_params import reference


def entropy_params(x, mix_weight, mix_bias, norm_weight, norm_bias, key, receptance, value, *, eps=1e-5, backend=None):
    return reference.entropy_params(
        x, mix_weight, mix_bias, norm_weight, norm_bias, key, receptance, value, eps=eps
    )
