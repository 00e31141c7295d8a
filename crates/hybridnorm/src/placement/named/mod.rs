//! Registry of published placements by name.
//!
//! Each name maps to one placement, defined in the family files with the builder steps of `build.rs`.
//!
//! Unless stated otherwise, a placement keeps the defaults: RMSNorm with a plain gain and eps 1e-5,
//! raw skips, a final norm, and one initial standard deviation `1/√(2.5·d)` for every matrix.
//! Optimizer settings (weight decay of gains, learning-rate warm-up) are not part of a placement.

mod build;
mod classic;
mod hybrid;
mod models;
mod scaled;
mod streams;

use super::error::PlacementErrorKind::UnknownPlacement;
use super::error::{PlacementError, key, nearest};
use super::spec::Placement;

/// A named placement.
#[derive(Debug, Clone, Copy)]
pub struct NamedPlacement {
    /// The canonical name.
    pub name: &'static str,
    /// Other names of the same placement.
    pub aliases: &'static [&'static str],
    /// One-line description.
    pub description: &'static str,
    /// Source: a paper's arXiv number or a repository.
    pub source: &'static str,
    build: fn() -> Placement,
}

impl NamedPlacement {
    /// Returns the placement.
    ///
    /// ```
    /// use hybridnorm::placement::find_named;
    /// let pre_norm = find_named("pre-norm")?.placement();
    /// assert!(pre_norm.block.attn.in_norm && pre_norm.block.ffn.in_norm);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn placement(&self) -> Placement {
        (self.build)()
    }
}

/// Returns every named placement, grouped by family.
///
/// ```
/// use hybridnorm::placement::named_placements;
/// let pre_norm = named_placements().iter().find(|entry| entry.name == "pre-norm").unwrap();
/// assert_eq!(pre_norm.source, "arXiv 2002.04745");
/// ```
pub fn named_placements() -> &'static [NamedPlacement] {
    NAMED_PLACEMENTS
}

/// Returns the registry entry with this name or alias; case is ignored, and `_` and spaces are read as `-`.
///
/// ```
/// use hybridnorm::placement::find_named;
/// assert_eq!(find_named("Qwen3")?.name, "pre-norm-qk");
/// let error = find_named("hybridnrom").unwrap_err();
/// assert!(error.problem.contains("`hybridnorm`"));
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn find_named(name: &str) -> Result<&'static NamedPlacement, PlacementError> {
    let wanted = name.trim().to_ascii_lowercase().replace(['_', ' '], "-");
    let found = NAMED_PLACEMENTS
        .iter()
        .find(|n| n.name == wanted || n.aliases.contains(&wanted.as_str()));
    found.ok_or_else(|| {
        let all = NAMED_PLACEMENTS
            .iter()
            .flat_map(|n| n.aliases.iter().chain([&n.name]))
            .copied();
        let near = nearest(&wanted, all)
            .iter()
            .map(|n| format!("`{n}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let advice = match near.as_str() {
            "" => format!(
                "`hybridnorm placement list` lists all {} placements",
                NAMED_PLACEMENTS.len()
            ),
            near => format!("nearest known: {near}"),
        };
        PlacementError::new(
            UnknownPlacement,
            "",
            format!("unknown placement {}; {advice}", key(name)),
        )
    })
}

/// Returns the placement of this name or alias.
///
/// # Errors
/// The name is unknown; the message lists the nearest known ones.
///
/// ```
/// use hybridnorm::placement::named;
/// assert_eq!(named("pre-ln")?, named("pre-norm")?);
/// assert!(named("no-such-placement").is_err());
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn named(name: &str) -> Result<Placement, PlacementError> {
    find_named(name).map(NamedPlacement::placement)
}

macro_rules! registry {
    ($($name:literal $(| $alias:literal)* : $build:path, $source:literal, $description:literal;)*) => {
        &[$(NamedPlacement {
            name: $name,
            aliases: &[$($alias),*],
            description: $description,
            source: $source,
            build: $build,
        }),*]
    };
}

