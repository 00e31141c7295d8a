//! Unit-norm weight matrices: rows or columns along d_model have length 1 (nGPT, arXiv 2410.01131).

use super::decoder::Decoder;
use super::model::Model;
use crate::error::Result;
use crate::graph::Builder;
use crate::ops::{self, Arguments};
use crate::plan::{Options, Program};

impl Decoder {
    /// Records the normalization of matrices to vectors of length 1 along the width: columns of those whose output is
    /// added to the residual stream, rows of all others. Records nothing if the placement has no unit weights.
    pub(crate) fn normalize_unit_weights(&self, g: &Builder) {
        if !self.has_unit_weights() {
            return;
        }
        for spec in self.registry().iter() {
            let &[_, columns] = &spec.shape[..] else {
                continue;
            };
            let weight = spec.param().value(g);
            match spec.writes_residual {
                true => ops::unit_columns(weight, columns, spec.matrices.clone()),
                false => ops::unit_rows(weight, columns),
            }
        }
    }
}

impl Model {
    /// Normalizes matrices to vectors of length 1 along the width, if the placement has unit weights.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn normalize_unit_weights(&mut self) -> Result<()> {
        if !self.decoder().has_unit_weights() {
            return Ok(());
        }
        let g = Builder::new();
        self.decoder().normalize_unit_weights(&g);
        let options = Options::default().with_target(self.device().target());
        let program = Program::new(g.finish(), &[], options);
        self.executor_mut().run(&program, Arguments::default(), &[])
    }
}
