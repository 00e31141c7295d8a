//! Requests in OpenAI's schema, and their conversion to requests of the engine.

use hybridnorm::data::TextStart;
use hybridnorm::eval::Sampling;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::app::App;
use super::error::{ApiError, ApiResult};
use super::fields::{Content, Prompts, Stops, Unsupported};
use crate::chat::Message;
use crate::engine::Request;

/// Maximum number of alternatives per token.
const MAX_LOGPROBS: usize = 20;
/// Maximum number of continuations per prompt.
const MAX_N: usize = 16;
/// New tokens of a completion if `max_tokens` is absent, as in OpenAI's API.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Roles of messages.
const ROLES: [&str; 4] = ["system", "developer", "user", "assistant"];

/// Body of `/v1/completions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CompletionRequest {
    model: Option<String>,
    prompt: Option<Prompts>,
    max_tokens: Option<usize>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<usize>,
    n: Option<usize>,
    best_of: Option<usize>,
    seed: Option<i64>,
    stop: Option<Stops>,
    logprobs: Option<usize>,
    echo: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    suffix: Unsupported,
    #[serde(default)]
    presence_penalty: Unsupported,
    #[serde(default)]
    frequency_penalty: Unsupported,
    #[serde(default)]
    logit_bias: Unsupported,
    /// Has no effect on the result.
    #[serde(rename = "user")]
    _user: Option<IgnoredAny>,
}

/// Body of `/v1/chat/completions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChatRequest {
    model: Option<String>,
    messages: Vec<ChatMessage>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<usize>,
    n: Option<usize>,
    seed: Option<i64>,
    stop: Option<Stops>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<ResponseFormat>,
    #[serde(default)]
    presence_penalty: Unsupported,
    #[serde(default)]
    frequency_penalty: Unsupported,
    #[serde(default)]
    logit_bias: Unsupported,
    #[serde(default)]
    tools: Unsupported,
    #[serde(default)]
    functions: Unsupported,
    #[serde(default)]
    audio: Unsupported,
    #[serde(default)]
    prediction: Unsupported,
    #[serde(default)]
    reasoning_effort: Unsupported,
    #[serde(default)]
    verbosity: Unsupported,
    #[serde(default)]
    web_search_options: Unsupported,
    /// Without tools, these two have no effect.
    #[serde(rename = "tool_choice")]
    _tool_choice: Option<IgnoredAny>,
    #[serde(rename = "parallel_tool_calls")]
    _parallel_tool_calls: Option<IgnoredAny>,
    /// The following have no effect on the result.
    #[serde(rename = "user")]
    _user: Option<IgnoredAny>,
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
    #[serde(rename = "store")]
    _store: Option<IgnoredAny>,
    #[serde(rename = "service_tier")]
    _service_tier: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
    /// Padding against side channels, which this server does not add.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    r#type: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatMessage {
    role: String,
    content: Option<Content>,
    name: Option<String>,
    #[serde(default)]
    tool_calls: Unsupported,
    #[serde(default)]
    function_call: Unsupported,
    #[serde(default)]
    audio: Unsupported,
    #[serde(default)]
    refusal: Unsupported,
    #[serde(rename = "annotations")]
    _annotations: Option<IgnoredAny>,
}

/// Kind of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    Completion,
    Chat,
}

/// A checked request, and what its response needs.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) api: Api,
    pub(super) request: Request,
    /// Text of each prompt, if it begins the text of its choices.
    pub(super) echo: Option<Vec<String>>,
    /// Tokens before prompts that were given as text.
    pub(super) start: Option<TextStart>,
    pub(super) is_stream: bool,
    pub(super) include_usage: bool,
}

