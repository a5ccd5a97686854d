"""L = T^2 / (N C) sum_nc KL(softmax_i(F_T / T) || softmax_i(F_S / T)): channels as maps of where to look (CWD)."""

import torch
from torch import Tensor


def channel_kl(student_NCHW: Tensor, teacher_NCHW: Tensor, temperature: float) -> Tensor:
    """Mean over samples and channels of T^2 KL(teacher || student) over positions, in float32; scalar.

    For features small against T it tends to half the variance over positions of their difference; a constant added to
    a channel changes nothing (Shu et al., ICCV 2021, eq. 4).
    """
    with torch.autocast(student_NCHW.device.type, enabled=False):
        log_q = (student_NCHW.float().flatten(2) / temperature).log_softmax(2)
        log_p = (teacher_NCHW.float().flatten(2) / temperature).log_softmax(2)
        return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(2).mean()
