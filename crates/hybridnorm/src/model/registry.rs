//! Parameters of a model: shape, role, initial values, and offset in their buffer.
//!
//! Layers declare their parameters on construction. Parameter counts, initialization, optimizer groups, checkpoints
//! and importers read this registry.

use std::collections::HashMap;
use std::ops::Range;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sha2::{Digest, Sha256};

use crate::graph::{Buffer, Builder, Shape, Type, Value};

/// Executor buffer that holds a model's parameters: the first one allocated.
pub const PARAMETERS: Buffer = Buffer(0);

/// Elements drawn at a time, so that initialization needs no copy of a matrix.
const CHUNK: usize = 1 << 14;

/// Role of a parameter, which determines weight decay and optimizer group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding, also the tied head; embedding of positions.
    Embedding,
    /// Untied output head.
    Head,
    /// Projection inside attention.
    Attention,
    /// Projection inside a feed-forward.
    FeedForward,
    /// Projection to the router logits of a mixture of experts.
    Router,
    /// Bias on the scores for expert selection, adjusted by the load of the experts instead of a gradient.
    BalancingBias,
    /// Gain, bias, α or shift of a norm.
    Norm,
    /// Learned scale: residual scale, head gain, temperature.
    Scale,
    /// Bias of a projection.
    Bias,
}

impl Role {
    /// True if it has a gradient.
    pub fn is_trained(self) -> bool {
        self != Self::BalancingBias
    }

    /// True if it is a matrix within a block.
    pub fn is_block_matrix(self) -> bool {
        matches!(self, Self::Attention | Self::FeedForward | Self::Router)
    }
}

/// Initial values of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Init {
    /// All elements equal.
    Constant(f64),
    /// Normal, drawn part by part.
    Normal {
        /// Parts, in order.
        parts: Vec<InitPart>,
        /// Number of groups of equal size, each with an equal share of the rows of every part; 1 for consecutive
        /// parts.
        n_interleaved_groups: usize,
        /// Elements beyond this many standard deviations are redrawn.
        truncate_at: Option<f64>,
    },
}

/// Part of a matrix with a separate random generator, keyed by (seed, name).
#[derive(Debug, Clone, PartialEq)]
pub struct InitPart {
    /// Name of the part.
    pub name: String,
    /// Standard deviation.
    pub std: f64,
    /// Number of rows of the part.
    pub rows: usize,
}

/// Declaration of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    /// Module path, as in checkpoints.
    pub name: String,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Role of the parameter.
    pub role: Role,
    /// Group in the records of a run: the last part of a matrix's name, or `norm`, `scale`, `bias` or `selection_bias`.
    pub label: &'static str,
    /// Block of the parameter, 0-based.
    pub block: Option<usize>,
    /// Rows of each matrix stacked in the parameter; empty for vectors.
    pub matrices: Vec<usize>,
    /// True for projections that write the residual stream (`o_proj`, `down_proj`); their outputs have the width
    /// d_model.
    pub writes_residual: bool,
    /// Number of stacked experts; 1 for all other parameters.
    pub experts: usize,
    /// Count categories of its elements, with the number in each.
    pub counts: Vec<(&'static str, u64)>,
    /// Initial values.
    pub init: Init,
    /// True if the distance from its initial values is recorded: a norm's gain.
    pub records_distance_from_init: bool,
    /// True for a parameter inside attention, whose layout depends on the number of heads.
    pub is_attention: bool,
    /// Offset of its first element in the parameter buffer.
    pub offset: usize,
}

