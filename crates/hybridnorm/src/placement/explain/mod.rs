//! A placement as equations, in Unicode, LaTeX and JSON.

mod block;
mod embedding_and_head;
mod inner;
mod latent;
mod math;
mod render;
mod scales;
mod streams;

use serde::{Deserialize, Serialize};

pub use math::{Equation, Math};

use super::error::PlacementError;
use super::layers::unresolved_blocks;
use super::resolve::{Resolved, resolve};
use super::spec::{Placement, UnresolvedBlock};
use super::symbolic_count::SymbolicCount;
use super::validate::{ModelFacts, Warning, validate};
use scales::Scales;

/// Complete description of a placement at one depth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Explanation {
    /// Name of the placement, if it has one.
    pub name: Option<String>,
    /// Canonical hash of the placement.
    pub hash: String,
    /// Number of blocks `L`.
    pub n_layers: usize,
    /// Assumed dimensions and architecture of the model, which determine the values of formulas of the width.
    pub facts: ModelFacts,
    /// Equations from the token to the first block.
    pub embedding: Vec<Equation>,
    /// Groups of blocks with the same configuration, in order of their first block.
    pub groups: Vec<BlockGroup>,
    /// Equations from the last block to logits and loss.
    pub head: Vec<Equation>,
    /// Definition of the norm function.
    pub norm: Vec<Equation>,
    /// Initial weights.
    pub init: Vec<Equation>,
    /// Number of parameters of all norms of the model.
    pub norm_parameters: SymbolicCount,
    /// Number of elements per token that pass through norms, in the whole model.
    pub normalized_elements: SymbolicCount,
    /// Number of parameters in the learned scales of the whole model.
    pub learned_parameters: SymbolicCount,
    /// Warnings from validation.
    pub warnings: Vec<Warning>,
    /// The placement itself.
    pub placement: Placement,
    /// The resolved placement.
    pub resolved: Resolved,
}

/// Blocks with the same configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BlockGroup {
    /// Heading with 1-based block numbers: `block 1`, `blocks 2–12`.
    pub title: String,
    /// 0-based block indices.
    pub layers: Vec<usize>,
    /// Equations from the residual stream at the block's input, `X`, to that at its output, `X′`; with two streams also
    /// from `D` to `D′`.
    pub equations: Vec<Equation>,
    /// Definitions of the symbols of the equations.
    pub definitions: Vec<Equation>,
    /// Number of parameters of the norms of one block.
    pub norm_parameters: SymbolicCount,
    /// Number of elements per token that pass through the norms of one block.
    pub normalized_elements: SymbolicCount,
    /// Number of parameters in the learned scales of one block.
    pub learned_parameters: SymbolicCount,
}

impl Explanation {
    /// Default number of blocks.
    pub const DEFAULT_LAYERS: usize = 12;

    /// Explains a placement at a depth and size. `facts` selects grouped-query or multi-head latent attention.
    ///
    /// # Errors
    /// The placement is invalid at this depth and size.
    ///
    /// ```
    /// use hybridnorm::placement::{Explanation, ModelFacts, named};
    /// let explanation = Explanation::new(&named("pre-norm")?, 24, &ModelFacts::default())?;
    /// assert_eq!(explanation.groups[0].title, "blocks 1–24");
    /// assert_eq!(explanation.norm_parameters.to_string(), "49d");
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn new(
        placement: &Placement,
        n_layers: usize,
        facts: &ModelFacts,
    ) -> Result<Self, PlacementError> {
        let warnings = validate(placement, n_layers, facts)?;
        let r = resolve(placement, n_layers, facts.d_model)?;
        let groups = groups(placement, &r, facts)?;
        let of_blocks = |count: fn(&BlockGroup) -> SymbolicCount| {
            groups.iter().fold(SymbolicCount::default(), |sum, group| {
                sum + count(group) * group.layers.len()
            })
        };
        let outer_norms = r.n_norms_outside_blocks();
        let wide = SymbolicCount {
            d: outer_norms,
            ..SymbolicCount::default()
        };
        Ok(Self {
            name: None,
            hash: placement.hash(),
            n_layers,
            facts: *facts,
            embedding: embedding_and_head::embedding(placement, &r),
            head: embedding_and_head::head(placement, &r),
            norm: embedding_and_head::norm_function(&r.norm),
            init: embedding_and_head::init(placement, &r, facts),
            norm_parameters: of_blocks(|g| g.norm_parameters)
                + SymbolicCount::norm(&r.norm) * outer_norms,
            normalized_elements: of_blocks(|g| g.normalized_elements) + wide,
            learned_parameters: of_blocks(|g| g.learned_parameters)
                + SymbolicCount::scale(r.embed_scale)
                + SymbolicCount::logit_scale(r.logits.scale),
            groups,
            warnings,
            placement: placement.clone(),
            resolved: r,
        })
    }

