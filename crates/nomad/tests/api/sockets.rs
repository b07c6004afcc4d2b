//! The same over real sockets: what reqwest's errors become.

use curfew_core::JobKey;
use curfew_nomad::{Error, Nomad, NomadConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn nomad(addr: String) -> Nomad {
    Nomad::new(NomadConfig { addr, token: Some("s3cret".into()), region: Some("eu".into()), ..NomadConfig::default() }).unwrap()
}

fn key() -> JobKey {
    JobKey::new("games", "a/b ü")
}

/// Accepts one connection, reads one request's head, sends these bytes and closes. Gives the address and the head.
async fn once(answer: &'static [u8]) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = format!("http://{}", listener.local_addr().unwrap());
    let head = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        // A TLS greeting (0x16) has no end of its own.
        while head.first() != Some(&0x16) && !head.windows(4).any(|w| w == b"\r\n\r\n") {
            let mut chunk = [0; 1024];
            match socket.read(&mut chunk).await.unwrap() {
                0 => break,
                n => head.extend_from_slice(&chunk[..n]),
            }
        }
        socket.write_all(answer).await.unwrap();
        String::from_utf8_lossy(&head).into_owned()
    });
    (addr, head)
}

#[tokio::test]
async fn what_is_on_the_wire() {
    let (addr, head) = once(b"HTTP/1.1 404 Not Found\r\nContent-Length: 13\r\n\r\njob not found").await;
    assert_eq!(nomad(addr).job(&key()).await.unwrap(), None);
    let head = head.await.unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /v1/job/a%2fb%20%c3%bc?namespace=games&region=eu http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nx-nomad-token: s3cret\r\n"), "{head}");
}

#[tokio::test]
async fn refused_names_the_address_and_what_to_check() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let e = nomad(addr.clone()).delete_job(&key(), false).await.unwrap_err();
    assert_eq!(e.to_string(), format!("NOMAD_ADDR {addr} refused the connection: is a Nomad agent listening there?"));
    assert!(matches!(e, Error::Unreachable { .. }) && !e.outcome_unknown() && e.is_transient());
    assert!(!format!("{e:?}").contains("s3cret"));
}

#[tokio::test]
async fn https_to_a_plain_port_and_a_socket_that_is_not_there() {
    let (addr, _head) = once(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.").await;
    let e = nomad(addr.replace("http:", "https:")).leader().await.unwrap_err();
    assert!(matches!(e, Error::Unreachable { .. }) && e.to_string().contains("does not speak TLS"), "{e:?}");
    let e = nomad("unix:///no/such/nomad.sock".into()).leader().await.unwrap_err();
    assert!(e.to_string().contains("no such socket"), "{e:?}");
}

#[tokio::test]
async fn a_connection_cut_midway_leaves_the_outcome_open() {
    for answer in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"] {
        let (addr, head) = once(answer).await;
        let e = nomad(addr).delete_job(&key(), false).await.unwrap_err();
        assert!(matches!(e, Error::Interrupted { .. }) && e.outcome_unknown(), "{e:?}");
        assert!(head.await.unwrap().starts_with("DELETE "));
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_because_it_would_take_the_token_along() {
    let (addr, head) =
        once(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n").await;
    let e = nomad(addr).leader().await.unwrap_err();
    assert!(matches!(e, Error::NotNomad { status: 307, .. }), "{e:?}");
    head.await.unwrap();
}

#[tokio::test]
async fn the_next_address_is_asked_when_one_takes_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (addr, head) = once(b"HTTP/1.1 404 Not Found\r\nContent-Length: 13\r\n\r\njob not found").await;
    let both = nomad(format!("{gone},{addr}"));
    assert_eq!(both.job(&key()).await.unwrap(), None);
    assert!(head.await.unwrap().contains("GET /v1/job/"));
    // Both are gone now: each was asked once, and both are named.
    let e = both.job(&key()).await.unwrap_err();
    assert!(matches!(e, Error::Unreachable { .. }) && e.to_string().contains(&format!("{gone},{addr}")), "{e}");
    assert_eq!(both.requests(), [("GET /v1/job/:job", 4)]);
}
