//! Where the tokens of a forward pass went, and what that costs.

use burn::tensor::Tensor;

use crate::eager::{self as ops, Chosen};

/// What the router of one block said of n tokens.
#[derive(Debug, Clone)]
pub struct Routed {
    logits_ne: Tensor<2>,
    chosen: Chosen,
}

/// What the router of one block did, in numbers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Routing {
    /// Tokens that every expert computed; all together `top_k` times the tokens.
    pub load: Vec<u64>,
    /// Tokens that were routed, each to `top_k` experts.
    pub tokens: u64,
    /// Experts a token.
    pub top_k: u64,
    /// Mean entropy of the scores, which add up to 1, in nats.
    pub entropy: f64,
    /// Load-balancing loss, unweighted: 1 where all is even.
    pub load_balance: f64,
    /// z-loss of the router, unweighted.
    pub z: f64,
}

impl Routed {
    pub(super) fn new(logits_ne: Tensor<2>, chosen: Chosen) -> Self {
        Self { logits_ne, chosen }
    }

    /// `[load-balancing loss, z-loss]`, unweighted:
    ///
    /// ```text
    /// E · Σ_e (routed slots of e / (n · k)) · mean over tokens of p_e
    /// mean over tokens of logsumexp(logits)²
    /// ```
    ///
    /// with p the softmax of the logits, or sigmoids divided by their sum (arXiv 2101.03961 with k
    /// experts a token as in arXiv 2409.02060; arXiv 2202.08906).
    pub fn losses(&self) -> Tensor<1> {
        ops::router_losses(self.logits_ne.clone(), &self.chosen)
    }

    /// The same in numbers.
    pub fn routing(&self) -> Routing {
        let losses = ops::router_statistics(&self.logits_ne, &self.chosen);
        let load = self.chosen.plan().load().iter();
        Routing {
            load: load.map(|&tokens| tokens as u64).collect(),
            tokens: self.logits_ne.dims()[0] as u64,
            top_k: self.chosen.router.top_k as u64,
            entropy: losses.entropy,
            load_balance: losses.balance,
            z: losses.z,
        }
    }
}

impl Routing {
    /// Adds what was found for other tokens; means are weighted by tokens.
    pub fn merge(&mut self, other: &Self) {
        let tokens = self.tokens + other.tokens;
        let share = other.tokens as f64 / tokens.max(1) as f64;
        let mix = |a: &mut f64, b: f64| *a += (b - *a) * share;
        mix(&mut self.entropy, other.entropy);
        mix(&mut self.load_balance, other.load_balance);
        mix(&mut self.z, other.z);
        (self.tokens, self.top_k) = (tokens, other.top_k);
        self.load.resize(other.load.len(), 0);
        for (mine, theirs) in self.load.iter_mut().zip(&other.load) {
            *mine += theirs;
        }
    }

    /// Slots (a token in one of its experts) that no expert computed.
    pub fn dropped(&self) -> u64 {
        self.tokens * self.top_k - self.load.iter().sum::<u64>()
    }

    /// Load of the busiest expert over the mean load; 1 where all is even.
    pub fn imbalance(&self) -> f64 {
        let total: u64 = self.load.iter().sum();
        let most = self.load.iter().max().copied().unwrap_or(0);
        (most * self.load.len() as u64) as f64 / total.max(1) as f64
    }
}
