//! HTTP: routes, limits, and the server's life.

mod app;
mod body;
mod error;
mod fields;
mod generate;
mod guard;
mod listener;
mod metrics;
mod parse;
mod reply;
mod request;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, header};
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use hybridnorm::data::Tokenizer;
use hybridnorm::model::Model;
use hybridnorm::{Error, Result};
use serde_json::json;
use tokio::sync::watch;

use crate::engine::{Engine, EngineHandle, EngineMemory};
use crate::options::ServerOptions;
use app::App;
use error::{ApiError, ApiResult};
use listener::Limits;

const PAGE: &str = include_str!("page.html");
/// The page runs only its own script, and connects only to this server.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src \
                           'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Interval at which the request to stop is checked.
const POLL: Duration = Duration::from_millis(50);
/// Threads that read and tokenize requests.
const BLOCKING_THREADS: usize = 2;

/// Address and memory of a server that accepts requests.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Started {
    /// Address that it listens on.
    pub address: SocketAddr,
    /// Memory of the engine.
    pub engine: EngineMemory,
    /// Maximum number of requests that wait, run or are being answered.
    pub max_requests: usize,
    /// Maximum memory of a request in bytes: its body, its tokens and its response.
    pub request_bytes: u64,
    /// Maximum memory of connections in bytes.
    pub connection_bytes: u64,
    /// Maximum number of tokens of a sequence.
    pub context: usize,
    /// Sequences that are evaluated at the same time.
    pub slots: usize,
    /// Reason why the chat template cannot be used, if it has one that is not valid.
    pub chat_problem: Option<String>,
}

impl Started {
    /// Returns the maximum memory in bytes, except for the program itself and the tokenizer.
    pub fn total_bytes(&self) -> u64 {
        let requests = self.request_bytes.saturating_mul(self.max_requests as u64);
        let EngineMemory {
            weights,
            cache,
            run,
            ..
        } = self.engine;
        [weights, cache, run, requests, self.connection_bytes]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// Serves a model until `stop` is true. The engine runs on the calling thread, which should be one of the compute pool
/// ([`hybridnorm::threads::run`]). `on_start` is called when requests are accepted.
///
/// # Errors
/// If the address cannot be used, an option is out of range, there is not enough memory, or the engine ends
/// unexpectedly.
pub fn serve(
    model: Model,
    tokenizer: Tokenizer,
    options: ServerOptions,
    stop: &AtomicBool,
    on_start: impl FnOnce(&Started),
) -> Result<()> {
    check_options(&options)?;
    let address = SocketAddr::new(options.host, options.port);
    let cannot = |error: std::io::Error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => "; choose another --port",
            _ => "",
        };
        Error::External(format!("cannot listen on {address}: {error}{advice}"))
    };
    let listener = TcpListener::bind(address).map_err(cannot)?;
    listener.set_nonblocking(true).map_err(cannot)?;
    let local = listener.local_addr().map_err(cannot)?;
    let (engine, handle) = Engine::new(model, tokenizer.clone(), &options.engine)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|error| Error::External(format!("cannot start the server: {error}")))?;
    let (stopping, is_stopping) = watch::channel(false);
    let app = Arc::new(App::new(
        handle.clone(),
        tokenizer,
        options,
        is_stopping.clone(),
    ));
    let started = started(&app, local, engine.memory());
    std::thread::scope(|scope| {
        let http = std::thread::Builder::new()
            .name("http".into())
            .spawn_scoped(scope, || {
                runtime.block_on(async {
                    tokio::join!(run(listener, app), watch_stop(stop, &handle, stopping));
                });
                drop(runtime);
                handle.stop();
            });
        http.map_err(|error| Error::External(format!("cannot start the server: {error}")))?;
        on_start(&started);
        engine.run();
        match stop.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err(Error::External("the engine ended unexpectedly".into())),
        }
    })
}

fn check_options(options: &ServerOptions) -> Result<()> {
    for (name, value, least) in [
        ("body_limit", options.body_limit, 1024),
        ("max_connections", options.max_connections, 1),
    ] {
        if value < least {
            return Err(Error::out_of_range(
                name,
                value,
                format!("at least {least}"),
            ));
        }
    }
    if options.client_timeout.is_zero() {
        return Err(Error::out_of_range("client_timeout", 0, "at least 1"));
    }
    if options.api_key.as_ref().is_some_and(String::is_empty) {
        return Err(Error::invalid_value("api_key", "the API key is empty"));
    }
    Ok(())
}

fn started(app: &App, address: SocketAddr, engine: EngineMemory) -> Started {
    let options = &app.options;
    Started {
        address,
        engine,
        max_requests: app.engine().max_requests(),
        request_bytes: options.request_bytes(),
        connection_bytes: options
            .max_connections
            .saturating_mul(ServerOptions::CONNECTION_BYTES) as u64,
        context: app.engine().context(),
        slots: options.engine.slots,
        chat_problem: match app.tokenizer().chat_template() {
            Some(_) => app.chat().err().map(|error| error.message),
            None => None,
        },
    }
}

/// Accepts connections until the server stops.
async fn run(listener: TcpListener, app: Arc<App>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let limits = Limits {
        connections: app.options.max_connections,
        client_timeout: app.options.client_timeout,
        stop_timeout: app.options.stop_timeout,
    };
    let stopping = app.stopping();
    listener::serve(listener, router(app), limits, stopping).await;
}

/// Reports the request to stop, or the end of the engine.
async fn watch_stop(stop: &AtomicBool, engine: &EngineHandle, stopping: watch::Sender<bool>) {
    let mut interval = tokio::time::interval(POLL);
    while !stop.load(Ordering::Acquire) && !engine.has_stopped() {
        interval.tick().await;
    }
    // Nobody listens if the server has ended.
    let _ = stopping.send(true);
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/v1/completions", post(generate::completions))
        .route("/v1/chat/completions", post(generate::chat_completions))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE)
}

async fn health(State(app): State<Arc<App>>) -> Response<Body> {
    let (status, text) = match (app.engine().has_stopped(), app.is_stopping()) {
        (true, _) => (StatusCode::INTERNAL_SERVER_ERROR, "stopped"),
        (_, true) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        _ => (StatusCode::OK, "ok"),
    };
    json_response(status, &json!({ "status": text }))
}

async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let headers = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (headers, app.metrics.text(app.engine()))
}

async fn models(State(app): State<Arc<App>>) -> Response<Body> {
    json_response(
        StatusCode::OK,
        &json!({ "object": "list", "data": [model_document(&app)] }),
    )
}

async fn model(
    State(app): State<Arc<App>>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> ApiResult<Response<Body>> {
    app.check_model(Some(&name))?;
    Ok(json_response(StatusCode::OK, &model_document(&app)))
}

fn model_document(app: &App) -> serde_json::Value {
    json!({
        "id": app.options.model_name,
        "object": "model",
        "created": app.created,
        "owned_by": "hybridnorm",
        "max_model_len": app.engine().context(),
    })
}

fn json_response(status: StatusCode, document: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(document.to_string()));
    *response.status_mut() = status;
    let json = axum::http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

async fn not_found() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "no such path; see / for a page, /v1/models for the API",
    )
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path does not support the method of the request",
    )
}

/// Returns the time in seconds since 1970.
fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}
