//! The server's paths.

use crate::notes;
use crate::request::{Refused, run};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use vmsrs::App;

/// All paths of the server.
pub fn router(app: &'static App) -> Router {
    Router::new()
        .route("/users/{user}/notes", get(list).post(add))
        .route("/users/{user}/morse", post(add_in_morse))
        .with_state(app)
}

async fn list(
    State(app): State<&'static App>,
    Path(user): Path<String>,
) -> Result<Vec<u8>, Refused> {
    run(app, user, notes::all).await
}

async fn add(
    State(app): State<&'static App>,
    Path(user): Path<String>,
    text: Bytes,
) -> Result<String, Refused> {
    let count = run(app, user, move |request| notes::add(request, &text)).await?;
    Ok(format!("{count}\n"))
}

async fn add_in_morse(
    State(app): State<&'static App>,
    Path(user): Path<String>,
    text: Bytes,
) -> Result<String, Refused> {
    let work = move |request: &_| notes::add_in_morse(request, &text);
    let count = run(app, user, work).await?;
    Ok(format!("{count}\n"))
}
