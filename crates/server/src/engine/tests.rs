use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use hybridnorm::Device;
use hybridnorm::eval::{Generator, Sampling};
use hybridnorm::model::ModelConfig;

use super::*;

fn config() -> ModelConfig {
    ModelConfig::default()
        .with_d_model(16)
        .with_n_layers(2)
        .with_n_heads(4)
        .with_n_kv_heads(2)
        .with_d_ff(24)
        .with_vocab_size(260)
        .with_max_seq_len(64)
        .with_placement(hybridnorm::placement::named("hybridnorm").unwrap())
}

fn model() -> Model {
    let mut model = Model::new(&config(), 3, Device::Cpu).unwrap();
    // Initial logits are so close to each other that every token is about as likely as the others.
    let head = model.decoder().registry().get("head").unwrap().clone();
    let values: Vec<f32> = model.read(&head).iter().map(|x| 12.0 * x).collect();
    model.write(&head, &values);
    model
}

fn options() -> EngineOptions {
    EngineOptions::default()
        .with_slots(3)
        .with_queue(5)
        .with_prefill_chunk(8)
}

/// Runs a test with an engine.
fn with_engine(options: &EngineOptions, test: impl FnOnce(&EngineHandle)) {
    with_tokenizer(Tokenizer::bytes(), options, test);
}

fn with_tokenizer(tokenizer: Tokenizer, options: &EngineOptions, test: impl FnOnce(&EngineHandle)) {
    let (engine, handle) = Engine::new(model(), tokenizer, options).unwrap();
    let thread = std::thread::spawn(|| engine.run());
    test(&handle);
    drop(handle);
    thread.join().unwrap();
}

fn submit(handle: &EngineHandle, request: Request) -> Receiver<(usize, Event)> {
    let (sender, receiver) = channel();
    handle.submit(request, Box::new(sender)).unwrap();
    receiver
}

/// Result of a choice.
#[derive(Debug, Default, Clone, PartialEq)]
struct Choice {
    prompt: Vec<TokenLogprob>,
    ids: Vec<i32>,
    logprobs: Vec<TokenLogprob>,
    text: String,
    reason: Option<FinishReason>,
    failure: Option<Failure>,
}

fn collect(receiver: &Receiver<(usize, Event)>, choices: usize) -> Vec<Choice> {
    let mut all = vec![Choice::default(); choices];
    for (choice, event) in receiver {
        let choice = &mut all[choice];
        assert_eq!(choice.reason, None, "no event after the last one");
        match event {
            Event::Prompt(evaluated) => choice.prompt.extend(evaluated),
            Event::Token { id, text, logprob } => {
                choice.ids.push(id);
                choice.text.push_str(&text);
                choice.logprobs.extend(logprob);
            }
            Event::Finished { reason, text } => {
                choice.text.push_str(&text);
                choice.reason = Some(reason);
            }
            Event::Failed(failure) => choice.failure = Some(failure),
        }
    }
    all
}

fn one(handle: &EngineHandle, request: Request) -> Choice {
    collect(&submit(handle, request), 1).remove(0)
}

fn prompt(len: usize, seed: i32) -> Vec<i32> {
    (0..len as i32)
        .map(|i| 97 + (i * i + 3 * seed + i) % 26)
        .collect()
}

/// Returns the continuation of a prompt by the generator of the library.
fn generated(prompt: &[i32], n: usize, sampling: Sampling) -> Vec<i32> {
    let mut model = model();
    let mut generator = Generator::new(&mut model, prompt, sampling)
        .unwrap()
        .with_vocab_size(257);
    (0..n).map(|_| generator.next_token().unwrap()).collect()
}

#[test]
fn concurrent_requests_get_what_the_generator_gives_alone() {
    let lens = [1, 9, 20, 8, 3, 17, 2, 30];
    let sampled = |i: usize| {
        Sampling::default()
            .with_temperature(1.0)
            .with_top_p(1.0)
            .with_seed(i as u64)
    };
    with_engine(&options(), |handle| {
        let requests: Vec<_> = lens
            .iter()
            .enumerate()
            .map(|(i, &len)| {
                let mut request = Request::new(prompt(len, i as i32), 12);
                if i % 2 == 1 {
                    request.sampling = sampled(i);
                }
                submit(handle, request)
            })
            .collect();
        for (i, receiver) in requests.iter().enumerate() {
            let sampling = match i % 2 {
                0 => Sampling::default().with_temperature(0.0),
                _ => sampled(i),
            };
            let found = &collect(receiver, 1)[0];
            let mut expected = generated(&prompt(lens[i], i as i32), 12, sampling);
            if let Some(end) = expected.iter().position(|id| *id == 256) {
                expected.truncate(end + 1);
            }
            assert_eq!(found.ids, expected, "request {i}");
        }
        let counters = handle.counters();
        assert_eq!(
            counters.prompt_tokens.load(Ordering::Relaxed),
            lens.iter().sum::<usize>()
        );
    });
}

