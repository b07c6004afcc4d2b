//! The `curfew` binary that scenarios run: `CURFEW_TEST_BINARY`, else the one of this build, built when missing or stale.
//!
//! Cargo gives a test only the binaries of its own package. The target folder and the profile are known from where this
//! test lies, so `cargo build -p curfew` into the same place is what `cargo test --workspace` would have done.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub fn curfew() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("CURFEW_TEST_BINARY") {
        Some(named) => PathBuf::from(named),
        None => built("curfew"),
    })
}

/// Another program of the same package; with `CURFEW_TEST_BINARY` the one beside it.
pub fn named(name: &str) -> PathBuf {
    match std::env::var_os("CURFEW_TEST_BINARY") {
        Some(_) => curfew().with_file_name(name),
        None => built(name),
    }
}

fn built(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    // TARGET/PROFILE/deps/scenarios-…
    let folder = this.ancestors().nth(2).unwrap();
    let binary = folder.join(name);
    if fresh(&binary) {
        return binary;
    }
    let profile = folder.file_name().and_then(|n| n.to_str()).unwrap_or("debug");
    let profile = if profile == "debug" { "dev" } else { profile };
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--package", "curfew", "--bin", name, "--profile", profile]);
    build.arg("--manifest-path").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"));
    build.arg("--target-dir").arg(folder.parent().unwrap());
    let status = build.status().unwrap_or_else(|e| panic!("cargo could not be run to build {name}: {e}"));
    assert!(status.success(), "{name} could not be built: {status}");
    binary
}

/// Whether it is newer than every source that cargo says it is made of.
fn fresh(binary: &Path) -> bool {
    let made = |p: &Path| p.metadata().and_then(|m| m.modified()).ok();
    let (Some(at), Ok(sources)) = (made(binary), std::fs::read_to_string(binary.with_extension("d"))) else { return false };
    let Some((_, sources)) = sources.split_once(": ") else { return false };
    // Spaces in names are written `\ `.
    let sources = sources.replace("\\ ", "\u{0}");
    let mut sources = sources.split_whitespace().map(|s| PathBuf::from(s.replace('\u{0}', " ")));
    sources.all(|s| made(&s).is_some_and(|m| m <= at))
}