impl ParamSpec {
    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the range of its elements in the parameter buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.elements()
    }

    /// Returns its handle, which provides its value in a graph.
    pub fn param(&self) -> Param {
        Param {
            offset: self.offset,
            shape: Shape::from(&self.shape[..]),
        }
    }

    /// Returns the number of elements of a row; 1 for vectors.
    pub fn columns(&self) -> usize {
        match self.shape[..] {
            [_, columns] => columns,
            _ => 1,
        }
    }

    /// Draws the initial values and passes them to `write` in chunks, each with the index of its first element. They
    /// depend on seed and name only, so that parts with the same name have equal values in any two models.
    pub fn initialize(&self, seed: u64, mut write: impl FnMut(usize, &[f32])) {
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut fill = |at: usize, count: usize, values: &mut dyn Iterator<Item = f32>| {
            for start in (0..count).step_by(CHUNK) {
                chunk.clear();
                chunk.extend((&mut *values).take(CHUNK.min(count - start)));
                write(at + start, &chunk);
            }
        };
        match &self.init {
            Init::Constant(value) => {
                fill(0, self.elements(), &mut std::iter::repeat(*value as f32));
            }
            Init::Normal {
                parts,
                n_interleaved_groups,
                truncate_at,
            } => {
                let group_size = self.elements() / n_interleaved_groups;
                let mut offset = 0;
                for part in parts {
                    let count = part.rows * self.columns() / n_interleaved_groups;
                    let mut values = normal_values(seed, &part.name, part.std, *truncate_at);
                    for group in 0..*n_interleaved_groups {
                        fill(group * group_size + offset, count, &mut values);
                    }
                    offset += count;
                }
            }
        }
    }
}

/// Returns normal values from the generator keyed by (seed, name); those beyond `truncate_at` standard deviations are
/// redrawn from a second stream, so that schemes with and without truncation differ by a factor in all other
/// elements.
fn normal_values(
    seed: u64,
    name: &str,
    std: f64,
    truncate_at: Option<f64>,
) -> impl Iterator<Item = f32> {
    let key = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(name)
        .finalize();
    let mut generator = ChaCha8Rng::from_seed(key.into());
    let mut redraws = generator.clone();
    redraws.set_stream(1);
    let limit = truncate_at.unwrap_or(f64::INFINITY);
    std::iter::repeat_with(move || {
        let mut z: f64 = StandardNormal.sample(&mut generator);
        while z.abs() > limit {
            z = StandardNormal.sample(&mut redraws);
        }
        (z * std) as f32
    })
}

/// Handle of adjacent parameters that a layer reads as one value. Cheap to copy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Param {
    offset: usize,
    shape: Shape,
}

impl Param {
    /// Returns its value in a graph.
    pub fn value<'g>(&self, graph: &'g Builder) -> Value<'g> {
        self.value_in(PARAMETERS, graph)
    }

    /// Returns its counterpart in another buffer with the same layout: optimizer moments, accumulated gradients.
    pub fn value_in<'g>(&self, buffer: Buffer, graph: &'g Builder) -> Value<'g> {
        graph.state(buffer, self.offset, Type::f32(self.shape))
    }

    /// Returns the sizes of the dimensions.
    pub fn shape(&self) -> Shape {
        self.shape
    }
}

/// All parameters of a model, in declaration order.
///
/// ```
/// use hybridnorm::model::Registry;
///
/// let mut registry = Registry::default();
/// let projection = registry.declare_matrix("projection", [2, 16], 0.1);
/// let spec = registry.spec(projection);
/// assert_eq!((spec.name.as_str(), spec.elements()), ("projection", 32));
///
/// let mut values = vec![0.0; spec.elements()];
/// spec.initialize(42, |at, chunk| values[at..at + chunk.len()].copy_from_slice(chunk));
/// assert!(values.iter().all(|x| *x != 0.0));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Registry {
    specs: Vec<ParamSpec>,
    /// Declared handles, each with its parameters.
    handles: Vec<(Param, Range<usize>)>,
    by_name: HashMap<String, usize>,
    elements: usize,
}

impl Registry {
    /// Declares adjacent parameters; returns the handle of all of them together.
    ///
    /// # Panics
    /// If there are none, or a name is taken.
    pub fn declare(&mut self, specs: Vec<ParamSpec>) -> Param {
        let offset = self.elements;
        let shape = match &specs[..] {
            [spec] => Shape::from(&spec.shape[..]),
            specs => Shape::from([specs.iter().map(ParamSpec::elements).sum()]),
        };
        let first = self.specs.len();
        for mut spec in specs {
            let taken = self.by_name.insert(spec.name.clone(), self.specs.len());
            assert!(taken.is_none(), "{} is declared twice", spec.name);
            spec.offset = self.elements;
            self.elements += spec.elements();
            self.specs.push(spec);
        }
        let param = Param { offset, shape };
        self.handles.push((param, first..self.specs.len()));
        param
    }