#[test]
fn log_probabilities_are_those_of_the_full_forward_pass() {
    let ids = prompt(21, 4);
    let mut model = model();
    let logits = model.logits(&ids, 1, ids.len()).unwrap().into_f32();
    let expected: Vec<f64> = logits
        .chunks(260)
        .zip(&ids[1..])
        .map(|(logits, id)| {
            let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
            f64::from(logits[*id as usize]) - total.ln()
        })
        .collect();
    for max_tokens in [0, 1] {
        with_engine(&options(), |handle| {
            let mut request = Request::new(ids.clone(), max_tokens);
            request.logprobs = Some(2);
            request.prompt_logprobs = true;
            let found = one(handle, request);
            assert_eq!(found.prompt.len(), ids.len());
            assert_eq!(found.prompt[0].logprob, None);
            for (found, expected) in found.prompt[1..].iter().zip(&expected) {
                let logprob = found.logprob.unwrap();
                assert!(
                    (f64::from(logprob) - expected).abs() < 1e-4,
                    "{found:?} {expected}"
                );
                assert_eq!(found.top.len(), 2);
                assert!(found.top[0].1 >= found.top[1].1 && found.top[0].1 >= logprob);
            }
            assert!(
                found
                    .prompt
                    .iter()
                    .map(|token| token.id)
                    .eq(ids.iter().copied())
            );
            assert_eq!(found.logprobs.len(), max_tokens);
            assert_eq!(found.reason, Some(FinishReason::Length));
        });
    }
}

#[test]
fn prompt_log_probabilities_do_not_depend_on_other_requests() {
    let mut request = Request::new(prompt(40, 1), 0);
    request.logprobs = Some(1);
    request.prompt_logprobs = true;
    with_engine(&options(), |handle| {
        let alone = one(handle, request.clone());
        let others: Vec<_> = (0..5)
            .map(|i| submit(handle, Request::new(prompt(25, i), 30)))
            .collect();
        assert_eq!(one(handle, request), alone);
        others
            .iter()
            .for_each(|receiver| assert!(collect(receiver, 1)[0].reason.is_some()));
    });
}

#[test]
fn choices_are_numbered_and_have_their_own_seeds() {
    with_engine(&options(), |handle| {
        let mut request = Request::new(prompt(5, 0), 6);
        request.prompts.push(prompt(7, 2));
        request.n = 3;
        request.sampling = Sampling::default().with_temperature(4.0).with_seed(9);
        let all = collect(&submit(handle, request.clone()), 6);
        assert!(all.iter().all(|choice| choice.reason.is_some()));
        for (i, choice) in all.iter().enumerate() {
            let mut single = Request::new(request.prompts[i / 3].clone(), 6);
            single.sampling = Sampling::default()
                .with_temperature(4.0)
                .with_seed(9 + i as u64 % 3);
            assert_eq!(choice.ids, one(handle, single).ids, "choice {i}");
        }
        assert_ne!(all[0].ids, all[1].ids);
    });
}

#[test]
fn text_ends_before_a_stop_string() {
    with_engine(&options(), |handle| {
        let whole = one(handle, Request::new(prompt(5, 0), 20));
        let text: Vec<char> = whole.text.chars().collect();
        let stop: String = text[4..6].iter().collect();
        let at = whole.text.find(&stop).unwrap();
        let mut request = Request::new(prompt(5, 0), 20);
        request.stop = vec!["never".into(), stop];
        let stopped = one(handle, request);
        assert_eq!(stopped.text, whole.text[..at]);
        assert_eq!(stopped.reason, Some(FinishReason::Stop));
        assert!(whole.ids.starts_with(&stopped.ids) && stopped.ids.len() < whole.ids.len());
    });
}

#[test]
fn text_ends_at_any_end_token() {
    let greedy = Sampling::default().with_temperature(0.0);
    let prompt = prompt(5, 1);
    let ids = generated(&prompt, 6, greedy.clone());
    let end = ids[3];
    let at = ids.iter().position(|id| *id == end).unwrap();
    let tokenizer = Tokenizer::bytes().with_end_ids(&[end as u32]);
    with_tokenizer(tokenizer, &options(), |handle| {
        let mut request = Request::new(prompt.clone(), 6);
        request.sampling = greedy.clone();
        let found = one(handle, request);
        assert_eq!(found.ids, ids[..=at]);
        assert_eq!(found.reason, Some(FinishReason::Stop));
        let before: Vec<u32> = ids[..at].iter().map(|id| *id as u32).collect();
        assert_eq!(found.text, Tokenizer::bytes().decode(&before));
    });
}

