//! `/v1/completions` and `/v1/chat/completions`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::app::App;
use super::body::{self, HeldBody, Pieces};
use super::error::{ApiError, ApiResult};
use super::parse::parse;
use super::reply::{Part, Reply};
use super::request::{Api, ChatRequest, CompletionRequest, Prepared};
use crate::engine::{Event, EventSink};

/// Event of a choice.
type ChoiceEvent = (usize, Event);

/// Sender of events to a handler.
struct Sink(UnboundedSender<ChoiceEvent>);

impl EventSink for Sink {
    fn send(&mut self, choice: usize, event: Event) -> bool {
        // Unbounded, but limited by the check of the size of the result.
        self.0.send((choice, event)).is_ok()
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

pub(super) async fn completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Response<Body>> {
    respond(app, request, |app, body| {
        parse::<CompletionRequest>(body)?.prepare(app)
    })
    .await
}

pub(super) async fn chat_completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Response<Body>> {
    respond(app, request, |app, body| {
        parse::<ChatRequest>(body)?.prepare(app)
    })
    .await
}

async fn respond(
    app: Arc<App>,
    request: Request,
    prepare: fn(&App, &[u8]) -> ApiResult<Prepared>,
) -> ApiResult<Response<Body>> {
    let start = Instant::now();
    let (limit, time) = (app.options.body_limit, app.options.client_timeout);
    let permit = match app.permit() {
        Ok(permit) => permit,
        Err(error) => {
            body::discard(request.into_body(), limit, time).await;
            return Err(error);
        }
    };
    let body = body::read(request.into_body(), limit, time).await?;
    let prepared = {
        let app = app.clone();
        // Long texts take a while to tokenize.
        blocking(move || prepare(&app, &body)).await??
    };
    let Prepared {
        api,
        mut request,
        echo,
        start: text_start,
        is_stream,
        include_usage,
    } = prepared;
    request.deadline = Some(start + app.request_timeout());
    let choices = request.choices();
    let reply = Reply {
        api,
        id: response_id(api, app.created),
        created: super::unix_seconds(),
        model: app.options.model_name.clone(),
        tokenizer: app.tokenizer().clone(),
        echo,
        start: text_start,
        n: request.n,
        has_logprobs: request.logprobs.is_some(),
        prompt_tokens: request.prompt_tokens(),
    };
    let (sender, events) = unbounded_channel();
    app.engine().submit(request, Box::new(Sink(sender)))?;
    match is_stream {
        true => Ok(stream(
            app,
            reply,
            events,
            permit,
            [choices, usize::from(include_usage)],
            start,
        )),
        false => whole(&app, reply, events, permit, choices, start).await,
    }
}

/// Runs work that takes a while on a thread for such work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> ApiResult<T> {
    let result = tokio::task::spawn_blocking(work).await;
    result.map_err(|_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal error, please report it",
        )
    })
}

/// Returns an id that is unique on this server.
fn response_id(api: Api, created: u64) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let prefix = match api {
        Api::Completion => "cmpl",
        Api::Chat => "chatcmpl",
    };
    format!(
        "{prefix}-{created:x}-{:x}",
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Error of a request whose events end without a result: the engine has ended.
fn engine_ended() -> ApiError {
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the engine ended unexpectedly; restart the server",
    )
}

/// Answers with one document when all choices are complete.
async fn whole(
    app: &App,
    reply: Reply,
    mut events: UnboundedReceiver<ChoiceEvent>,
    permit: OwnedSemaphorePermit,
    choices: usize,
    start: Instant,
) -> ApiResult<Response<Body>> {
    let beginning = |index| Part {
        index,
        text: reply.beginning(index).to_owned(),
        // Offsets begin with the text: with `echo`, the log-probabilities are those of the prompt, too.
        ..Part::default()
    };
    let mut parts: Vec<Part> = (0..choices).map(beginning).collect();
    let (mut generated, mut finished) = (0, 0);
    while finished < choices {
        let (choice, event) = events.recv().await.ok_or_else(engine_ended)?;
        let part = &mut parts[choice];
        match event {
            Event::Prompt(evaluated) => part.logprobs.extend(evaluated),
            Event::Token { text, logprob, .. } => {
                if generated == 0 {
                    app.metrics.first_token.observe(start.elapsed());
                }
                generated += 1;
                part.text.push_str(&text);
                part.logprobs.extend(logprob);
            }
            Event::Finished { reason, text } => {
                part.text.push_str(&text);
                part.finish_reason = Some(reason);
                finished += 1;
            }
            Event::Failed(failure) => return Err(failure.into()),
        }
    }
    app.metrics.duration.observe(start.elapsed());
    let document = blocking(move || reply.document(&parts, generated)).await?;
    let document = document
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let body: HeldBody<Chunks> = HeldBody::Whole(Some(document.into()), permit);
    Ok(response(Body::new(body), "application/json"))
}