static NAMED_PLACEMENTS: &[NamedPlacement] = registry! {
    "hybridnorm" | "qkv-post" | "hybrid-norm": hybrid::hybridnorm, "arXiv 2503.04598",
        "norms on q, k and v; the feed-forward's skip is its normalized input";
    "hybridnorm-star" | "hybridnorm*" | "hybrid-norm-star": hybrid::hybridnorm_star,
        "arXiv 2503.04598",
        "HybridNorm whose first block is pre-norm with q, k and v norms";
    "hybridnorm-7b": hybrid::hybridnorm_7b, "arXiv 2503.04598",
        "HybridNorm* with a norm on the attention output whose gain is initialized to 1/√(2L)";
    "hybridnorm-ds": hybrid::hybridnorm_ds, "arXiv 2602.08064 (ablation)",
        "HybridNorm with both outputs divided by √l";
    "first-qkv-pre": hybrid::first_qkv_pre, "arXiv 2503.04598, appendix G",
        "HybridNorm whose first block has a raw feed-forward skip";
    "first-embed-norm": hybrid::first_embed_norm, "arXiv 2503.04598, appendix G",
        "HybridNorm with a norm on the embedding";
    "qkv-pre": hybrid::qkv_pre, "arXiv 2503.04598, appendix G",
        "norms on q, k and v; pre-norm feed-forward (HybridNorm with a raw skip)";
    "pre-qkv-pre": hybrid::pre_qkv_pre, "arXiv 2503.04598, appendix G",
        "pre-norm with norms on q, k and v";
    "pre-qkv-post": hybrid::pre_qkv_post, "arXiv 2503.04598, appendix G",
        "HybridNorm with a norm before attention as well";
    "qkvc-post": hybrid::qkvc_post, "arXiv 2503.04598, appendix G",
        "HybridNorm with a norm on each head's context as well";
    "qkc-post": hybrid::qkc_post, "arXiv 2503.04598, appendix G",
        "HybridNorm with a norm on the context instead of v";
    "kv-post": hybrid::kv_post, "arXiv 2503.04598, appendix G",
        "HybridNorm without the norm on q";
    "kc-post": hybrid::kc_post, "arXiv 2503.04598, appendix G",
        "norms on k and the context; normalized feed-forward skip";
    "qk-post": hybrid::qk_post, "arXiv 2503.04598, appendix G",
        "norms on q and k only; normalized feed-forward skip (diverged in the paper)";
    "pre-post": hybrid::pre_post, "arXiv 2503.04598, appendix G",
        "pre-norm attention; normalized feed-forward skip";
    "post-pre": hybrid::post_pre, "arXiv 2503.04598, appendix G",
        "normalized attention skip; pre-norm feed-forward";
    "post-norm" | "post-ln": classic::post_norm, "arXiv 1706.03762",
        "a norm on each sum (the original; its √d on the embedding is omitted)";
    "post-norm-entry": classic::post_norm_entry, "github BryceZhuo/HybridNorm",
        "post-norm written with normalized skips, so that the embedding is normalized too";
    "pre-norm" | "pre-ln" | "llama": classic::pre_norm, "arXiv 2002.04745",
        "a norm before attention and before the feed-forward; raw skips";
    "pre-norm-qk" | "qk-norm" | "qwen3": classic::pre_norm_qk, "arXiv 2302.05442, Qwen 3",
        "pre-norm with norms on each head's q and k";
    "pre-norm-qk-full": classic::pre_norm_qk_full, "github allenai/OLMo-core",
        "pre-norm with norms on q and k over all heads together";
    "sandwich" | "peri-ln" | "peri-norm" | "sandwich-ln": classic::sandwich,
        "arXiv 2105.13290, 2502.02732",
        "norms on the input and on the output of each sub-layer";
    "olmo2" | "output-norm" | "olmo3" | "reordered-norm": classic::olmo2, "arXiv 2501.00656",
        "norms on the outputs only, and on q and k over all heads together";
    "swin-v2-res-post" | "res-post-norm": classic::swin_v2, "arXiv 2111.09883",
        "LayerNorms on the outputs with gains initialized to 0; cosine attention";
    "sub-ln" | "magneto": classic::sub_ln, "arXiv 2210.06423",
        "pre-norm with a second norm before each output projection";
    "normformer": classic::normformer, "arXiv 2110.09456",
        "pre-norm with head gains, an output norm on attention and a norm inside the feed-forward";
    "simple-norm" | "simplegpt": classic::simple_norm, "arXiv 2602.01212",
        "a norm after every linear layer, none before";
    "gpt-j-parallel" | "palm-parallel": classic::gpt_j_parallel, "GPT-J; arXiv 2204.02311",
        "attention and feed-forward in parallel after one shared norm";
    "neox-parallel": classic::neox_parallel, "arXiv 2204.06745",
        "attention and feed-forward in parallel, each after its own norm";
    "dyt": classic::dyt, "arXiv 2503.10622",
        "pre-norm with tanh(α·x) in place of the norm and a learned embedding scale";
    "derf": classic::derf, "arXiv 2512.10938",
        "pre-norm with erf(α·x + s) in place of the norm";
    "deepnorm": scaled::deepnorm, "arXiv 2203.00555",
        "post-norm with skips times (2L)^(1/4) and smaller initial weights";
    "mix-ln": scaled::mix_ln, "arXiv 2412.13795",
        "post-norm in the first quarter of the blocks, pre-norm in the rest";
    "lns" | "layernorm-scaling": scaled::lns, "arXiv 2502.05795",
        "pre-norm with the normalized input divided by √l";
    "keel": scaled::keel, "arXiv 2601.19895",
        "post-norm with skips times 2L and a norm before each sub-layer";
    "spannorm": scaled::spannorm, "arXiv 2601.22580",
        "post-norm whose feed-forward skip comes from the block's input";
    "b2t": scaled::b2t, "arXiv 2206.00330",
        "post-norm with an extra skip from the block's input to its last sum";
    "layerscale" | "layer-scale" | "cait": scaled::layerscale, "arXiv 2103.17239",
        "pre-norm with a learned factor per channel on each output, initialized to a small value";
    "rezero": scaled::rezero, "arXiv 2003.04887",
        "no norm; a learned factor on each output, initialized to 0";
    "minimax-text-01": scaled::minimax_text_01, "arXiv 2501.08313",
        "normalized skips times (2L)^(1/4) (3.5566 at its 80 layers) with an entry and a final \
         norm";
    "resi-dual" | "residual-dual": streams::resi_dual, "arXiv 2304.14802",
        "post-norm, and a second stream of all outputs that is normalized once, at the end";
    "siamese-norm" | "siamese": streams::siamese_norm, "arXiv 2602.08064",
        "a post-norm and a pre-norm stream with one sub-layer on the norm of their sum";
    "siamese-hybrid": streams::siamese_hybrid,
        "github Qwen-Applications/SiameseNorm",
        "two streams; attention with norms on q, k and v, pre-norm feed-forward";
    "gemma2": models::gemma2, "arXiv 2408.00118",
        "input and output norms with gains 1 + w, soft caps, embedding times √d";
    "gemma3": models::gemma3, "arXiv 2503.19786",
        "input and output norms with gains 1 + w, norms on q and k, embedding times √d";
    "gemma3n": models::gemma3n, "github huggingface/transformers",
        "input and output norms, norms on q, k and (without gain) v, attention scale 1; norms only";
    "nanochat": models::nanochat, "github karpathy/nanochat",
        "pre-norm without gains, embedding norm, q and k normalized after rotation and times 1.2";
    "deepseek-v3": models::deepseek_v3, "arXiv 2412.19437",
        "pre-norm with norms on latent attention's query and key/value latents";
    "ngpt" | "normalized-gpt": models::ngpt, "arXiv 2410.01131, github NVIDIA/ngpt",
        "residual stream and weights of unit length; each sub-layer output is interpolated into the residual stream \
         with a learned rate";
};