    /// Declares a matrix (out, in) of a custom graph, drawn with this standard deviation. Its role is that of an
    /// output head, outside all blocks.
    ///
    /// # Panics
    /// If the name is taken.
    pub fn declare_matrix(&mut self, name: &str, [rows, columns]: [usize; 2], std: f64) -> Param {
        let part = InitPart {
            name: name.to_owned(),
            std,
            rows,
        };
        self.declare(vec![ParamSpec {
            name: name.to_owned(),
            shape: vec![rows, columns],
            role: Role::Head,
            label: "head",
            block: None,
            matrices: vec![rows],
            writes_residual: false,
            experts: 1,
            counts: vec![("head", (rows * columns) as u64)],
            init: Init::Normal {
                parts: vec![part],
                n_interleaved_groups: 1,
                truncate_at: None,
            },
            records_distance_from_init: false,
            is_attention: false,
            offset: 0,
        }])
    }

    /// Returns the handles, each with the parameters that it covers.
    pub fn handles(&self) -> impl Iterator<Item = (Param, &[ParamSpec])> {
        let specs = |range: &Range<usize>| &self.specs[range.clone()];
        self.handles
            .iter()
            .map(move |(param, range)| (*param, specs(range)))
    }

    /// Returns the parameter at the start of this handle's value.
    ///
    /// # Panics
    /// If the handle belongs to another registry.
    pub fn spec(&self, param: Param) -> &ParamSpec {
        let found = self
            .specs
            .binary_search_by_key(&param.offset, |spec| spec.offset);
        &self.specs[found.expect("a parameter of this registry")]
    }

    /// Returns all parameters.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &ParamSpec> {
        self.specs.iter()
    }

    /// Returns all parameters in name order.
    pub fn sorted_by_name(&self) -> Vec<&ParamSpec> {
        let mut specs: Vec<&ParamSpec> = self.specs.iter().collect();
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        specs
    }

    /// Returns the parameter with this name.
    pub fn get(&self, name: &str) -> Option<&ParamSpec> {
        self.by_name.get(name).map(|&index| &self.specs[index])
    }

    /// Returns the number of elements of all parameters.
    pub fn elements(&self) -> usize {
        self.elements
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_only() {
        let values = |seed, name| {
            let values = normal_values(seed, name, 2.0, None);
            values.take(100).collect::<Vec<_>>()
        };
        let a = values(1, "blocks.0.attention.qkv");
        assert_eq!(a, values(1, "blocks.0.attention.qkv"));
        assert_ne!(a, values(2, "blocks.0.attention.qkv"));
        assert_ne!(a, values(1, "blocks.1.attention.qkv"));
    }

    #[test]
    fn mean_deviation_and_truncation_match_the_arguments() {
        let n = 200_000;
        let values = |cut| normal_values(3, "x", 2.0, cut).take(n).collect::<Vec<_>>();
        let plain = values(None);
        let mean = plain.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let var = plain.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((var.sqrt() - 2.0).abs() < 0.02, "std {}", var.sqrt());
        let cut = values(Some(3.0));
        let largest = cut.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!((5.5..=6.0).contains(&largest), "largest {largest}");
        for (plain, cut) in plain.iter().zip(&cut) {
            assert!(plain == cut || plain.abs() > 6.0, "{plain} {cut}");
        }
    }
    #[test]
    fn parts_are_interleaved_and_every_element_is_written_once() {
        let part = |name: &str, rows| InitPart {
            name: name.to_owned(),
            std: 1.0,
            rows,
        };
        let (columns, rows) = (CHUNK / 4, [8, 16]);
        let mut registry = Registry::default();
        let param = registry.declare_matrix("both", [24, columns], 1.0);
        let spec = ParamSpec {
            init: Init::Normal {
                parts: vec![part("a", rows[0]), part("b", rows[1])],
                n_interleaved_groups: 2,
                truncate_at: None,
            },
            ..registry.spec(param).clone()
        };
        let (mut found, mut written) = (vec![f32::NAN; 24 * columns], 0);
        spec.initialize(7, |at, values| {
            found[at..at + values.len()].copy_from_slice(values);
            written += values.len();
        });
        assert_eq!(written, found.len());
        let mut drawn = ["a", "b"].map(|name| normal_values(7, name, 1.0, None));
        for group in found.chunks(12 * columns) {
            let (a, b) = group.split_at(4 * columns);
            assert!(a.iter().copied().eq(drawn[0].by_ref().take(4 * columns)));
            assert!(b.iter().copied().eq(drawn[1].by_ref().take(8 * columns)));
        }
    }
}
