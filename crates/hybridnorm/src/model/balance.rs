//! Aux-loss-free load balancing: a bias on the scores for expert selection is decreased for overloaded experts
//! and increased for underloaded ones (arXiv 2408.15664, DeepSeek-V3).

use std::cmp::Ordering;

use super::feed_forward::FeedForward;
use super::model::Model;
use super::registry::ParamSpec;
use super::routing::RouterStatistics;

impl Model {
    /// Moves the balancing biases by one step of `bias_rate` against the load of a batch, one entry per
    /// mixture-of-experts block: up for experts with fewer tokens than the mean, down for those with more.
    pub fn update_balancing_biases(&mut self, routing: &[RouterStatistics]) {
        let Some(rate) = self.config().moe.as_ref().and_then(|moe| moe.bias_rate) else {
            return;
        };
        for (spec, routing) in self.balancing_biases().iter().zip(routing) {
            let (experts, total) = (routing.load.len() as u64, routing.load.iter().sum::<u64>());
            let mut values = self.read(spec);
            for (value, &tokens) in values.iter_mut().zip(&routing.load) {
                *value += match (tokens * experts).cmp(&total) {
                    Ordering::Less => rate as f32,
                    Ordering::Equal => 0.0,
                    Ordering::Greater => -rate as f32,
                };
            }
            self.write(spec, &values);
        }
    }

    /// Returns the balancing biases, in block order.
    fn balancing_biases(&self) -> Vec<ParamSpec> {
        let blocks = self.decoder().blocks.iter();
        let biases = blocks.filter_map(|block| match &block.feed_forward {
            FeedForward::Moe(mixture) => mixture.balancing_bias,
            FeedForward::Dense(_) => None,
        });
        let registry = self.decoder().registry();
        biases.map(|bias| registry.spec(bias).clone()).collect()
    }
}
