//! Blocks that an override selects, and the configuration of every block after all overrides.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::error::PlacementError;
use super::error::PlacementErrorKind::{InvalidValue, NoEffect, OutOfRange};
use super::json_value;
use super::placement_config::{block_template, to_json};
use super::resolve::MAX_LAYERS;
use super::spec::{Override, Placement, Selector, UnresolvedBlock};

/// Returns the 0-based indices, in ascending order, of the blocks that a selector matches in a model of `n_layers`
/// blocks. A fraction or a step may match none.
///
/// # Errors
/// An index beyond the depth, an empty list or range, a fraction outside (0, 1], a step of 0.
///
/// ```
/// use hybridnorm::placement::{Selector, select_layers};
/// assert_eq!(select_layers(&Selector::Every(3), 7)?, [2, 5]);
/// assert!(select_layers(&Selector::Last(8), 7).is_err());
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn select_layers(selector: &Selector, n_layers: usize) -> Result<Vec<usize>, PlacementError> {
    check_depth(n_layers)?;
    let fail = |kind, problem: String| Err(PlacementError::new(kind, "layers", problem));
    match selector {
        Selector::Indices(indices) => {
            let mut sorted = indices.clone();
            sorted.sort_unstable();
            sorted.dedup();
            match sorted.last() {
                None => fail(
                    NoEffect,
                    "the list of blocks is empty, so the override has no effect".into(),
                ),
                Some(&last) if last >= n_layers => fail(
                    OutOfRange,
                    format!(
                        "block index {last} does not exist: {n_layers} blocks have indices 0 to {}",
                        n_layers.saturating_sub(1)
                    ),
                ),
                Some(_) => Ok(sorted),
            }
        }
        Selector::Range { start, end } if start >= end => fail(
            OutOfRange,
            format!("the range {start}..{end} is empty; end is one past the last block"),
        ),
        Selector::Range { end, .. } if *end > n_layers => fail(
            OutOfRange,
            format!("the range ends at {end}, but there are only {n_layers} blocks"),
        ),
        Selector::Range { start, end } => Ok((*start..*end).collect()),
        Selector::FirstFraction(fraction) if !(*fraction > 0.0 && *fraction <= 1.0) => fail(
            OutOfRange,
            format!("first_fraction is {fraction}; it must lie in (0, 1]"),
        ),
        Selector::FirstFraction(fraction) => {
            // The small term keeps 0.29 · 100 from being rounded down to 28.
            Ok((0..(fraction * n_layers as f64 + 1e-9).floor() as usize).collect())
        }
        Selector::Last(0) => fail(
            OutOfRange,
            "last = 0 selects no block; it must be at least 1".into(),
        ),
        Selector::Last(count) if *count > n_layers => fail(
            OutOfRange,
            format!("last = {count}, but there are only {n_layers} blocks"),
        ),
        Selector::Last(count) => Ok((n_layers - count..n_layers).collect()),
        Selector::Every(0) => fail(
            OutOfRange,
            "every = 0 selects no block; it must be at least 1".into(),
        ),
        Selector::Every(step) => Ok((0..n_layers).skip(step - 1).step_by(*step).collect()),
    }
}

/// Configuration of one block after its overrides, and the indices of the overrides applied to it.
#[derive(Debug, Clone)]
pub(super) struct OverriddenBlock {
    pub block: UnresolvedBlock,
    pub overrides: Vec<usize>,
}

impl OverriddenBlock {
    /// Returns the path of the field `path` of a block in the placement: in the last override that sets it,
    /// or in the block configuration of the placement.
    pub fn origin(&self, placement: &Placement, path: &str) -> String {
        let sets = |index: &&usize| {
            let mut value = &placement.overrides[**index].set;
            for (depth, step) in path.split('.').enumerate() {
                match value.get(step) {
                    Some(inner) => value = inner,
                    None => return depth > 0 && !value.is_object(),
                }
            }
            true
        };
        match self.overrides.iter().rev().find(sets) {
            Some(index) => format!("overrides[{index}].set.{path}"),
            None => format!("block.{path}"),
        }
    }
}

/// Checks that a model of this depth can be resolved.
pub(super) fn check_depth(n_layers: usize) -> Result<(), PlacementError> {
    match n_layers <= MAX_LAYERS {
        true => Ok(()),
        false => {
            let problem = format!("n_layers = {n_layers}, expected at most {MAX_LAYERS}");
            Err(PlacementError::new(OutOfRange, "", problem))
        }
    }
}

