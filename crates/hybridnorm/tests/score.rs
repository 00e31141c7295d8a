//! Log-likelihoods with shared contexts equal those of one forward pass per request, for every placement and kind of
//! attention.

mod common;

use common::{all_models, perturbed_model};
use hybridnorm::eval::{Request, score};

#[test]
fn shared_contexts_equal_whole_sequences_in_every_model() {
    for (name, config) in all_models() {
        let mut model = perturbed_model(&config);
        let v = config.vocab_size as u32;
        let token = |i: usize| (i * i + 3 * i) as u32 % v;
        // One context of nine tokens and five continuations, which is shared, and two requests alone.
        let length = config.max_seq_len.min(13);
        let context: Vec<u32> = (0..length - 4).map(token).collect();
        let mut requests: Vec<Request> = (1..6)
            .map(|i| Request {
                context: context.clone(),
                continuation: (0..1 + i % 4).map(|j| token(7 * i + j)).collect(),
            })
            .collect();
        requests.extend((1..3).map(|i| Request {
            context: vec![token(i)],
            continuation: vec![token(i + 1), token(i + 2)],
        }));
        let scores = score(&mut model, &requests, &mut |_| ()).unwrap();
        for (request, found) in requests.iter().zip(&scores) {
            let all = [request.context.as_slice(), &request.continuation].concat();
            let input: Vec<i32> = all[..all.len() - 1].iter().map(|&id| id as i32).collect();
            let logits = model.logits(&input, 1, input.len()).unwrap().into_f32();
            let first = request.context.len() - 1;
            let rows = logits.chunks(config.vocab_size).skip(first);
            for ((row, &target), found) in rows.zip(&request.continuation).zip(&found.tokens) {
                let total: f64 = row.iter().map(|&z| f64::from(z).exp()).sum();
                let expected = f64::from(row[target as usize]) - total.ln();
                let error = (found.log_prob - expected).abs();
                assert!(
                    error < 1e-4,
                    "{name}: {} instead of {expected}",
                    found.log_prob
                );
            }
        }
    }
}
