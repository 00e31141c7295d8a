//! A server process, and a client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Child;
use std::time::Duration;

use serde_json::Value;

use crate::common::*;

/// A running server.
pub struct Server {
    pub child: Child,
    pub address: String,
}

/// An HTTP response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns the data of server-sent events.
    pub fn events(&self) -> Vec<&str> {
        let events = self.body.split("\n\n").filter(|event| !event.is_empty());
        events
            .map(|event| event.strip_prefix("data: ").unwrap())
            .collect()
    }

    pub fn error(&self) -> (Value, String) {
        let error = &self.json()["error"];
        (
            error["param"].clone(),
            error["message"].as_str().unwrap().to_owned(),
        )
    }
}

impl Server {
    /// Starts a server for a run directory on a free port.
    pub fn start(dir: &TestDir, more: &[&str]) -> Self {
        let mut args = vec![
            "serve",
            "run",
            "--port",
            "0",
            "--model-name",
            "tiny",
            "--client-timeout",
            "1",
        ];
        args.extend(more);
        let mut child = dir.start(&args);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let Some((_, address)) = line.trim().split_once("serving tiny at http://") else {
            let output = child.wait_with_output().unwrap();
            panic!("{line}{}", stderr(&output));
        };
        Self {
            child,
            address: address.to_owned(),
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream
    }

    /// Sends bytes and reads until the server closes the connection.
    pub fn raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(bytes);
        read_reply(stream)
    }

    pub fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            self.address,
            body.len()
        );
        self.raw((head + body).as_bytes())
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, "", "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.request("POST", path, "", &body.to_string())
    }

    pub fn complete(&self, body: Value) -> Reply {
        self.post("/v1/completions", &body)
    }

    /// Returns the first choice of a completion that must succeed.
    pub fn choice(&self, body: Value) -> Value {
        let reply = self.complete(body);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()["choices"][0].clone()
    }

    /// Stops the server; returns its exit code and standard error.
    pub fn stop(mut self) -> (i32, String) {
        signal(&self.child, "TERM");
        let status = self.child.wait().unwrap();
        let mut text = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        (status.code().unwrap_or(-1), text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already, unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn read_reply(mut stream: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = bytes.split_at(end.map_or(bytes.len(), |end| end + 4));
    let head = String::from_utf8_lossy(head).to_lowercase();
    let body = match head.contains("transfer-encoding: chunked") {
        true => unchunked(body),
        false => body.to_vec(),
    };
    Reply {
        status: head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0),
        head,
        body: String::from_utf8(body).unwrap(),
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        all.extend_from_slice(&bytes[end + 2..][..size]);
        bytes = &bytes[end + 2 + size + 2..];
    }
    all
}

/// Creates a folder with a run whose model has a context of 64 tokens.
pub fn trained() -> TestDir {
    let dir = TestDir::new();
    dir.train("run", &["--set", "train.seq_len=64"]);
    dir
}

pub fn resident_mib(server: &Server) -> f64 {
    let metrics = server.get("/metrics").body;
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    line.unwrap().parse::<f64>().unwrap() / f64::from(1 << 20)
}
