//! Declaration of parameters by layers.

use super::config::ModelConfig;
use super::registry::{Init, InitPart, Param, ParamSpec, Registry, Role};
use crate::placement::{
    self, AttnInner, FfnInner, NormSpec, Resolved, ResolvedBlock, ResolvedScale,
};

/// Context in which layers declare parameters: the model's shape, its resolved placement, and the registry.
pub(super) struct ParameterBuilder<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) resolved: &'a Resolved,
    pub(super) registry: &'a mut Registry,
    /// Block under construction, 0-based.
    pub(super) layer: Option<usize>,
    /// True while the attention function is constructed.
    pub(super) in_attention: bool,
}

/// Declaration of a matrix.
pub(super) struct Matrix<'a> {
    /// Path within the block.
    pub(super) path: &'a str,
    /// See [`ParamSpec::label`].
    pub(super) label: &'static str,
    pub(super) role: Role,
    pub(super) columns: usize,
    pub(super) parts: Vec<Part>,
    /// See [`Init::Normal`].
    pub(super) n_interleaved_groups: usize,
    pub(super) writes_residual: bool,
    pub(super) experts: usize,
}

/// Rows of a matrix that are initialized as a separate matrix.
pub(super) struct Part {
    /// Path within the block or the model.
    pub(super) path: String,
    pub(super) rows: usize,
    pub(super) projection: placement::Projection,
    /// Category in [`ParamSpec::counts`].
    pub(super) count_category: &'static str,
}

impl ParameterBuilder<'_> {
    /// Returns the block's resolved norms, skip connections and scales.
    pub(super) fn spec(&self) -> &ResolvedBlock {
        &self.resolved.blocks[self.index()]
    }

    /// Returns the norms and scales inside attention.
    pub(super) fn attention(&self) -> &AttnInner<ResolvedScale> {
        &self.spec().attn_inner
    }

    /// Returns the norms and scales inside the feed-forward.
    pub(super) fn feed_forward(&self) -> &FfnInner<ResolvedScale> {
        &self.spec().ffn_inner
    }

    /// Returns the norm function.
    pub(super) fn norm(&self) -> &NormSpec {
        &self.resolved.norm
    }

    /// Returns the index of the block under construction.
    pub(super) fn index(&self) -> usize {
        self.layer.expect("within a block")
    }

    /// Returns the full path of a path within the block or the model.
    fn full_path(&self, path: &str) -> String {
        match self.layer {
            Some(layer) => format!("blocks.{layer}.{path}"),
            None => path.to_owned(),
        }
    }

    /// Declares a matrix within a block.
    pub(super) fn add_matrix(&mut self, matrix: Matrix<'_>) -> Param {
        let Matrix {
            path,
            label,
            role,
            columns,
            parts,
            n_interleaved_groups,
            writes_residual,
            experts,
        } = matrix;
        let layer = self.index();
        let init_parts = parts.iter().map(|part| InitPart {
            name: self.full_path(&part.path),
            std: self
                .resolved
                .weight_std(layer, part.projection, columns, part.rows),
            rows: part.rows,
        });
        let init_parts: Vec<InitPart> = init_parts.collect();
        let rows = parts.iter().map(|part| part.rows);
        let matrices = match n_interleaved_groups {
            1 => rows.clone().collect(),
            _ => vec![rows.clone().sum()],
        };
        let mut counts: Vec<(&'static str, u64)> = Vec::new();
        for part in &parts {
            let elements = (part.rows * columns) as u64;
            match counts
                .iter_mut()
                .find(|(name, _)| *name == part.count_category)
            {
                Some((_, count)) => *count += elements,
                None => counts.push((part.count_category, elements)),
            }
        }
        self.registry.declare(vec![ParamSpec {
            name: self.full_path(path),
            shape: vec![rows.sum(), columns],
            role,
            label,
            block: self.layer,
            matrices,
            writes_residual,
            experts,
            counts,
            init: Init::Normal {
                parts: init_parts,
                n_interleaved_groups,
                truncate_at: self.resolved.truncation_std(),
            },
            records_distance_from_init: false,
            is_attention: self.in_attention,
            offset: 0,
        }])
    }

    /// Declares a table with a row per token: embedding or output head.
    pub(super) fn add_table(
        &mut self,
        name: &'static str,
        role: Role,
        rows: usize,
        std: f64,
    ) -> Param {
        let columns = self.config.d_model;
        self.registry.declare(vec![ParamSpec {
            name: name.to_owned(),
            shape: vec![rows, columns],
            role,
            label: name,
            block: None,
            matrices: vec![rows],
            writes_residual: false,
            experts: 1,
            counts: vec![(name, (rows * columns) as u64)],
            init: Init::Normal {
                parts: vec![InitPart {
                    name: name.to_owned(),
                    std,
                    rows,
                }],
                n_interleaved_groups: 1,
                truncate_at: self.resolved.truncation_std(),
            },
            records_distance_from_init: false,
            is_attention: self.in_attention,
            offset: 0,
        }])
    }

    /// Declares the bias of a projection to `width` channels, if it has one.
    pub(super) fn add_bias(&mut self, path: &str, width: usize, is_present: bool) -> Option<Param> {
        let vector = is_present.then_some(("", width, 0.0));
        self.add_vectors(path, Role::Bias, vector.as_slice())
    }

    /// Declares adjacent vectors with constant initial values: (name below `path`, elements, value).
    pub(super) fn add_vectors(
        &mut self,
        path: &str,
        role: Role,
        vectors: &[(&str, usize, f64)],
    ) -> Option<Param> {
        let (label, counts) = match role {
            Role::Norm => ("norm", "norms"),
            Role::Scale => ("scale", "scales"),
            Role::Bias => ("bias", "biases"),
            Role::BalancingBias => ("selection_bias", "selection bias"),
            _ => unreachable!("{path}: use add_matrix for matrices"),
        };
        let specs = vectors.iter().map(|&(name, elements, value)| ParamSpec {
            name: match name {
                "" => self.full_path(path),
                name => format!("{}.{name}", self.full_path(path)),
            },
            shape: vec![elements],
            role,
            label,
            block: self.layer,
            matrices: Vec::new(),
            writes_residual: false,
            experts: 1,
            counts: vec![(counts, elements as u64)],
            init: Init::Constant(value),
            records_distance_from_init: name == "gain",
            is_attention: self.in_attention,
            offset: 0,
        });
        let specs: Vec<ParamSpec> = specs.collect();
        (!specs.is_empty()).then(|| self.registry.declare(specs))
    }
}
