//! `cargo run -p axum-notes -- 127.0.0.1:8080`, then
//!
//! ```text
//! curl --data 'buy milk' localhost:8080/users/alice/notes
//! curl --data 'sos' localhost:8080/users/alice/morse
//! curl --data 'SOS' localhost:8080/users/bob/morse       # crashes the C library
//! curl localhost:8080/users/alice/notes
//! ```

use std::env;
use std::error::Error;
use tokio::net::TcpListener;
use vmsrs::App;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1);
    let address = address.ok_or("usage: axum-notes ADDRESS:PORT")?;
    // SAFETY: no request in this program lends its locals to other threads.
    let app = unsafe { App::open("axum-notes") }?;
    let listener = TcpListener::bind(address).await?;
    eprintln!("listening on {}", listener.local_addr()?);
    axum::serve(listener, axum_notes::server::router(app)).await?;
    Ok(())
}
