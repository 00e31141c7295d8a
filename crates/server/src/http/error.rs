//! Errors in OpenAI's schema.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use hybridnorm::text::one_line;
use serde_json::json;

use crate::engine::{Failure, Rejection};

/// An error that a client receives.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

pub(super) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
        }
    }

    /// Creates the error of an invalid field.
    pub(super) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(field.into()),
            ..Self::new(StatusCode::BAD_REQUEST, message)
        }
    }

    /// Creates the error of a field that this server does not support.
    pub(super) fn unsupported(field: &str) -> Self {
        Self {
            code: Some("unsupported_parameter"),
            ..Self::field(
                field,
                format!("`{field}` is not supported by this server; remove it from the request"),
            )
        }
    }

    pub(super) fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub(super) fn overloaded() -> Self {
        let message =
            "the server already processes as many requests as it accepts; try again later";
        Self::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("queue_full")
    }

    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping")
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// Returns the JSON document.
    pub(super) fn to_json(&self) -> serde_json::Value {
        json!({ "error": {
            "message": one_line(&self.message),
            "type": self.kind(),
            "param": self.param.as_deref().map(one_line),
            "code": self.code,
        } })
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::QueueFull => Self::overloaded(),
            Rejection::Stopped => Self::stopping(),
            Rejection::Invalid(field, problem) => Self::field(field, problem),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TimedOut => {
                let message =
                    "the request took longer than the server's time-out (--request-timeout)";
                Self::new(StatusCode::GATEWAY_TIMEOUT, message).with_code("timeout")
            }
            Failure::Stopped => Self::stopping(),
            Failure::Model(problem) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, problem),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.to_json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