    /// Explains a placement at 12 blocks of width 768.
    ///
    /// # Errors
    /// The placement is invalid at this depth and size.
    ///
    /// ```
    /// use hybridnorm::placement::{Explanation, named};
    /// let explanation = Explanation::of(&named("hybridnorm-star")?)?;
    /// let titles: Vec<&str> = explanation.groups.iter().map(|group| &group.title[..]).collect();
    /// assert_eq!(titles, ["block 1", "blocks 2–12"]);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn of(placement: &Placement) -> Result<Self, PlacementError> {
        Self::new(placement, Self::DEFAULT_LAYERS, &ModelFacts::default())
    }

    /// Sets the name for the heading.
    ///
    /// ```
    /// use hybridnorm::placement::{Explanation, named};
    /// let explanation = Explanation::of(&named("pre-norm")?)?.named("baseline");
    /// assert!(explanation.to_text().starts_with("baseline  (12 blocks of width 768"));
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }
}

fn groups(
    placement: &Placement,
    r: &Resolved,
    facts: &ModelFacts,
) -> Result<Vec<BlockGroup>, PlacementError> {
    let mut kinds: Vec<(UnresolvedBlock, Vec<usize>)> = Vec::new();
    for (layer, mut block) in unresolved_blocks(placement, r.n_layers())?
        .into_iter()
        .enumerate()
    {
        if r.norm.kind.is_none() {
            block.remove_norms();
        }
        match kinds.iter_mut().find(|(known, _)| *known == block) {
            Some((_, layers)) => layers.push(layer),
            None => kinds.push((block, vec![layer])),
        }
    }
    Ok(kinds
        .into_iter()
        .map(|(block, layers)| group(&block, layers, r, facts))
        .collect())
}

fn group(
    block: &UnresolvedBlock,
    layers: Vec<usize>,
    r: &Resolved,
    facts: &ModelFacts,
) -> BlockGroup {
    let (first, last) = (layers[0], layers[layers.len() - 1]);
    let scales = Scales::new(r.n_layers(), r.d_model, Some((first + 1, last + 1)));
    let context = block::EquationContext {
        streams: r.streams,
        has_gated_activation: facts.has_gated_activation,
        is_latent_attention: facts.is_latent_attention,
    };
    let text = block::equations(block, scales, context);
    BlockGroup {
        title: title(&layers),
        equations: text.equations,
        definitions: text.definitions,
        norm_parameters: r.norm_parameters(first, facts.is_latent_attention),
        normalized_elements: r.normalized_elements(first, facts.is_latent_attention),
        learned_parameters: SymbolicCount::learned_scales(&r.blocks[first]),
        layers,
    }
}

/// `block 1`, `blocks 2–12`, `blocks 1–3, 5`
fn title(layers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for number in layers.iter().map(|layer| layer + 1) {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => runs.push((number, number)),
        }
    }
    let runs: Vec<String> = runs
        .into_iter()
        .map(|(start, end)| match end - start {
            0 => start.to_string(),
            _ => format!("{start}–{end}"),
        })
        .collect();
    let word = if layers.len() == 1 { "block" } else { "blocks" };
    format!("{word} {}", runs.join(", "))
}
