//! A learner and its data, for tests of the parts of the trainer.

use super::learner::Learner;
use crate::Device;
use crate::data::{BatchStream, Cursor, Order, TokenDataset};
use crate::model::Model;
use crate::model::testing::tiny;
use crate::train::{Optimizer, OptimizerConfig, ScheduleConfig, ScheduleKind};

/// Length of a sequence, in tokens.
pub(super) const SEQ: usize = 8;
/// Learning rate.
pub(super) const LR: f64 = 1e-2;

/// Returns a learner with a tiny model, AdamW and a constant learning rate.
pub(super) fn learner() -> Learner {
    let mut model = Model::new(&tiny(), 0, Device::Cpu).unwrap();
    let optimizer = Optimizer::new(OptimizerConfig::default(), &mut model).unwrap();
    let schedule = ScheduleConfig::default().with_kind(ScheduleKind::Constant);
    Learner::new(model, optimizer, schedule.resolve(LR, 100, 1).unwrap())
}

/// Returns two sequences of which the first `known` tokens are in the model's vocabulary.
pub(super) fn batches(known: usize) -> BatchStream {
    let vocab = tiny().vocab_size;
    let token = |i: usize| if i < known { i * i % vocab } else { vocab };
    let tokens: Vec<u32> = (0..2 * SEQ + 1).map(|i| token(i) as u32).collect();
    let dataset = TokenDataset::from_tokens(&tokens, SEQ, vocab + 1).unwrap();
    BatchStream::new(dataset, Order::Sequential, Cursor::default()).unwrap()
}
