//! Model-wide fields: the norm function, embedding, logits, initial weights.

pub use hybridnorm_kernels::norm::{Gain, NormFn, NormScalar};
use serde::{Deserialize, Serialize};

use super::super::serde_forms;
use super::Scale;

/// Norm function with its eps, gain and bias, used at every site of the model.
///
/// ```
/// use hybridnorm::placement::{Explanation, NormFn, NormSpec, named};
///
/// let mut placement = named("pre-norm")?;
/// placement.norm = NormSpec {
///     kind: Some(NormFn::Layernorm),
///     eps: 1e-6,
///     bias: true,
///     ..NormSpec::default()
/// };
/// let equations = Explanation::of(&placement)?.to_text();
/// assert!(equations.contains("(x − mean(x)) / √(var(x) + 1e-6)"), "{equations}");
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table of norm fields")]
pub struct NormSpec {
    /// The function; `None`, in a file `"none"`, removes every norm of the placement.
    #[serde(with = "serde_forms::norm_function_or_none")]
    pub kind: Option<NormFn>,
    /// Added to the mean square, the variance or the sum of squares under the root; not used by `dyt` and
    /// `derf`.
    pub eps: f64,
    /// Kind of gain.
    pub gain: Gain,
    /// True if a bias is added. Defaults to false, also for LayerNorm; a named placement sets it if its source has a
    /// bias.
    pub bias: bool,
    /// Initial value of α in DyT or Derf; `None`, in a file `false`, means 0.5.
    #[serde(with = "serde_forms::number_or_false")]
    pub alpha_init: Option<f64>,
}

impl Default for NormSpec {
    fn default() -> Self {
        Self {
            kind: Some(NormFn::Rmsnorm),
            eps: 1e-5,
            gain: Gain::Plain,
            bias: false,
            alpha_init: None,
        }
    }
}

/// Scale and norm of the token embedding before the first block.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a table of embedding fields"
)]
pub struct Embed {
    /// Scale of the embedding.
    pub scale: Scale,
    /// True if the scaled embedding is normalized.
    pub norm: bool,
    /// Initial standard deviation of the embedding; `None`, in a file `false`, follows the init scheme.
    #[serde(with = "serde_forms::number_or_false")]
    pub init_std: Option<f64>,
}

/// Scale and soft cap of the logits.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table of logits fields")]
pub struct Logits {
    /// `c · tanh(z / c)` (Gemma 2: 30). `false` is off.
    #[serde(with = "serde_forms::number_or_false")]
    pub softcap: Option<f64>,
    /// Scale of the logits before the cap; a learned vector has one number per vocabulary entry (nGPT).
    pub scale: Scale,
    /// Coefficient of `logsumexp(z)²` added to the training loss (PaLM 1e-4, OLMo 2 1e-5).
    pub z_loss: f64,
}

/// Distribution of the initial weights.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table of init fields")]
pub struct Init {
    /// The scheme.
    pub scheme: InitScheme,
    /// The base standard deviation; no effect on `depth_scaled` and `xavier`.
    pub std: StdRule,
    /// Factors on the initial standard deviation by projection (the `gain` of `torch.nn.init`).
    pub gains: ProjectionGains,
}

/// An initialization scheme; σ is the base standard deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum InitScheme {
    /// Every matrix N(0, σ²) (the HybridNorm paper's choice for Pre-Norm).
    #[default]
    Normal,
    /// Truncated at three standard deviations; `1/√fan_in`, and `1/√(2 · fan_in · l)` for attention output
    /// and feed-forward down (OLMo's `mitchell`).
    DepthScaled,
    /// Truncated at 3σ; attention output and feed-forward down at `σ/√(2L)`; an untied head at
    /// `1/√d` (official `full_megatron`).
    Megatron,
    /// Xavier normal, `√(2 / (fan_in + fan_out))`.
    Xavier,
}

impl Init {
    /// Returns the name of the scheme, with the base standard deviation if that is a number.
    ///
    /// ```
    /// use hybridnorm::placement::{Init, StdRule};
    /// let init = Init { std: StdRule::Const(0.02), ..Init::default() };
    /// assert_eq!(init.description(), "normal, std 0.02");
    /// ```
    pub fn description(&self) -> String {
        let scheme = match self.scheme {
            InitScheme::Normal => "normal",
            InitScheme::DepthScaled => "depth_scaled",
            InitScheme::Megatron => "megatron",
            InitScheme::Xavier => "xavier",
        };
        let std = match (self.scheme, self.std) {
            (InitScheme::Normal | InitScheme::Megatron, StdRule::Const(std)) => {
                format!(", std {std}")
            }
            _ => String::new(),
        };
        format!("{scheme}{std}")
    }
}

/// The base standard deviation. Written as a number or `small_init`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum StdRule {
    /// `1/√(2.5 · d)` ("small init", arXiv 1910.05895).
    #[default]
    SmallInit,
    /// A number.
    Const(f64),
}

/// Factors on the initial weights, by projection. They cannot be learned.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a table of gains by projection"
)]
pub struct ProjectionGains {
    /// Query projection.
    pub q: Scale,
    /// Key projection.
    pub k: Scale,
    /// Value projection.
    pub v: Scale,
    /// Attention output projection.
    pub o: Scale,
    /// Feed-forward gate projection.
    pub gate: Scale,
    /// Feed-forward up projection.
    pub up: Scale,
    /// Feed-forward down projection.
    pub down: Scale,
}
