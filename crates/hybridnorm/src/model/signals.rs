//! A look at the activations of a forward pass.

use std::cell::RefCell;

use burn::tensor::{Int, Tensor};

use super::block::Site;
use super::decoder::Decoder;
use super::feed_forward::{Routed, Routing};
use crate::eager::{self as ops, Magnitude, Scores};

/// What one block made of its input.
#[derive(Debug, Clone, PartialEq)]
pub struct Activations {
    /// The stream that enters the block.
    pub stream: Magnitude,
    /// What attention adds to the stream, after its output norm and factor.
    pub attn: Magnitude,
    /// What the feed-forward adds to the stream, after its output norm and factor.
    pub ffn: Magnitude,
    /// Attention's scores.
    pub scores: Scores,
    /// Where the experts' tokens went, in a mixture.
    pub routing: Option<Routing>,
}

const NOTHING: Magnitude = Magnitude { rms: 0.0, max: 0.0 };

impl Decoder {
    /// The activations of every block for these tokens; best asked of a model without a graph
    /// ([`valid`](burn::module::Module::valid)).
    ///
    /// # Panics
    /// If the sequence is longer than `max_seq_len`.
    pub fn activations(&self, ids_bt: Tensor<2, Int>) -> Vec<Activations> {
        let positions = self.positions(0, ids_bt.dims()[1]);
        let mut state = self.begin(ids_bt);
        let mut all = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let seen = RefCell::new(Activations {
                stream: NOTHING,
                attn: NOTHING,
                ffn: NOTHING,
                scores: Scores {
                    max: 0.0,
                    entropy: 0.0,
                },
                routing: None,
            });
            let routed;
            (state, routed) = block.watched(state, &positions, None, &|site, x| {
                let mut seen = seen.borrow_mut();
                match site {
                    Site::Stream => seen.stream = ops::magnitude(x.clone()),
                    Site::AttentionInput => {
                        seen.scores = block.attention.scores(x.clone(), &positions);
                    }
                    Site::Attention => seen.attn = ops::magnitude(x.clone()),
                    Site::FeedForward => seen.ffn = ops::magnitude(x.clone()),
                }
            });
            all.push(Activations {
                routing: routed.as_ref().map(Routed::routing),
                ..seen.into_inner()
            });
        }
        all
    }
}
