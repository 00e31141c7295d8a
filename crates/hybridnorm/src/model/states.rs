//! Residual streams between blocks, for comparison with other implementations.

use super::decoder::{Decoder, ForwardOutput};
use super::model::Model;
use crate::error::Result;
use crate::exec::{Tensor, TensorRef};
use crate::graph::{Builder, ValueId};
use crate::ops::Arguments;
use crate::plan::Program;

/// Intermediate values of a forward pass over ids (b, t).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ForwardStates {
    /// Residual streams after every block, (b, t, d): one, or two if the placement has two.
    pub blocks: Vec<Vec<Tensor>>,
    /// Hidden states after the final norm, (b, t, d).
    pub hidden: Tensor,
    /// Logits, (b, t, v).
    pub logits: Tensor,
}

impl Model {
    /// Computes the residual streams after every block, with the logits, for ids (b, t).
    ///
    /// # Errors
    /// As [`Model::check_batch`], or if there is not enough memory.
    ///
    /// ```
    /// use hybridnorm::Device;
    /// use hybridnorm::model::Model;
    ///
    /// # let config = hybridnorm::model::ModelConfig::default()
    /// #     .with_d_model(16)
    /// #     .with_n_layers(2)
    /// #     .with_n_heads(4)
    /// #     .with_n_kv_heads(2)
    /// #     .with_d_ff(40)
    /// #     .with_vocab_size(50)
    /// #     .with_max_seq_len(32)
    /// #     .with_placement(hybridnorm::placement::named("siamese-norm")?);
    /// let mut model = Model::new(&config, 42, Device::Cpu)?;
    /// let states = model.forward_states(&[1, 2, 3], 1, 3)?;
    /// assert_eq!((states.blocks.len(), states.blocks[0].len()), (2, 2));
    /// assert_eq!(states.logits.into_f32(), model.logits(&[1, 2, 3], 1, 3)?.into_f32());
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn forward_states(
        &mut self,
        ids: &[i32],
        batch: usize,
        seq: usize,
    ) -> Result<ForwardStates> {
        self.check_batch(ids, batch, seq)?;
        let g = Builder::new();
        let input = Decoder::tokens(&g, "ids", batch, seq);
        let ForwardOutput { hidden, blocks } = self.decoder.forward(input, None);
        let blocks: Vec<Vec<ValueId>> = blocks
            .iter()
            .map(|block| {
                let second = block.residual.y.map(|y| y.id());
                [Some(block.residual.x.id()), second]
                    .into_iter()
                    .flatten()
                    .collect()
            })
            .collect();
        let (logits, hidden) = (self.decoder.logits(hidden).id(), hidden.id());
        let mut outputs: Vec<ValueId> = blocks.concat();
        outputs.extend([hidden, logits]);
        let program = Program::new(g.finish(), &outputs, self.decoder.plan_options());
        self.executor.run(
            &program,
            Arguments::default(),
            &[("ids", TensorRef::I32(ids))],
        )?;
        let value = |id: &ValueId| self.executor.output(&program, *id);
        Ok(ForwardStates {
            blocks: blocks
                .iter()
                .map(|streams| streams.iter().map(value).collect())
                .collect(),
            hidden: value(&hidden),
            logits: value(&logits),
        })
    }
}
