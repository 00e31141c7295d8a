def rotate(x, cos, sin):
    """Rotates channels i and i + r/2 of every head together; x is (b, t, heads, r)."""
    h = x.float()
    a, b = h.chunk(2, -1)
    return (h * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)
