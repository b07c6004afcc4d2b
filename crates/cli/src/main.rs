//! `curfew`; see the library beside this file.

/// What comes and goes in many sizes stays small: the system's allocator kept a multiple of what was in use.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    curfew_cli::curfew()
}
