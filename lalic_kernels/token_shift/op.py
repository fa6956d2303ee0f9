import torch.nn.functional as F

from lalic_kernels.token_shift.reference import fold_token_shift


def token_shift(x, weight, *, backend=None):
    y = F.conv2d(x.permute(0, 3, 1, 2), weight.unsqueeze(1), padding=2, groups=x.shape[3])
    return y.permute(0, 2, 3, 1).contiguous()


__all__ = ["fold_token_shift", "token_shift"]
