use super::lru_cache::LruCache;
use super::testing::tiny;
use super::{Device, Model, ModelConfig};

fn model() -> Model {
    Model::new(&tiny(), 0, Device::Cpu).unwrap()
}

#[test]
fn program_cache_is_bounded() {
    let mut model = model();
    let ids = [1; 32];
    for seq in 1..=32 {
        let ids = &ids[..seq];
        model.hidden(ids, 1, seq).unwrap();
        model.logits(ids, 1, seq).unwrap();
        model.losses(ids, ids, [1, seq], 1.0).unwrap();
        model.activation_stats(ids, 1, seq).unwrap();
    }
    let kept = [model.forward.len(), model.losses.len(), model.taps.len()];
    assert_eq!(kept, [LruCache::<(), ()>::CAPACITY; 3]);
}

#[test]
fn targets_of_minus_one_are_ignored_and_others_outside_the_vocabulary_are_rejected() {
    let mut model = model();
    let mut loss = |targets: &[i32]| {
        let losses = model.losses(&[1, 2, 3], targets, [1, 3], 1.0);
        losses.map(|losses| losses.cross_entropy)
    };
    let all = loss(&[2, 3, 4]).unwrap();
    let parts = loss(&[2, -1, -1]).unwrap() + loss(&[-1, 3, 4]).unwrap();
    assert!((all - parts).abs() < 1e-5, "{all} {parts}");
    for outside in [-2, 8, i32::MIN, i32::MAX] {
        let error = loss(&[2, outside, 4]).unwrap_err().to_string();
        let expected = format!("token id {outside} at position 1 is outside the vocabulary of 8");
        assert!(error.contains(&expected), "{error}");
    }
    assert!(loss(&[2, 3]).is_err());
    // Only targets may be -1.
    assert!(model.check_ids(&[-1], 1, 1).is_err());
}

#[test]
fn new_cache_rejects_a_batch_of_zero() {
    let error = model().new_cache(0, 4).unwrap_err().to_string();
    assert_eq!(error, "batch = 0, expected at least 1");
}

#[test]
fn derived_sizes_of_an_empty_configuration_are_zero() {
    let config = ModelConfig::default();
    assert_eq!((config.head_dim(), config.cache_width()), (0, 0));
    assert!(config.resolve().is_err());
}

#[test]
fn batches_that_the_model_cannot_run_are_errors() {
    let mut model = model();
    let none = "there are no token ids";
    let long = "sequence length = 33, expected at most max_seq_len = 32";
    for (ids, batch, seq, expected) in [(&[][..], 0, 0, none), (&[1; 33], 1, 33, long)] {
        let errors = [
            model.logits(ids, batch, seq).err(),
            model.hidden(ids, batch, seq).err(),
            model.losses(ids, ids, [batch, seq], 1.0).err(),
            model.activation_stats(ids, batch, seq).err(),
        ];
        for error in errors {
            assert_eq!(error.unwrap().to_string(), expected);
        }
    }
    let mut cache = model.new_cache(1, 2).unwrap();
    model.next_logits(&[1, 2], &mut cache, false).unwrap();
    let full = model.next_logits(&[3], &mut cache, false).unwrap_err();
    let expected = "positions = 3, expected at most 2, the capacity of the cache";
    assert_eq!(full.to_string(), expected);
    let empty = model.next_logits(&[], &mut cache, false).unwrap_err();
    assert_eq!(empty.to_string(), none);
}
