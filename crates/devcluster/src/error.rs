//! What can go wrong before a cluster runs. Errors of the API itself are HTTP answers, not Rust errors.

use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {addr}")]
    Listen {
        addr: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("no free port from {first} on")]
    NoFreePort { first: SocketAddr },
    #[error("cannot create the data directory {path}")]
    DataDir {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the PEM file {} cannot be used: {why}", path.display())]
    Pem { path: PathBuf, why: String },
    #[error("two nodes are called {0}")]
    DuplicateNode(String),
    #[error("the cluster's ACLs are bootstrapped already: only the token that was made then can make others")]
    Bootstrapped,
    #[error("no node is called {0}")]
    UnknownNode(String),
}
