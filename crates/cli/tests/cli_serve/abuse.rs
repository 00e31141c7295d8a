//! Requests that are malformed, too large, slow, cut off or random.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{Server, read_reply, resident_mib, trained};

/// Returns a request with a header for the length of its body.
fn post(length: &str, body: &str) -> String {
    format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{length}\r\n\r\n{body}"
    )
}

/// Stops a server, which must not have panicked.
fn stop_without_panic(server: Server) {
    let (code, text) = server.stop();
    assert_eq!(code, 0, "{text}");
    assert!(
        !text.contains("panicked") && !text.contains("internal error"),
        "{text}"
    );
}

#[test]
fn malformed_and_oversized_requests_are_rejected() {
    let dir = trained();
    let server = Server::start(&dir, &["--body-limit", "2000"]);
    assert_eq!(
        server.raw(b"\x16\x03\x01\x02\x00 not http\r\n\r\n").status,
        400
    );
    assert_eq!(
        server.raw(b"GET / HTTP/1.1\r\nBad Header\r\n\r\n").status,
        400
    );
    let huge_header = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "a".repeat(100_000)
    );
    // The connection may be reset before the answer is read.
    assert!([0, 400, 431].contains(&server.raw(huge_header.as_bytes()).status));
    assert_eq!(
        server
            .raw(post("Content-Length: 3", "{{{").as_bytes())
            .status,
        400
    );
    assert_eq!(
        server
            .raw(post("Content-Length: 2", "\u{fffd}").as_bytes())
            .status,
        400
    );
    // Announced, and in chunks.
    assert_eq!(
        server
            .raw(post("Content-Length: 2001", "").as_bytes())
            .status,
        413
    );
    let chunk = format!("3e8\r\n{}\r\n", "a".repeat(1000));
    let chunked = post("Transfer-Encoding: chunked", &chunk.repeat(4));
    assert_eq!(server.raw(chunked.as_bytes()).status, 413);
    stop_without_panic(server);
}

#[test]
fn slow_and_cut_off_requests_do_no_harm() {
    let dir = trained();
    let server = Server::start(&dir, &["--slots", "1"]);
    // A head and a body that do not arrive.
    let start = Instant::now();
    let reply = server.raw(post("Content-Length: 100", "{").as_bytes());
    assert_eq!(reply.status, 408, "{reply:?}");
    let mut stream = server.connect();
    stream.write_all(b"GET / HTT").unwrap();
    let reply = read_reply(stream);
    assert!([0, 408].contains(&reply.status), "{reply:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
    // Within the body, and while a long answer is computed: its slot becomes free.
    let mut stream = server.connect();
    stream
        .write_all(post("Content-Length: 100", "{\"prompt\"").as_bytes())
        .unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
    let body = json!({"prompt": "a", "max_tokens": 60, "stream": true}).to_string();
    for _ in 0..5 {
        let mut stream = server.connect();
        let request = post(&format!("Content-Length: {}", body.len()), &body);
        stream.write_all(request.as_bytes()).unwrap();
        let mut first = [0; 20];
        stream.read_exact(&mut first).unwrap();
    }
    assert!(server.choice(json!({"prompt": "a", "max_tokens": 3}))["finish_reason"].is_string());
    stop_without_panic(server);
}

/// Pseudorandom numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

/// Keys of random bodies.
const KEYS: [&str; 23] = [
    "model",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "n",
    "best_of",
    "seed",
    "stop",
    "logprobs",
    "echo",
    "stream",
    "stream_options",
    "suffix",
    "presence_penalty",
    "logit_bias",
    "user",
    "messages",
    "tools",
    "top_logprobs",
    "response_format",
    "unknown",
];

/// Values of random bodies.
const VALUES: [&str; 25] = [
    "null",
    "true",
    "0",
    "1",
    "2",
    "-1",
    "1e400",
    "0.5",
    "18446744073709551616",
    "\"a\"",
    "\"\\ud800\"",
    "\"é\"",
    "[]",
    "[1,2,3]",
    "[[1],[2,3]]",
    "[\"a\",\"b\"]",
    "[1,\"a\"]",
    "{}",
    "{\"a\":[{}]}",
    "[[[[[]]]]]",
    "[{\"role\":\"user\",\"content\":\"hi\"}]",
    "[{\"role\":\"user\"}]",
    "\"tiny\"",
    "16",
    "1000000000000",
];

/// Returns a random body: a request with random fields, damaged in half of the cases, or random bytes.
fn random_body(random: &mut Random) -> Vec<u8> {
    if random.below(10) == 0 {
        return (0..random.below(200))
            .map(|_| random.below(256) as u8)
            .collect();
    }
    let mut fields = vec![format!(
        "\"prompt\":{}",
        random.pick(&["\"abc\"", "[1,2]", "[[1],[2]]", "\"\""])
    )];
    for _ in 0..random.below(5) {
        fields.push(format!(
            "\"{}\":{}",
            random.pick(&KEYS),
            random.pick(&VALUES)
        ));
    }
    let mut body = format!("{{{}}}", fields.join(",")).into_bytes();
    if random.below(2) == 0 {
        for _ in 0..=random.below(3) {
            let at = random.below(body.len());
            match random.below(3) {
                0 => body[at] = random.below(256) as u8,
                1 => body.truncate(at.max(1)),
                _ => body.insert(at, b"{}[]\",:0\\"[random.below(9)]),
            }
        }
    }
    body
}

/// Sends random bodies; every one must be answered.
fn send_random_bodies(server: &Server, count: usize) {
    let mut random = Random(7);
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for i in 0..count {
        let body = random_body(&mut random);
        let path = random.pick(&["/v1/completions", "/v1/completions", "/v1/chat/completions"]);
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            server.address,
            body.len()
        )
        .into_bytes();
        request.extend(&body);
        let reply = server.raw(&request);
        let shown = String::from_utf8_lossy(&body);
        assert!(
            [200, 400, 404].contains(&reply.status),
            "body {i}: {shown}\n{reply:?}"
        );
        if reply.status != 200 {
            assert!(
                reply.json()["error"]["message"].is_string(),
                "body {i}: {shown}"
            );
        }
        *statuses.entry(reply.status).or_default() += 1;
    }
    println!("{count} random bodies: responses by status {statuses:?}");
    assert!(statuses[&200] > 0 && statuses[&400] > 0);
}

#[test]
fn random_bodies_are_answered() {
    let dir = trained();
    let server = Server::start(&dir, &[]);
    send_random_bodies(&server, 300);
    stop_without_panic(server);
}

#[test]
#[ignore = "takes minutes; prints figures"]
fn ten_thousand_random_bodies_are_answered() {
    let dir = trained();
    let server = Server::start(&dir, &[]);
    send_random_bodies(&server, 1_000);
    let before = resident_mib(&server);
    send_random_bodies(&server, 10_000);
    let after = resident_mib(&server);
    println!("resident memory: {before:.1} MiB before, {after:.1} MiB after");
    assert!(after < before + 16.0);
    stop_without_panic(server);
}
