//! The server over TCP. Without a device, errors are suppressed, but memory is not restored.

use axum_notes::server::router;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::thread;
use tokio::net::TcpListener;
use vmsrs::App;

/// The address of the server, which runs as long as the process.
fn server() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        // SAFETY: no request of the server lends its locals to other threads.
        let app = unsafe { App::open("axum-notes") }.unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || runtime.block_on(async { axum::serve(listener, router(app)).await }));
        address
    })
}

/// Status and body of the answer.
fn ask(method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server()).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.parse().unwrap(), body.to_owned())
}

#[test]
fn notes_of_a_user_are_kept_in_order() {
    let path = "/users/carol/notes";
    assert_eq!(ask("POST", path, "buy milk"), (200, "1\n".into()));
    let morse = ask("POST", "/users/carol/morse", "sos");
    assert_eq!(morse, (200, "2\n".into()));
    let all = ask("GET", path, "");
    assert_eq!(all, (200, "buy milk\n... --- ... \n".into()));
}

#[test]
fn crash_of_the_c_library_is_an_answer_and_others_go_on() {
    assert_eq!(ask("POST", "/users/alice/notes", "first").0, 200);
    let others = thread::spawn(|| {
        for count in 1..=50 {
            let answer = ask("POST", "/users/dave/morse", "a note");
            assert_eq!(answer, (200, format!("{count}\n")));
        }
    });
    for _ in 0..50 {
        let (status, text) = ask("POST", "/users/bob/morse", "Übung");
        assert_eq!(status, 500, "{text}");
        assert!(text.contains("memory"), "{text}");
    }
    others.join().unwrap();
    let notes = ask("GET", "/users/alice/notes", "");
    assert_eq!(notes, (200, "first\n".into()));
}

#[test]
fn user_that_has_no_valid_name_is_refused() {
    let name = "x".repeat(300);
    let (status, text) = ask("GET", &format!("/users/{name}/notes"), "");
    assert_eq!(status, 400, "{text}");
}
