//! Generation of `configuration_hybridnorm.py` and `modeling_hybridnorm.py`, which contain only what one model uses.

mod attention;
mod block;
mod block_loop;
mod configuration;
mod feed_forward;
mod model;
mod norms;
mod rotary;
mod source;

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::model::{ModelConfig, MoeConfig, Rope};
use crate::placement::{Equation, Explanation, Resolved, ResolvedBlock, ResolvedScale};
use norms::Norms;
use source::Module;

pub(in crate::interop) use configuration::fields;

/// Names of the generated files.
pub(super) const CONFIGURATION: &str = "configuration_hybridnorm.py";
pub(super) const MODELING: &str = "modeling_hybridnorm.py";
/// Prefix of the names of the generated Python classes.
pub(super) const CLASS: &str = "HybridNorm";

/// Generated Python files.
pub(super) struct Python {
    pub(super) configuration: String,
    pub(super) modeling: String,
}

/// State of the generation of one model.
struct Generator<'a> {
    config: &'a ModelConfig,
    resolved: &'a Resolved,
    norms: Norms<'a>,
    module: Module,
}

/// Blocks with one class.
#[derive(Debug, Clone)]
struct BlockClass {
    /// Indices of the blocks.
    layers: Vec<usize>,
    moe: Option<MoeConfig>,
    /// True if they have a sliding window.
    has_window: bool,
    /// True if they have a rotary embedding.
    has_rope: bool,
    /// Lines of the docstring: the equations.
    doc: Vec<String>,
}

/// Generates the Python of a model.
///
/// # Errors
/// If the configuration is invalid.
pub(super) fn generate(config: &ModelConfig) -> Result<Python> {
    let (resolved, _) = config.resolve()?;
    check_windows(config)?;
    let explanation = Explanation::new(&config.placement, config.n_layers, &config.facts())?;
    let equation = explanation.norm.first().map(text).unwrap_or_default();
    let mut generator = Generator {
        config,
        resolved: &resolved,
        norms: Norms::new(&resolved, equation),
        module: Module::default(),
    };
    let classes = block_classes(config, &explanation);
    let mut names = vec![String::new(); config.n_layers];
    for blocks in &classes {
        let name = block::class(&mut generator, blocks);
        for &layer in &blocks.layers {
            names[layer].clone_from(&name);
        }
    }
    Ok(Python {
        configuration: configuration::text(&generator),
        modeling: model::text(&mut generator, &explanation, &names),
    })
}

/// Groups the blocks with the same equations and the same kind of feed-forward.
fn block_classes(config: &ModelConfig, explanation: &Explanation) -> Vec<BlockClass> {
    let mut classes = Vec::new();
    for group in &explanation.groups {
        for layers in kinds(config, &group.layers) {
            let first = layers[0];
            let mut doc = vec![title(&layers, config.n_layers), String::new()];
            doc.extend(aligned(&group.equations));
            doc.push("where".into());
            doc.extend(aligned(&group.definitions));
            classes.push(BlockClass {
                moe: config.moe_of_layer(first).cloned(),
                has_window: config.window_of_layer(first).is_some(),
                has_rope: config.rope_of_layer(first) != Rope::Off,
                layers,
                doc,
            });
        }
    }
    classes
}

/// Divides blocks into those with the same kind of feed-forward and of attention.
fn kinds(config: &ModelConfig, layers: &[usize]) -> Vec<Vec<usize>> {
    let kind = |layer: usize| {
        let has_window = config.window_of_layer(layer).is_some();
        let has_rope = config.rope_of_layer(layer) != Rope::Off;
        (config.moe_of_layer(layer).is_some(), has_window, has_rope)
    };
    let mut kinds: Vec<(_, Vec<usize>)> = Vec::new();
    for &layer in layers {
        match kinds.iter_mut().find(|(known, _)| *known == kind(layer)) {
            Some((_, layers)) => layers.push(layer),
            None => kinds.push((kind(layer), vec![layer])),
        }
    }
    kinds.into_iter().map(|(_, layers)| layers).collect()
}

/// Checks that all sliding windows have one width, since a configuration of `transformers` has one.
fn check_windows(config: &ModelConfig) -> Result<()> {
    let windows: BTreeSet<usize> = (0..config.n_layers)
        .filter_map(|layer| config.window_of_layer(layer))
        .collect();
    match windows.len() {
        0 | 1 => Ok(()),
        _ => Err(Error::invalid_value(
            "model.attention_overrides",
            format!(
                "model.attention_overrides: sliding windows of {windows:?} positions; `transformers` has one width for \
                 all blocks, so that this model cannot be exported to it (--format safetensors can)"
            ),
        )),
    }
}

/// Returns `All blocks.`, or the indices of the blocks.
fn title(layers: &[usize], n_layers: usize) -> String {
    match layers {
        layers if layers.len() == n_layers => "All blocks.".into(),
        [layer] => format!("Block {layer} (counted from 0)."),
        layers => {
            let (first, last) = (layers[0], layers[layers.len() - 1]);
            match last - first + 1 == layers.len() {
                true => format!("Blocks {first} to {last} (counted from 0)."),
                false => {
                    let all: Vec<String> = layers.iter().map(usize::to_string).collect();
                    format!("Blocks {} (counted from 0).", all.join(", "))
                }
            }
        }
    }
}

fn text(equation: &Equation) -> String {
    format!(
        "{} {} {}",
        equation.lhs.text, equation.relation, equation.rhs.text
    )
}

/// Returns the equations, one per line, with aligned relations.
pub(super) fn aligned(equations: &[Equation]) -> Vec<String> {
    let width = |equation: &Equation| equation.lhs.text.chars().count();
    let widest = equations.iter().map(width).max().unwrap_or(0);
    let line = |equation: &Equation| {
        let pad = " ".repeat(widest - width(equation));
        let Equation { lhs, relation, rhs } = equation;
        // A docstring has no escapes and no triple quotes.
        format!("    {}{pad} {relation} {}", lhs.text, rhs.text)
            .replace('\\', "/")
            .replace('"', "'")
    };
    equations.iter().map(line).collect()
}

impl Generator<'_> {
    /// Returns a scale of every block.
    fn scales(&self, of: impl Fn(&ResolvedBlock) -> ResolvedScale) -> Vec<ResolvedScale> {
        self.resolved.blocks.iter().map(of).collect()
    }

    /// Returns, for every block, whether it has a sliding window.
    fn windows(&self) -> Vec<bool> {
        let layers = 0..self.config.n_layers;
        layers
            .map(|layer| self.config.window_of_layer(layer).is_some())
            .collect()
    }

    /// True if the class that an expression constructs has the index of the layer as last parameter.
    fn needs_layer(&self, construct: &str) -> bool {
        let name = construct.split('(').next().unwrap_or_default();
        self.module.has_parameter(name, "layer_idx")
    }
}