pub(super) fn overridden_blocks(
    placement: &Placement,
    n_layers: usize,
) -> Result<Vec<OverriddenBlock>, PlacementError> {
    check_depth(n_layers)?;
    let mut overrides = vec![Vec::new(); n_layers];
    for (index, entry) in placement.overrides.iter().enumerate() {
        let chosen = select_layers(&entry.layers, n_layers)
            .map_err(|e| e.under(&format!("overrides[{index}]")))?;
        for layer in chosen {
            overrides[layer].push(index);
        }
    }
    let mut known: BTreeMap<Vec<usize>, UnresolvedBlock> = BTreeMap::new();
    overrides
        .into_iter()
        .map(|overrides| {
            let block = match known.get(&overrides) {
                Some(block) => block.clone(),
                None => apply_overrides(placement, &overrides)?,
            };
            known.insert(overrides.clone(), block.clone());
            Ok(OverriddenBlock { block, overrides })
        })
        .collect()
}

fn apply_overrides(
    placement: &Placement,
    overrides: &[usize],
) -> Result<UnresolvedBlock, PlacementError> {
    let mut block = placement.block.clone();
    for &index in overrides {
        block = apply(&block, &placement.overrides[index].set)
            .map_err(|e| e.under(&format!("overrides[{index}].set")))?;
    }
    Ok(block)
}

/// Applies one override to a block configuration.
fn apply(block: &UnresolvedBlock, patch: &Value) -> Result<UnresolvedBlock, PlacementError> {
    if !patch.is_object() {
        return Err(PlacementError::new(
            InvalidValue,
            "",
            "expected a table of block fields, such as { ffn = { skip = \"raw\" } }",
        ));
    }
    let mut value = to_json(block)?;
    json_value::merge(&mut value, patch, &block_template()?);
    json_value::read(&value)
}

impl Placement {
    /// Adds an override for the selected blocks that sets the fields in which `change` modifies the base block
    /// configuration.
    ///
    /// ```
    /// use hybridnorm::placement::{Selector, Skip, named, unresolved_blocks};
    /// let placement = named("hybridnorm")?
    ///     .with_override(Selector::Last(2), |block| block.ffn.skip = Skip::Raw);
    /// assert_eq!(placement.overrides[0].set.to_string(), r#"{"ffn":{"skip":"raw"}}"#);
    /// let blocks = unresolved_blocks(&placement, 12)?;
    /// assert_eq!((blocks[9].ffn.skip, blocks[10].ffn.skip), (Skip::Normed, Skip::Raw));
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    #[must_use]
    pub fn with_override(
        mut self,
        layers: Selector,
        change: impl FnOnce(&mut UnresolvedBlock),
    ) -> Self {
        let mut changed = self.block.clone();
        change(&mut changed);
        let set =
            block_difference(&self.block, &changed).expect("a block configuration is plain data");
        self.overrides.push(Override { layers, set });
        self
    }
}

/// Returns the patch that turns a block configuration into another; it may be empty.
fn block_difference(
    base: &UnresolvedBlock,
    changed: &UnresolvedBlock,
) -> Result<Value, PlacementError> {
    let template = block_template()?;
    let full = |block: &UnresolvedBlock| {
        let mut value = template.clone();
        json_value::merge(&mut value, &to_json(block)?, &template);
        Ok::<_, PlacementError>(value)
    };
    let patch = json_value::difference(&full(base)?, &full(changed)?, &template);
    Ok(patch.unwrap_or_else(|| Value::Object(Map::new())))
}

/// Normalizes overrides and selectors, so that equal values have the same form.
pub(super) fn normalize_overrides(mut placement: Placement) -> Result<Placement, PlacementError> {
    let blank = UnresolvedBlock::default();
    let template = block_template()?;
    for (index, entry) in placement.overrides.iter_mut().enumerate() {
        let typed =
            apply(&blank, &entry.set).map_err(|e| e.under(&format!("overrides[{index}].set")))?;
        entry.set = json_value::restrict_to_keys(&to_json(&typed)?, &entry.set, &template);
        if let Selector::Range { start, end } = entry.layers
            && end.saturating_sub(start) == 1
        {
            entry.layers = Selector::Indices(vec![start]);
        }
        if let Selector::Indices(indices) = &mut entry.layers {
            indices.sort_unstable();
            indices.dedup();
            if let [first, .., last] = indices[..]
                && last - first + 1 == indices.len()
            {
                entry.layers = Selector::Range {
                    start: first,
                    end: last + 1,
                };
            }
        }
    }
    Ok(placement)
}

/// Returns the configuration of every block after the overrides, with unresolved scales.
///
/// # Errors
/// A selector that is invalid at this depth, or an override that does not fit the block configuration.
///
/// ```
/// use hybridnorm::placement::{named, unresolved_blocks};
/// let blocks = unresolved_blocks(&named("hybridnorm-star")?, 12)?;
/// assert!(blocks[0].attn.in_norm && !blocks[1].attn.in_norm);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn unresolved_blocks(
    placement: &Placement,
    n_layers: usize,
) -> Result<Vec<UnresolvedBlock>, PlacementError> {
    Ok(overridden_blocks(placement, n_layers)?
        .into_iter()
        .map(|layer| layer.block)
        .collect())
}
