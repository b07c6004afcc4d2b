//! `curfew`; see the library beside this file.

fn main() -> std::process::ExitCode {
    curfew_cli::curfew()
}
