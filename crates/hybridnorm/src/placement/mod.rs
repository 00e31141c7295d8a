//! Specification of norm placements: types, named placements, layer overrides, validation, equations.
//!
//! A [`Placement`] is plain data. [`from_value`] reads one from a configuration, [`named`] returns
//! published ones, [`validate()`] checks one for a number of layers, [`resolve()`] evaluates its formulas
//! for every block, [`Explanation`] prints it as equations and [`Placement::hash`] identifies it. This
//! module does not depend on tensors.
//!
//! The kind of attention, grouped-query or multi-head latent, is not part of a placement but of
//! [`ModelFacts`]; [`spec`] documents the sites of the inner norms in latent attention.

mod error;
mod explain;
mod hash;
mod json_value;
mod layers;
mod named;
mod norm_functions;
mod norm_sites;
mod placement_config;
mod resolve;
mod serde_forms;
pub mod spec;
mod symbolic_count;
mod validate;

#[cfg(test)]
mod tests;

pub use error::{PlacementError, PlacementErrorKind};
pub use explain::{BlockGroup, Equation, Explanation, Math};
pub use hash::canonical_hash;
pub use layers::{select_layers, unresolved_blocks};
pub use named::{NamedPlacement, find_named, named, named_placements};
pub use placement_config::{PlacementConfig, from_value};
pub use resolve::{
    MAX_LAYERS, Projection, Resolved, ResolvedInit, ResolvedLogits, ResolvedProjectionGains,
    ScaleContext, resolve,
};
pub use spec::*;
pub use symbolic_count::{ModelSizes, SymbolicCount};
pub use validate::{ModelFacts, Warning, WarningRule, validate};
