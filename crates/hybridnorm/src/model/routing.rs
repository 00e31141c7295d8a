//! Router statistics of a forward pass.

/// Router statistics of one block.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct RouterStatistics {
    /// Tokens of every expert, in total `top_k · tokens`.
    pub load: Vec<u64>,
    /// Number of routed tokens.
    pub tokens: u64,
    /// Experts per token.
    pub top_k: u64,
    /// Mean entropy of the normalized router scores, in nats.
    pub entropy: f64,
    /// Load-balancing loss, unweighted; 1 if perfectly balanced.
    pub load_balancing_loss: f64,
    /// Router z-loss, unweighted.
    pub z_loss: f64,
}

impl RouterStatistics {
    /// Merges the statistics of other tokens; means are weighted by tokens.
    pub fn merge(&mut self, other: &Self) {
        let tokens = self.tokens + other.tokens;
        let share = other.tokens as f64 / tokens.max(1) as f64;
        let mix = |a: &mut f64, b: f64| *a += (b - *a) * share;
        mix(&mut self.entropy, other.entropy);
        mix(&mut self.load_balancing_loss, other.load_balancing_loss);
        mix(&mut self.z_loss, other.z_loss);
        (self.tokens, self.top_k) = (tokens, other.top_k);
        self.load.resize(other.load.len(), 0);
        for (mine, theirs) in self.load.iter_mut().zip(&other.load) {
            *mine += theirs;
        }
    }

    /// Returns the number of dropped (token, expert) assignments.
    pub fn dropped(&self) -> u64 {
        self.tokens * self.top_k - self.load.iter().sum::<u64>()
    }

    /// Returns the load of the busiest expert over the mean load; 1 if perfectly balanced.
    pub fn imbalance(&self) -> f64 {
        let total: u64 = self.load.iter().sum();
        let most = self.load.iter().max().copied().unwrap_or(0);
        (most * self.load.len() as u64) as f64 / total.max(1) as f64
    }
}
