//! Keys and values of positions already seen.

use burn::tensor::{Device, Tensor};

/// The cache of a whole model for one batch of sequences.
///
/// It stores what attention reads: keys and values after every norm, scale and rotation; of latent
/// attention the normed latent and the rotated key.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
    len: usize,
    capacity: usize,
}

/// Keys and values of one block: (b, capacity, 2·g·k), keys first; or latents and rotary keys, (b,
/// capacity, R + r).
#[derive(Debug, Clone)]
pub struct LayerCache {
    kv_bsc: Tensor<3>,
}

impl KvCache {
    /// An empty cache for up to `capacity` positions of `width` numbers a block.
    pub(super) fn new(
        n_layers: usize,
        batch: usize,
        capacity: usize,
        width: usize,
        device: &Device,
    ) -> Self {
        let layer = || LayerCache {
            kv_bsc: Tensor::zeros([batch, capacity, width], device),
        };
        Self {
            layers: (0..n_layers).map(|_| layer()).collect(),
            len: 0,
            capacity,
        }
    }

    /// Positions seen so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been seen.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn advance(&mut self, new: usize) {
        self.len += new;
    }
}

impl LayerCache {
    /// Stores new rows behind `past` old ones and returns the whole cache.
    pub(super) fn append(&mut self, kv_btc: Tensor<3>, past: usize) -> &Tensor<3> {
        let [b, t, c] = kv_btc.dims();
        // Leave no second owner behind, so that the rows are written in place.
        let kv = std::mem::replace(&mut self.kv_bsc, Tensor::empty([0, 0, 0], &kv_btc.device()));
        self.kv_bsc = kv.slice_assign([0..b, past..past + t, 0..c], kv_btc);
        &self.kv_bsc
    }
}
