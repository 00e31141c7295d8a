//! Arguments of `serve`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hybridnorm::Error;
use hybridnorm_server::ServerOptions;
use hybridnorm_server::engine::EngineOptions;

use super::shared::{DeviceArgs, PrecisionArgs, StartTokenArg};

/// Maximum size of a file with an API key in bytes.
const KEY_LIMIT: u64 = 4096;

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Checkpoint, or run directory, whose newest valid checkpoint is used.
    pub checkpoint: PathBuf,
    /// Address to listen on; anybody who reaches it can use the model, unless there is an API key.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,
    /// Port to listen on; 0: any free one.
    #[arg(long, value_name = "P", default_value_t = ServerOptions::default().port)]
    pub port: u16,
    /// Name of the model in requests and responses (default: the name of the checkpoint's folder).
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// File with the API key that requests must carry (`Authorization: Bearer KEY`).
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Jinja template for chats (default: that of the checkpoint's tokenizer).
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Token before prompts given as text (not before chats, whose template writes it): the one that the tokenizer
    /// adds, if any; the end-of-text token; or none.
    #[arg(long, value_enum, default_value_t = StartTokenArg::Tokenizer)]
    start_token: StartTokenArg,
    /// Device.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Precision.
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// Sequences that are evaluated at the same time.
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().slots)]
    pub slots: usize,
    /// Maximum number of tokens of a prompt and its continuation (default: the model's maximum sequence length).
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Requests that may wait, in addition to one per slot; others are rejected with status 429.
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().queue)]
    pub queue: usize,
    /// Maximum number of prompt tokens that are evaluated between two steps of the other sequences.
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().prefill_chunk)]
    pub prefill_chunk: usize,
    /// Maximum size of a request body in bytes; a response takes up to 16 times as much.
    #[arg(long, value_name = "BYTES", default_value_t = ServerOptions::default().body_limit)]
    pub body_limit: usize,
    /// Maximum number of connections; further ones wait.
    #[arg(long, value_name = "N", default_value_t = ServerOptions::default().max_connections)]
    pub max_connections: usize,
    /// Maximum time of a request, in seconds.
    #[arg(long, value_name = "S", default_value_t = ServerOptions::default().request_timeout.as_secs())]
    pub request_timeout: u64,
    /// Maximum time to receive the head or the body of a request, and to wait for a client that does not read, in
    /// seconds.
    #[arg(long, value_name = "S", default_value_t = ServerOptions::default().client_timeout.as_secs())]
    pub client_timeout: u64,
    /// Maximum time that running requests get to finish after Ctrl-C or SIGTERM, in seconds.
    #[arg(long, value_name = "S", default_value_t = ServerOptions::default().stop_timeout.as_secs())]
    pub stop_timeout: u64,
}

impl ServeArgs {
    /// Returns the options of the server.
    ///
    /// # Errors
    /// If the file with the API key cannot be read.
    pub fn options(&self) -> Result<ServerOptions, Error> {
        let mut engine = EngineOptions::default()
            .with_slots(self.slots)
            .with_queue(self.queue)
            .with_prefill_chunk(self.prefill_chunk);
        engine.context = self.context;
        let mut options = ServerOptions::default()
            .with_host(self.host)
            .with_port(self.port)
            .with_model_name(self.model_name())
            .with_body_limit(self.body_limit)
            .with_max_connections(self.max_connections)
            .with_request_timeout(Duration::from_secs(self.request_timeout))
            .with_client_timeout(Duration::from_secs(self.client_timeout))
            .with_stop_timeout(Duration::from_secs(self.stop_timeout))
            .with_start_token(self.start_token.into())
            .with_engine(engine);
        options.api_key = self.api_key_file.as_deref().map(read_key).transpose()?;
        Ok(options)
    }

    fn model_name(&self) -> String {
        let absolute = self
            .checkpoint
            .canonicalize()
            .unwrap_or_else(|_| self.checkpoint.clone());
        let folder = absolute
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let name = self.model_name.clone().or(folder);
        name.unwrap_or_else(|| ServerOptions::default().model_name)
    }
}

/// Reads an API key, without the end of its line.
fn read_key(path: &Path) -> Result<String, Error> {
    let bytes = hybridnorm::files::read_small(path, KEY_LIMIT)?;
    let key = String::from_utf8(bytes).map_err(|_| Error::format(path, "is not UTF-8"))?;
    match key.trim() {
        "" => Err(Error::format(path, "contains no API key")),
        key => Ok(key.to_owned()),
    }
}
