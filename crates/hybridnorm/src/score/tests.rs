use super::*;
use crate::Device;
use crate::model::ModelConfig;
use crate::model::testing::tiny;

fn requests(seed: u32, count: usize, vocab: u32) -> Vec<Request> {
    let mut state = seed;
    let mut next = move |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % below
    };
    let mut all = Vec::new();
    while all.len() < count {
        let context: Vec<u32> = (0..1 + next(20)).map(|_| next(vocab)).collect();
        // One to twelve continuations of each context, some of one token.
        for _ in 0..1 + next(12) {
            let continuation = (0..1 + next(6)).map(|_| next(vocab)).collect();
            all.push(Request {
                context: context.clone(),
                continuation,
            });
        }
    }
    all
}

/// Scores one request by a forward pass over the whole sequence.
fn alone(model: &mut Model, request: &Request) -> Vec<TokenScore> {
    let longest = model.config().max_seq_len;
    let all = [request.context.as_slice(), &request.continuation].concat();
    let all = &all[all.len().saturating_sub(longest + 1)..];
    let input = tree::ids(&all[..all.len() - 1]);
    let v = model.config().vocab_size;
    let logits = model.logits(&input, 1, input.len()).unwrap().into_f32();
    let first = input.len() - request.continuation.len();
    let targets = request.continuation.iter().enumerate();
    targets
        .map(|(i, &target)| {
            let row = &logits[(first + i) * v..][..v];
            let total: f64 = row.iter().map(|&z| f64::from(z).exp()).sum();
            let best = (0..v).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
            TokenScore {
                log_prob: f64::from(row[target as usize]) - total.ln(),
                is_greedy: best == Some(target as usize),
            }
        })
        .collect()
}

fn check_all(config: &ModelConfig) {
    let mut model = Model::new(config, 3, Device::Cpu).unwrap();
    let requests = requests(5, 120, config.vocab_size as u32);
    let mut last = 0;
    let scores = score(&mut model, &requests, &mut |done| last = done).unwrap();
    assert_eq!(last, requests.len());
    for (request, score) in requests.iter().zip(&scores) {
        assert_same(&score.tokens, &alone(&mut model, request));
    }
}

fn assert_same(found: &[TokenScore], expected: &[TokenScore]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let error = (found.log_prob - expected.log_prob).abs();
        assert!(error < 1e-5, "{found:?} instead of {expected:?}");
        assert_eq!(found.is_greedy, expected.is_greedy);
    }
}

#[test]
fn shared_contexts_and_batches_equal_separate_forward_passes() {
    check_all(&tiny());
}

#[test]
fn results_do_not_need_more_slots_than_a_path_has_nodes() {
    let config = tiny();
    let mut model = Model::new(&config, 3, Device::Cpu).unwrap();
    let header: Vec<u32> = (0..10).map(|i| i % 8).collect();
    let mut requests = requests(11, 80, 8);
    for request in &mut requests[30..] {
        request.context.splice(0..0, header.iter().copied());
        request.context.truncate(24);
    }
    let expected: Vec<_> = requests.iter().map(|r| alone(&mut model, r)).collect();
    for (slots, depth) in [(1, 1), (2, 2), (3, 3), (4, 3), (5, 2), (60, 3)] {
        let sequences = requests.iter().enumerate();
        let sequences = sequences.map(|(i, r)| Sequence::new(i, r, config.max_seq_len));
        let trees = Trees::new(sequences.collect(), depth);
        assert_eq!(trees.depth(), depth);
        let mut cache = model.new_slot_cache(slots, config.max_seq_len).unwrap();
        let mut scorer = Scorer {
            model: &mut model,
            scores: vec![Score::default(); requests.len()],
            requests: &requests,
            done: 0,
            progress: &mut |_| (),
        };
        scorer.run_trees(&trees, &mut cache).unwrap();
        assert_eq!(scorer.done, requests.len());
        for (score, expected) in scorer.scores.iter().zip(&expected) {
            assert_same(&score.tokens, expected);
        }
        model.free_slot_cache(cache);
    }
}

#[test]
fn contexts_longer_than_the_model_are_cut_at_their_start() {
    let config = ModelConfig {
        max_seq_len: 9,
        ..tiny()
    };
    check_all(&config);
    let mut model = Model::new(&config, 3, Device::Cpu).unwrap();
    let request = Request {
        context: vec![1; 9],
        continuation: vec![2, 3, 4],
    };
    let scores = score(&mut model, &[request], &mut |_| ()).unwrap();
    // Ten tokens remain, the last of which is not an input.
    assert_eq!(scores[0].cut_tokens, 2);
}

#[test]
fn results_do_not_depend_on_the_order_of_requests() {
    let mut model = Model::new(&tiny(), 3, Device::Cpu).unwrap();
    let mut requests = requests(7, 60, 8);
    let scores = score(&mut model, &requests, &mut |_| ()).unwrap();
    requests.reverse();
    let mut reversed = score(&mut model, &requests, &mut |_| ()).unwrap();
    reversed.reverse();
    assert_eq!(scores, reversed);
}

#[test]
fn invalid_requests_are_rejected() {
    let mut model = Model::new(&tiny(), 3, Device::Cpu).unwrap();
    let cases: [(&[u32], &[u32], &str); 4] = [
        (&[], &[1], "request 1: "),
        (&[1], &[], "no token"),
        (&[1], &[8], "outside the vocabulary of 8"),
        (&[1], &[0; 33], "at most max_seq_len = 32"),
    ];
    for (context, continuation, expected) in cases {
        let request = Request {
            context: context.to_vec(),
            continuation: continuation.to_vec(),
        };
        let error = score(&mut model, &[request], &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_log_probability_that_is_not_finite_is_an_error() {
    let mut model = Model::new(&tiny(), 3, Device::Cpu).unwrap();
    let spec = model.parameters().next().unwrap().clone();
    model.write(&spec, &vec![f32::NAN; spec.elements()]);
    let request = Request {
        context: vec![1],
        continuation: vec![2],
    };
    let error = score(&mut model, &[request], &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::Diverged { .. }), "{error}");
}
