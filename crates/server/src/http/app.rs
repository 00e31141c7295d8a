//! State that all handlers share.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use hybridnorm::data::{TextStart, Tokenizer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::error::{ApiError, ApiResult};
use super::metrics::Metrics;
use crate::chat::ChatPrompts;
use crate::engine::{EngineHandle, Request};
use crate::options::ServerOptions;

/// State of the server.
pub(super) struct App {
    engine: EngineHandle,
    tokenizer: Tokenizer,
    /// Tokens before prompts given as text.
    pub(super) start: TextStart,
    chat: Result<ChatPrompts, String>,
    pub(super) options: ServerOptions,
    /// Unix time of the start, in seconds.
    pub(super) created: u64,
    pub(super) metrics: Metrics,
    /// One permit per request that is read, runs or is being answered.
    permits: Arc<Semaphore>,
    is_stopping: watch::Receiver<bool>,
}

impl App {
    pub(super) fn new(
        engine: EngineHandle,
        tokenizer: Tokenizer,
        options: ServerOptions,
        is_stopping: watch::Receiver<bool>,
    ) -> Self {
        let chat = match tokenizer.chat_template() {
            Some(template) => ChatPrompts::new(template, &tokenizer),
            None => Err(
                "this model has no chat template: use /v1/completions, or start the server with \
                         --chat-template FILE"
                    .into(),
            ),
        };
        Self {
            permits: Arc::new(Semaphore::new(engine.max_requests())),
            engine,
            start: TextStart::new(&tokenizer, options.start_token),
            tokenizer,
            chat,
            options,
            created: super::unix_seconds(),
            metrics: Metrics::default(),
            is_stopping,
        }
    }

    pub(super) fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Returns the chat template, or the reason why there is none.
    pub(super) fn chat(&self) -> ApiResult<&ChatPrompts> {
        let no_template = |problem: &String| {
            ApiError::field("messages", problem.clone()).with_code("no_chat_template")
        };
        self.chat.as_ref().map_err(no_template)
    }

    /// Returns a receiver of the request to stop.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.is_stopping.clone()
    }

    /// True after the server was asked to stop.
    pub(super) fn is_stopping(&self) -> bool {
        *self.is_stopping.borrow()
    }

    /// Returns a permit for a request, to be held until its response is sent.
    pub(super) fn permit(&self) -> ApiResult<OwnedSemaphorePermit> {
        if self.is_stopping() || self.engine.has_stopped() {
            return Err(ApiError::stopping());
        }
        let permit = self.permits.clone().try_acquire_owned();
        permit.map_err(|_| ApiError::overloaded())
    }

    /// Checks the model that a request names.
    pub(super) fn check_model(&self, name: Option<&str>) -> ApiResult<()> {
        let own = &self.options.model_name;
        match name {
            Some(name) if name != own => {
                let message = format!("the model `{name}` does not exist; this server has `{own}`");
                let mut error = ApiError::field("model", message).with_code("model_not_found");
                error.status = StatusCode::NOT_FOUND;
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Checks that the response of a request fits into the memory that is stated for it.
    pub(super) fn check_result_size(&self, request: &Request) -> ApiResult<()> {
        /// Bytes of a token or of an alternative, in events and in JSON.
        const ENTRY: usize = 128;
        let evaluated = if request.prompt_logprobs {
            request.prompt_tokens()
        } else {
            0
        };
        let tokens = request.choices().saturating_mul(request.max_tokens);
        let tokens = tokens.saturating_add(evaluated.saturating_mul(request.n));
        let entries = tokens.saturating_mul(1 + request.logprobs.unwrap_or(0));
        let most = self.options.response_limit() / ENTRY;
        if entries <= most {
            return Ok(());
        }
        let field = if request.logprobs.is_some() {
            "logprobs"
        } else {
            "max_tokens"
        };
        let message = format!(
            "the response could have {entries} tokens and alternatives, at most {most} are possible: reduce the number of \
             prompts, n, max_tokens or logprobs, or increase --body-limit"
        );
        Err(ApiError::field(field, message))
    }

    pub(super) fn request_timeout(&self) -> Duration {
        self.options.request_timeout
    }
}
