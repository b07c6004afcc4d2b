//! `curfew-gc`: the gc by itself, for a periodic job. The same as `curfew gc`.

fn main() -> std::process::ExitCode {
    curfew_cli::curfew_gc()
}