/// Fields of both kinds of requests.
struct Common {
    model: Option<String>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<usize>,
    n: Option<usize>,
    seed: Option<i64>,
    stop: Option<Stops>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

/// Moves the fields of [`Common`] out of a request. `serde(flatten)` would buffer the body, and its errors would not name
/// the field.
macro_rules! common {
    ($request:ident) => {
        Common {
            model: $request.model,
            temperature: $request.temperature,
            top_p: $request.top_p,
            top_k: $request.top_k,
            n: $request.n,
            seed: $request.seed,
            stop: $request.stop,
            stream: $request.stream,
            stream_options: $request.stream_options,
        }
    };
}

fn reject(fields: &[(&str, Unsupported)]) -> ApiResult<()> {
    match fields.iter().find(|(_, value)| *value == Unsupported::Set) {
        Some((field, _)) => Err(ApiError::unsupported(field)),
        None => Ok(()),
    }
}

impl CompletionRequest {
    /// Checks and tokenizes the request.
    pub(super) fn prepare(self, app: &App) -> ApiResult<Prepared> {
        reject(&[
            ("suffix", self.suffix),
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
            ("logit_bias", self.logit_bias),
        ])?;
        if self
            .best_of
            .is_some_and(|best_of| best_of != self.n.unwrap_or(1))
        {
            return Err(ApiError::unsupported("best_of"));
        }
        check_top("logprobs", self.logprobs)?;
        let echo = self.echo.unwrap_or(false);
        let Some(prompts) = self.prompt else {
            return Err(ApiError::field(
                "prompt",
                "missing required parameter: `prompt`",
            ));
        };
        let start = matches!(prompts, Prompts::Texts(_)).then_some(app.start);
        let (tokens, echo) = tokenize(prompts, echo, app)?;
        let mut request = Request::new(Vec::new(), self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS));
        request.prompts = tokens;
        request.logprobs = self.logprobs;
        request.prompt_logprobs = echo.is_some() && self.logprobs.is_some();
        let common = common!(self);
        let prepared = common.prepare(Api::Completion, request, echo, app)?;
        Ok(Prepared { start, ..prepared })
    }
}

impl ChatRequest {
    /// Checks the request, and renders and tokenizes its messages.
    pub(super) fn prepare(self, app: &App) -> ApiResult<Prepared> {
        reject(&[
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
            ("logit_bias", self.logit_bias),
            ("tools", self.tools),
            ("functions", self.functions),
            ("audio", self.audio),
            ("prediction", self.prediction),
            ("reasoning_effort", self.reasoning_effort),
            ("verbosity", self.verbosity),
            ("web_search_options", self.web_search_options),
        ])?;
        if self
            .response_format
            .is_some_and(|format| format.r#type != "text")
        {
            return Err(ApiError::unsupported("response_format"));
        }
        check_top("top_logprobs", self.top_logprobs)?;
        let has_logprobs = self.logprobs.unwrap_or(false);
        if self.top_logprobs.is_some_and(|n| n > 0) && !has_logprobs {
            return Err(ApiError::field(
                "top_logprobs",
                "`top_logprobs` requires `logprobs` to be true",
            ));
        }
        let max_tokens = one_limit(self.max_completion_tokens, self.max_tokens)?;
        let prompt = render(self.messages, app)?;
        // Without a limit, an answer may fill the context.
        let rest = (app.engine().context() + 1)
            .saturating_sub(prompt.len())
            .max(1);
        let mut request = Request::new(prompt, max_tokens.unwrap_or(rest));
        request.logprobs = has_logprobs.then(|| self.top_logprobs.unwrap_or(0));
        let common = common!(self);
        common.prepare(Api::Chat, request, None, app)
    }
}

/// Returns the maximum number of new tokens, which has two names.
fn one_limit(new: Option<usize>, old: Option<usize>) -> ApiResult<Option<usize>> {
    match (new, old) {
        (Some(new), Some(old)) if new != old => {
            let message = "`max_tokens` and `max_completion_tokens` differ; remove one of them";
            Err(ApiError::field("max_tokens", message))
        }
        (new, old) => Ok(new.or(old)),
    }
}

/// Returns the tokens of the prompt for some messages.
fn render(messages: Vec<ChatMessage>, app: &App) -> ApiResult<Vec<i32>> {
    let messages = messages.into_iter().enumerate();
    let messages: Vec<Message> = messages
        .map(|(i, message)| message.check(i))
        .collect::<ApiResult<_>>()?;
    if messages.is_empty() {
        return Err(ApiError::field("messages", "there is no message"));
    }
    let prompt = app.chat()?.encode(&messages);
    prompt.map_err(|problem| ApiError::field("messages", problem))
}

impl ChatMessage {
    fn check(self, index: usize) -> ApiResult<Message> {
        let field = |name: &str| format!("messages[{index}].{name}");
        for (name, value) in [
            ("tool_calls", self.tool_calls),
            ("function_call", self.function_call),
            ("audio", self.audio),
            ("refusal", self.refusal),
        ] {
            if value == Unsupported::Set {
                return Err(ApiError::unsupported(&field(name)));
            }
        }
        if !ROLES.contains(&self.role.as_str()) {
            let message = format!("role `{}`, expected one of {}", self.role, ROLES.join(", "));
            return Err(ApiError::field(field("role"), message));
        }
        match self.content {
            Some(Content(content)) => Ok(Message {
                role: self.role,
                content,
                name: self.name,
            }),
            None => Err(ApiError::field(
                field("content"),
                "the message has no content",
            )),
        }
    }
}

impl Common {
    fn prepare(
        self,
        api: Api,
        mut request: Request,
        echo: Option<Vec<String>>,
        app: &App,
    ) -> ApiResult<Prepared> {
        app.check_model(self.model.as_deref())?;
        request.n = self.n.unwrap_or(1);
        if !(1..=MAX_N).contains(&request.n) {
            return Err(ApiError::field(
                "n",
                format!("n = {}, expected 1 to {MAX_N}", request.n),
            ));
        }
        request.sampling = self.sampling()?;
        request.stop = self.stop.unwrap_or_default().0;
        let is_stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !is_stream {
            let message = "`stream_options` requires `stream` to be true";
            return Err(ApiError::field("stream_options", message));
        }
        app.engine().check(&request)?;
        app.check_result_size(&request)?;
        Ok(Prepared {
            api,
            request,
            echo,
            start: None,
            is_stream,
            include_usage: self
                .stream_options
                .is_some_and(|options| options.include_usage),
        })
    }

