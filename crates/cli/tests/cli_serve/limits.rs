//! Queue, time-outs, the graceful stop, and options.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{Server, trained};

#[test]
fn requests_beyond_the_queue_are_rejected() {
    let dir = trained();
    let server = Server::start(&dir, &["--slots", "1", "--queue", "1"]);
    let body = json!({"prompt": vec!["a"; 60], "max_tokens": 60});
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| server.complete(body.clone()).status))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    assert!(
        statuses.iter().all(|status| [200, 429].contains(status)),
        "{statuses:?}"
    );
    assert!(
        statuses.contains(&200) && statuses.contains(&429),
        "{statuses:?}"
    );
    assert_eq!(server.complete(json!({"prompt": "a"})).status, 200);
    server.stop();
}

#[test]
fn a_request_that_takes_too_long_ends() {
    let dir = trained();
    let server = Server::start(&dir, &["--request-timeout", "0"]);
    let reply = server.complete(json!({"prompt": "a", "max_tokens": 60}));
    assert_eq!(reply.status, 504, "{reply:?}");
    let reply = server.complete(json!({"prompt": "a", "max_tokens": 60, "stream": true}));
    assert_eq!(reply.status, 200);
    assert!(
        reply.events().last().unwrap().contains("took longer than"),
        "{reply:?}"
    );
    server.stop();
}

#[test]
fn a_signal_lets_running_requests_finish() {
    let dir = trained();
    let server = Server::start(&dir, &["--slots", "1"]);
    let body =
        json!({"prompt": vec!["a"; 100], "max_tokens": 60, "temperature": 0, "stream": true})
            .to_string();
    let mut stream = server.connect();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut first = [0; 20];
    stream.read_exact(&mut first).unwrap();
    let (code, text) = server.stop();
    assert_eq!(code, 0, "{text}");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
}

#[test]
fn a_stop_does_not_wait_longer_than_its_time_out() {
    let dir = trained();
    let server = Server::start(&dir, &["--slots", "1", "--stop-timeout", "0"]);
    let body = json!({"prompt": vec!["a"; 200], "max_tokens": 60, "stream": true}).to_string();
    let mut stream = server.connect();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut first = [0; 20];
    stream.read_exact(&mut first).unwrap();
    let start = Instant::now();
    let (code, text) = server.stop();
    assert_eq!(code, 0, "{text}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn models_that_cannot_be_served_are_errors() {
    let dir = trained();
    dir.expect_any_error(&["serve", "none"], &["none"]);
    dir.expect_error(
        2,
        &["serve", "run", "--slots", "0"],
        &["slots = 0, expected at least 1"],
    );
    dir.expect_error(
        2,
        &["serve", "run", "--context", "65"],
        &["context = 65, expected 1 to 64"],
    );
    dir.expect_error(
        2,
        &["serve", "run", "--body-limit", "3"],
        &["body_limit = 3, expected at least 1024"],
    );
    dir.expect_error(
        2,
        &["serve", "run", "--client-timeout", "0"],
        &["client_timeout = 0, expected at least 1"],
    );
    let server = Server::start(&dir, &[]);
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    dir.expect_any_error(
        &["serve", "run", "--port", &port],
        &["cannot listen on 127.0.0.1"],
    );
    server.stop();
}
