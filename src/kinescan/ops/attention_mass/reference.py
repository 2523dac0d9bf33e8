import torch
from torch import Tensor


def attention_mass(q: Tensor, k: Tensor, v: Tensor, scale: float, observed: int) -> tuple[Tensor, Tensor]:
    """The definition, with the full matrix of weights; float32 inside, float64 for float64 inputs.

    Takes q [B, Hq, Q, D], k and v [B, Hkv, L, D]; gives the output [B, Hq, Q, D] in the dtype of q and the scores
    [B, Hkv, L] in float32 or float64.

    With head h of G = Hq / Hkv query heads in group g, i of Q queries, l of L keys:
        w[g,h,i,l] = softmax over l <= L - Q + i of scale * <q[g,h,i], k[g,l]>
        o[g,h,i]   = sum over l of w[g,h,i,l] v[g,l]
        m[g,l]     = sum over h and over i >= Q - observed of w[g,h,i,l]

    Source: StateKV (arXiv 2605.31598).
    """
    B, Hq, Q, D = q.shape
    Hkv, L = k.shape[1:3]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    grouped = q.to(wide).reshape(B, Hkv, Hq // Hkv, Q, D)
    products = scale * torch.einsum("bghid,bgld->bghil", grouped, k.to(wide))
    hidden = torch.ones(Q, L, dtype=torch.bool, device=q.device).triu(L - Q + 1)
    w = products.masked_fill(hidden, float("-inf")).softmax(-1)
    o = torch.einsum("bghil,bgld->bghid", w, v.to(wide)).reshape(B, Hq, Q, D)
    m = w[:, :, :, Q - observed :].sum((2, 3))
    return o.to(q.dtype), m
