//! Options of the server.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use derive_setters::Setters;
use hybridnorm::data::StartToken;

use crate::engine::EngineOptions;

/// Options of the server.
#[derive(Debug, Clone, Setters)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Address to listen on, the loopback address by default.
    pub host: IpAddr,
    /// Port; 0: any free one.
    pub port: u16,
    /// Name of the model in requests and responses.
    pub model_name: String,
    /// Key that requests must carry (`Authorization: Bearer KEY`), if any.
    pub api_key: Option<String>,
    /// Maximum size of a request body in bytes, 1 MiB by default.
    pub body_limit: usize,
    /// Maximum number of connections; further ones wait. 256 by default.
    pub max_connections: usize,
    /// Maximum time of a request from its body to its last token, 10 minutes by default.
    pub request_timeout: Duration,
    /// Maximum time to receive a request's head, to receive its body, and to wait for a client that does not read.
    /// 30 seconds by default.
    pub client_timeout: Duration,
    /// Maximum time that running requests get to finish when the server stops, 30 seconds by default.
    pub stop_timeout: Duration,
    /// Token before prompts of completions that are given as text, the one of the tokenizer by default.
    pub start_token: StartToken,
    /// Options of the engine.
    pub engine: EngineOptions,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            host: Ipv4Addr::LOCALHOST.into(),
            port: 8080,
            model_name: "hybridnorm".into(),
            api_key: None,
            body_limit: 1 << 20,
            max_connections: 256,
            request_timeout: Duration::from_secs(600),
            client_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(30),
            start_token: StartToken::default(),
            engine: EngineOptions::default(),
        }
    }
}

impl ServerOptions {
    /// Response bytes per byte of the body limit.
    const RESPONSE_FACTOR: usize = 16;
    /// Bytes of a parsed request, its tokens included, per byte of its body.
    const PARSED_FACTOR: usize = 8;
    /// Buffers of a connection in bytes.
    pub(crate) const CONNECTION_BYTES: usize = 256 << 10;

    /// Returns the maximum size of a response in bytes, 16 times the body limit.
    pub(crate) fn response_limit(&self) -> usize {
        self.body_limit.saturating_mul(Self::RESPONSE_FACTOR)
    }

    /// Returns the maximum memory of a request in bytes: body, parsed body and response.
    pub(crate) fn request_bytes(&self) -> u64 {
        let factor = 1 + Self::PARSED_FACTOR + Self::RESPONSE_FACTOR;
        self.body_limit.saturating_mul(factor) as u64
    }
}