#[test]
fn a_full_queue_rejects_requests_and_is_usable_again() {
    let options = options().with_slots(1).with_queue(2);
    with_engine(&options, |handle| {
        let long = || Request::new(prompt(4, 0), 60);
        let receivers: Vec<_> = (0..3).map(|_| submit(handle, long())).collect();
        let (sender, _receiver) = channel();
        assert_eq!(
            handle.submit(long(), Box::new(sender)),
            Err(Rejection::QueueFull)
        );
        receivers
            .iter()
            .for_each(|receiver| assert!(collect(receiver, 1)[0].reason.is_some()));
        // The counter is updated after the last event.
        let end = Instant::now() + Duration::from_secs(10);
        while handle.counters().requests.load(Ordering::Acquire) > 0 && Instant::now() < end {
            std::thread::yield_now();
        }
        assert!(one(handle, long()).reason.is_some());
    });
}

#[test]
fn a_request_whose_receiver_is_gone_frees_its_slot() {
    let options = options().with_slots(1);
    with_engine(&options, |handle| {
        let receivers: Vec<_> = (0..4)
            .map(|i| submit(handle, Request::new(prompt(4, i), 61)))
            .collect();
        let mut receivers = receivers.into_iter();
        let last = receivers.next_back().unwrap();
        drop(receivers);
        assert!(collect(&last, 1)[0].reason.is_some());
    });
}

#[test]
fn a_deadline_ends_waiting_and_running_requests() {
    with_engine(&options().with_slots(1), |handle| {
        let mut late = Request::new(prompt(4, 0), 60);
        late.deadline = Some(Instant::now());
        assert_eq!(one(handle, late).failure, Some(Failure::TimedOut));
        assert!(one(handle, Request::new(prompt(4, 0), 3)).reason.is_some());
    });
}

#[test]
fn a_stopped_engine_fails_requests_and_takes_no_more() {
    let (engine, handle) = Engine::new(model(), Tokenizer::bytes(), &options()).unwrap();
    let receiver = submit(&handle, Request::new(prompt(4, 0), 60));
    handle.stop();
    engine.run();
    assert_eq!(collect(&receiver, 1)[0].failure, Some(Failure::Stopped));
    assert!(handle.has_stopped());
    let (sender, _receiver) = channel();
    let rejection = handle.submit(Request::new(vec![1], 1), Box::new(sender));
    assert_eq!(rejection, Err(Rejection::Stopped));
}

#[test]
fn invalid_requests_name_their_field() {
    let (_engine, handle) =
        Engine::new(model(), Tokenizer::bytes(), &options().with_context(32)).unwrap();
    let request = |change: &dyn Fn(&mut Request)| {
        let mut request = Request::new(prompt(4, 0), 4);
        change(&mut request);
        match handle.check(&request) {
            Err(Rejection::Invalid(field, problem)) => format!("{field}: {problem}"),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(request(&|_| ()), "Ok(())");
    // The last new token needs no position.
    assert_eq!(request(&|r| r.max_tokens = 29), "Ok(())");
    for (change, expected) in [
        (
            &(|r: &mut Request| r.max_tokens = 30) as &dyn Fn(&mut Request),
            "prompt: this model's maximum context length is 32 tokens",
        ),
        (
            &|r| r.max_tokens = usize::MAX,
            "prompt: this model's maximum",
        ),
        (
            &|r| r.prompts[0] = vec![],
            "prompt: prompt 0 contains no token",
        ),
        (&|r| r.prompts = vec![], "prompt: there is no prompt"),
        (
            &|r| r.prompts[0][1] = 257,
            "prompt: token id 257 of prompt 0 is outside the vocabulary of 257",
        ),
        (&|r| r.prompts[0][1] = -1, "prompt: token id -1"),
        (&|r| r.n = 0, "n: n = 0"),
        (&|r| r.prompt_logprobs = true, "logprobs: "),
        (&|r| r.sampling.temperature = -1.0, "sampling: temperature"),
    ] {
        let found = request(change);
        assert!(found.starts_with(expected), "{found}");
    }
}

#[test]
fn options_out_of_range_are_errors() {
    for (options, expected) in [
        (options().with_slots(0), "slots = 0, expected at least 1"),
        (
            options().with_context(65),
            "context = 65, expected 1 to 64, the model's max_seq_len",
        ),
        (
            options().with_prefill_chunk(0),
            "prefill_chunk = 0, expected at least 1",
        ),
    ] {
        let error = Engine::new(model(), Tokenizer::bytes(), &options)
            .err()
            .unwrap();
        assert_eq!(error.to_string(), expected);
    }
    let error = Engine::new(model(), Tokenizer::r50k(), &options())
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("the tokenizer has 50257 tokens, the model only 260"),
        "{error}"
    );
}
