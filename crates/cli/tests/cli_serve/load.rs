//! Many clients at once.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{Server, resident_mib, trained};

/// Runs clients that complete prompts for some seconds; returns requests, tokens and the latencies.
fn load(server: &Server, clients: usize, seconds: u64) -> (usize, usize, Vec<f64>) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let client = |i: usize| {
        let (mut tokens, mut latencies) = (0, Vec::new());
        while Instant::now() < end {
            let stream = (i + latencies.len()).is_multiple_of(2);
            let body = json!({
                "prompt": "Once upon a time, there was"[..1 + (7 * i + latencies.len()) % 27],
                "max_tokens": 32, "seed": i, "stream": stream, "logprobs": 1,
            });
            let start = Instant::now();
            let reply = server.complete(body);
            latencies.push(start.elapsed().as_secs_f64());
            assert_eq!(reply.status, 200, "{reply:?}");
            tokens += match stream {
                true => {
                    assert!(reply.body.ends_with("data: [DONE]\n\n"), "{reply:?}");
                    reply.body.matches("token_logprobs\":[-").count()
                }
                false => reply.json()["usage"]["completion_tokens"].as_u64().unwrap() as usize,
            };
        }
        (tokens, latencies)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..clients)
            .map(|i| scope.spawn(move || client(i)))
            .collect();
        all.into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    let tokens = results.iter().map(|(tokens, _)| tokens).sum();
    let mut latencies: Vec<f64> = results
        .into_iter()
        .flat_map(|(_, latencies)| latencies)
        .collect();
    latencies.sort_by(f64::total_cmp);
    (latencies.len(), tokens, latencies)
}

#[test]
#[ignore = "takes three minutes; prints figures"]
fn sixty_four_clients_for_two_minutes() {
    let dir = trained();
    let server = Server::start(&dir, &["--slots", "64"]);
    let report = |clients: usize, seconds: u64| {
        let (requests, tokens, latencies) = load(&server, clients, seconds);
        let at =
            |fraction: f64| 1e3 * latencies[(fraction * (latencies.len() - 1) as f64) as usize];
        println!(
            "{clients} clients, {seconds} s: {requests} requests, {:.0} tokens/s; latency of 32 tokens: median {:.1} ms, \
             95 % {:.1} ms, longest {:.1} ms; resident memory {:.1} MiB",
            tokens as f64 / seconds as f64,
            at(0.5),
            at(0.95),
            at(1.0),
            resident_mib(&server)
        );
    };
    report(1, 15);
    report(64, 15);
    let before = resident_mib(&server);
    report(64, 120);
    let after = resident_mib(&server);
    assert!(
        after < before + 8.0,
        "{before} MiB after warm-up, {after} MiB at the end"
    );
    let (code, text) = server.stop();
    assert_eq!(code, 0, "{text}");
    println!(
        "{}",
        text.lines().find(|line| line.contains("memory:")).unwrap()
    );
}
