//! Requests in asynchronous handlers.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use std::time::Duration;
use vmsrs::{App, Error, Options, Request, RunError};

/// How long a request may take. It holds a thread meanwhile, which nothing else could end.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It had an error. Nothing of what it has changed in domains is left.
    #[error("{0}")]
    Failed(String),
    /// It was not begun, or gave up.
    #[error("the request was refused: {0}")]
    Refused(#[from] Error),
    /// The server is about to end.
    #[error("the server is ending")]
    Ending,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Refused(Error::Length { .. }) => StatusCode::BAD_REQUEST,
            Self::Refused(_) | Self::Ending => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, format!("{self}\n")).into_response()
    }
}

/// Runs `work` as a request of the user's domain, and waits for its end without holding up the runtime's threads: on
/// one of those that tokio has for what blocks. A handler that is dropped meanwhile does not end the request.
///
/// # Errors
///
/// [`Refused`].
pub async fn run<T: Send + 'static>(
    app: &'static App,
    user: String,
    work: impl FnOnce(&Request) -> Result<T, Error> + Send + 'static,
) -> Result<T, Refused> {
    let options = Options {
        deadline: Some(DEADLINE),
        ..Options::default()
    };
    let request = move || match app.domain(&user)?.run_with(&options, work) {
        Ok(value) => Ok(value),
        Err(RunError::Failed(failure)) => Err(Refused::Failed(failure.to_string())),
        Err(RunError::Refused(error) | RunError::GivenUp(error)) => Err(error.into()),
    };
    // A panic of the work is a failure of the request, and does not come here.
    let ended = tokio::task::spawn_blocking(request).await;
    ended.unwrap_or(Err(Refused::Ending))
}
