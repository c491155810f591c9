//! The metrics over HTTP, for a monitoring system that asks for them.

use std::io::Cursor;
use std::net::SocketAddr;

use anyhow::anyhow;
use tiny_http::{Header, Method, Response, Server};

use super::families;
use crate::cli::vms::Selection;
use crate::cli::{Exit, Failure};
use crate::output::say;

/// Where they are.
const PATH: &str = "/metrics";

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Answers until the process is ended. VMs that were named need not run yet, but their names must be possible.
pub(super) fn serve(address: SocketAddr, vms: &Selection) -> Result<Exit, Failure> {
    vms.look()?;
    let server = Server::http(address).map_err(|error| {
        let error = anyhow!("cannot listen at {address}: {error}");
        Failure::new(Exit::Failure, error)
    })?;
    let address = server.server_addr();
    say(format_args!("metrics are at http://{address}{PATH}"));
    loop {
        let request = server
            .recv()
            .map_err(|error| Failure::new(Exit::Failure, error))?;
        let response = answer(request.method(), request.url(), || {
            vms.look().map(|vms| families::text(&vms))
        });
        if let Err(error) = request.respond(response) {
            log::debug!("a client went away: {error}");
        }
    }
}

/// What a request is answered with.
fn answer(
    method: &Method,
    url: &str,
    metrics: impl FnOnce() -> Result<String, Failure>,
) -> Response<Cursor<Vec<u8>>> {
    let path = url.split_once('?').map_or(url, |(path, _)| path);
    let (status, kind, text) = match (path, method) {
        (PATH, Method::Get | Method::Head) => match metrics() {
            Ok(text) => (200, OPENMETRICS, text),
            Err(failure) => (500, PLAIN, format!("{failure}\n")),
        },
        (PATH, _) => (405, PLAIN, "only GET and HEAD are answered\n".to_owned()),
        _ => (404, PLAIN, format!("the metrics are at {PATH}\n")),
    };
    let kind = Header::from_bytes("Content-Type", kind).expect("a constant without line ends");
    let mut response = Response::from_string(text)
        .with_status_code(status)
        .with_header(kind);
    if status == 405 {
        let allowed = Header::from_bytes("Allow", "GET, HEAD").expect("the same");
        response.add_header(allowed);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_metrics_are_served() {
        let text = || Ok("# EOF\n".to_owned());
        for (method, url, status) in [
            (Method::Get, "/metrics", 200),
            (Method::Head, "/metrics?name=web", 200),
            (Method::Post, "/metrics", 405),
            (Method::Get, "/", 404),
            (Method::Get, "/metrics/../etc/passwd", 404),
        ] {
            let response = answer(&method, url, text);
            assert_eq!(response.status_code().0, status, "{method} {url}");
        }
    }
}