fn response(body: Body, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Answers with server-sent events.
fn stream(
    app: Arc<App>,
    reply: Reply,
    events: UnboundedReceiver<ChoiceEvent>,
    permit: OwnedSemaphorePermit,
    [choices, include_usage]: [usize; 2],
    start: Instant,
) -> Response<Body> {
    let pieces = Chunks {
        app,
        reply,
        choices: (0..choices).map(|_| ChoiceState::default()).collect(),
        include_usage: include_usage > 0,
        generated: 0,
        finished: 0,
        is_over: false,
        start,
    };
    let body = HeldBody::Stream {
        events,
        pieces,
        permit,
    };
    response(Body::new(body), "text/event-stream; charset=utf-8")
}

/// State of a choice in a stream.
#[derive(Default, Clone)]
struct ChoiceState {
    has_begun: bool,
    /// Characters of the tokens with log-probabilities so far.
    offset: usize,
}

/// Chunks of a stream.
struct Chunks {
    app: Arc<App>,
    reply: Reply,
    choices: Vec<ChoiceState>,
    include_usage: bool,
    generated: usize,
    finished: usize,
    is_over: bool,
    start: Instant,
}

impl Pieces for Chunks {
    type Event = ChoiceEvent;

    fn piece(&mut self, event: Option<ChoiceEvent>) -> Bytes {
        let mut out = Vec::new();
        let result = match event {
            Some((choice, event)) => self.write(choice, event, &mut out),
            None => Err(engine_ended()),
        };
        if let Err(error) = result {
            // The status is already sent; clients read errors from the stream.
            self.is_over = true;
            self.app.metrics.count_response(error.status);
            write_event(&mut out, error.to_json().to_string().as_bytes());
        }
        out.into()
    }

    fn is_over(&self) -> bool {
        self.is_over
    }
}

impl Chunks {
    /// Writes the chunk of an event.
    fn write(&mut self, choice: usize, event: Event, out: &mut Vec<u8>) -> ApiResult<()> {
        let state = &mut self.choices[choice];
        let is_first = !std::mem::replace(&mut state.has_begun, true);
        let mut part = Part {
            index: choice,
            offset: state.offset,
            ..Part::default()
        };
        if is_first {
            part.text.push_str(self.reply.beginning(choice));
        }
        match event {
            Event::Prompt(evaluated) => part.logprobs = evaluated,
            Event::Token { text, logprob, .. } => {
                if self.generated == 0 {
                    self.app.metrics.first_token.observe(self.start.elapsed());
                }
                self.generated += 1;
                part.text.push_str(&text);
                part.logprobs.extend(logprob);
            }
            Event::Finished { reason, text } => {
                part.text.push_str(&text);
                part.finish_reason = Some(reason);
                self.finished += 1;
            }
            Event::Failed(failure) => return Err(failure.into()),
        }
        let is_empty =
            part.text.is_empty() && part.logprobs.is_empty() && part.finish_reason.is_none();
        if !is_empty {
            state.offset += self.reply.characters(&part);
            write_event(out, &document(self.reply.chunk(&part, is_first))?);
        } else if is_first {
            state.has_begun = false;
        }
        if self.finished == self.choices.len() {
            self.is_over = true;
            self.app.metrics.duration.observe(self.start.elapsed());
            if self.include_usage {
                write_event(out, &document(self.reply.usage_chunk(self.generated))?);
            }
            write_event(out, b"[DONE]");
        }
        Ok(())
    }
}

fn document(written: Result<Vec<u8>, serde_json::Error>) -> ApiResult<Vec<u8>> {
    written.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn write_event(out: &mut Vec<u8>, data: &[u8]) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
}
