//! The two programs as they are built. That there is such a test makes `cargo test` build them, for the scenarios too.

use std::process::Command;

#[test]
fn each_says_who_it_is() {
    for (program, name) in [(env!("CARGO_BIN_EXE_curfew"), "curfew"), (env!("CARGO_BIN_EXE_curfew-gc"), "curfew-gc")] {
        let ran = Command::new(program).arg("--version").output().expect("it was just built");
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert_eq!(said.trim(), format!("{name} {}", env!("CARGO_PKG_VERSION")), "{ran:?}");
    }
}