    /// Returns the sampling parameters; those that have no effect on greedy decoding are accepted.
    fn sampling(&self) -> ApiResult<Sampling> {
        let temperature = self.temperature.unwrap_or(1.0);
        let mut sampling = Sampling::default().with_temperature(temperature);
        sampling.top_p = Some(self.top_p.unwrap_or(1.0));
        sampling.top_k = self.top_k;
        for (field, checked) in [
            (
                "temperature",
                Sampling::default().with_temperature(temperature),
            ),
            (
                "top_p",
                Sampling::default().with_top_p(self.top_p.unwrap_or(1.0)),
            ),
        ] {
            checked
                .check()
                .map_err(|error| ApiError::field(field, error.to_string()))?;
        }
        if temperature == 0.0 || self.top_k == Some(1) {
            return Ok(Sampling::default().with_temperature(0.0));
        }
        sampling.seed = Some(self.seed.map_or_else(random_seed, |seed| seed as u64));
        Ok(sampling)
    }
}

/// Returns a seed that differs from request to request, from the random keys of the standard library's hash maps.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

fn check_top(field: &str, n: Option<usize>) -> ApiResult<()> {
    match n {
        Some(n) if n > MAX_LOGPROBS => Err(ApiError::field(
            field,
            format!("{field} = {n}, expected at most {MAX_LOGPROBS}"),
        )),
        _ => Ok(()),
    }
}

/// Tokens of prompts, and their texts for `echo`.
type Tokenized = (Vec<Vec<i32>>, Option<Vec<String>>);

fn tokenize(prompts: Prompts, echo: bool, app: &App) -> ApiResult<Tokenized> {
    match prompts {
        Prompts::Texts(texts) => {
            let encode = |text: &String| {
                let ids = app.tokenizer().encode(text);
                let ids = ids.map_err(|error| ApiError::field("prompt", error.to_string()))?;
                let ids = app.start.before(&ids).into_iter();
                Ok(ids.map(|id| id as i32).collect())
            };
            let tokens = texts.iter().map(encode).collect::<ApiResult<_>>()?;
            Ok((tokens, echo.then_some(texts)))
        }
        Prompts::Tokens(tokens) => {
            let decode = |ids: &Vec<i32>| {
                let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
                app.tokenizer().decode(&ids)
            };
            let texts = echo.then(|| tokens.iter().map(decode).collect());
            Ok((tokens, texts))
        }
    }
}
