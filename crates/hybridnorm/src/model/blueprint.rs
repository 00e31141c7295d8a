//! What the parts of a block are made from.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};

use super::config::ModelConfig;
use super::init::Initializer;
use crate::placement::{BlockSpec, NormSpec, Resolved, Role};

/// All that is needed to make a block.
#[derive(Clone, Copy)]
pub(super) struct Blueprint<'a> {
    /// Shape of the model.
    pub(super) config: &'a ModelConfig,
    /// The placement at this depth and width.
    pub(super) resolved: &'a Resolved,
    /// Index of the block, 0-based.
    pub(super) layer: usize,
    /// Draws weights.
    pub(super) initializer: &'a Initializer<'a>,
    /// Where weights live.
    pub(super) device: &'a Device,
}

impl<'a> Blueprint<'a> {
    /// Where norms, skips and scales sit in the block.
    pub(super) fn spec(&self) -> &'a BlockSpec {
        &self.resolved.blocks[self.layer]
    }

    /// The norm function.
    pub(super) fn norm(&self) -> &'a NormSpec {
        &self.resolved.norm
    }

    /// Initial values of a matrix (outputs, inputs), by its name within the block.
    pub(super) fn draw(&self, name: &str, role: Role, shape: [usize; 2]) -> Vec<f32> {
        let name = format!("blocks.{}.{name}", self.layer);
        self.initializer.block(&name, self.layer, role, shape)
    }

    /// A parameter of rows of `columns` values.
    pub(super) fn matrix(&self, values: Vec<f32>, columns: usize) -> Param<Tensor<2>> {
        let rows = values.len() / columns;
        Param::from_data(TensorData::new(values, [rows, columns]), self.device)
    }
}
