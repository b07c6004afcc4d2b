//! `curfew`; see the library beside this file.

/// What waits for hours lies among what comes and goes: this one gives the room of the latter back. Its settings: .cargo/config.toml.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    curfew_cli::curfew()
}
