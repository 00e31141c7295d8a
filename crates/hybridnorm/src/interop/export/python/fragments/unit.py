def unit(x):
    """x / |x|"""
    h = x.float()
    return (h * torch.rsqrt(h.square().sum(-1, keepdim=True) + 1e-12)).to(x.dtype)
