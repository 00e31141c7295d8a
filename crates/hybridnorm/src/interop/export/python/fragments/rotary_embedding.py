class RotaryEmbedding(nn.Module):
    """Cosines and sines of the angles position · frequency, (b, t, 1, r)."""

    def __init__(self, config):
        super().__init__()
        self.theta = THETA
        self.channels = CHANNELS

    def frequencies(self, i):
        """Frequencies of the channel pairs i = 0, 1, .. r/2."""
        f = self.theta ** (-2 * i / self.channels)
        SCALING
        return f

    def forward(self, x, position_ids):
        # Angles of late positions lose digits in single precision.
        dtype = torch.float32 if x.device.type == "mps" else torch.float64
        i = torch.arange(self.channels // 2, dtype=dtype, device=x.device)
        angles = position_ids[..., None, None].to(dtype) * self.frequencies(i)
        angles = torch.cat((angles, angles), -1)
        return MAGNITUDEangles.cos().float(), MAGNITUDEangles.sin().float()
